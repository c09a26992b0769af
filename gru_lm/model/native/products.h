/* Shared by the recurrence kernels: division of work among threads, weight packing, and products with packed
 * weights.
 *
 * Shapes, row-major: T time, B batch, H hidden, a multiple of UNITS (the caller pads); U [gates*H, H] the
 * recurrent weights, packed once per sequence so that the inner loop reads them sequentially.
 *
 * Products multiply 32-bit "factors": floats or, if BF16 is defined (bf16.c), pairs of bfloat16 with adjacent
 * k. K and the strides of `multiply` count factors. Accumulators are float32.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

#define UNITS (2 * LANES)

#ifdef BF16
#include <immintrin.h>
#define NAME(function) function##_bf16
#define PAIR 2 /* numbers per factor */
typedef int factor;

/* sum + a * b[lane], in every lane. */
INLINE vec multiply_add(vec sum, factor a, const factor *b) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
}
/* Store v, rounded to nearest, in an array of factors, starting at number `at`. */
INLINE void store_rounded(factor *p, size_t at, vec v) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  memcpy((char *)p + 2 * at, &rounded, sizeof rounded);
}
/* Convert UNITS consecutive numbers to factors. */
INLINE void row_factors(const float *p, factor *out) {
  const __m512bh pairs = _mm512_cvtne2ps_pbh((__m512)load(p + LANES), (__m512)load(p));
  memcpy(out, &pairs, sizeof pairs);
}
/* Interleave into pairs (even, odd). */
INLINE ivec pair_up(vec even, vec odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
  return (ivec)low | (ivec)high << 16;
}
/* Convert LANES columns of this row and the next to factors. */
INLINE void column_factors(const float *p, size_t stride, factor *out) {
  const ivec pairs = pair_up(load(p), load(p + stride));
  memcpy(out, &pairs, sizeof pairs);
}
#else
#define NAME(function) function
#define PAIR 1
typedef float factor;

INLINE vec multiply_add(vec sum, factor a, const factor *b) { return sum + fill(a) * load(b); }
INLINE void row_factors(const float *p, factor *out) { memcpy(out, p, UNITS * sizeof(float)); }
INLINE void column_factors(const float *p, size_t stride, factor *out) { (void)stride, store(out, load(p)); }
/* Floats are their own factors, in the same array. */
INLINE void store_rounded(factor *p, size_t at, vec v) { (void)p, (void)at, (void)v; }
#endif
/* Store v both as numbers and as factors, at number `at`. */
INLINE void store_both(float *numbers, factor *factors, size_t at, vec v) {
  store(numbers + at, v), store_rounded(factors, at, v);
}

/* Batch rows per tile: ROWS x 3 accumulators fill the vector registers. */
#if defined(__AVX512F__)
#define ROWS 8
#else
#define ROWS 4
#endif
#define CACHE (1 << 20) /* bytes of weights assumed to fit a core's cache */

/* A thread's share of the work: batch rows and hidden units to compute, and units whose weights to pack. If
 * `meet`, threads synchronize at every step because they need each other's units. */
typedef struct { size_t row, row_end, unit, unit_end, pack, pack_end; int meet; } share;

INLINE share my_share(size_t B, size_t H) {
  size_t id = 0, all = 1;
#ifdef _OPENMP
  id = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads();
#endif
  const size_t blocks = H / UNITS, from = blocks * id / all * UNITS, to = blocks * (id + 1) / all * UNITS;
  if (3 * H * H * sizeof(float) / PAIR <= CACHE && 2 * B >= ROWS * all)
    return (share){B * id / all, B * (id + 1) / all, 0, H, from, to, 0};
  return (share){0, B, from, to, from, to, all > 1};
}

/* Convert this thread's part of the initial states [B,H] to factors. */
INLINE void round_part(const share *mine, size_t H, const float *h, factor *factors) {
  for (size_t b = mine->row; b < mine->row_end; b++)
    for (size_t j = mine->unit; j < mine->unit_end; j += LANES)
      store_rounded(factors, b * H + j, load(h + b * H + j));
}

#define MEET(mine)                \
  do {                            \
    if ((mine).meet) {            \
      _Pragma("omp barrier")      \
    }                             \
  } while (0)

/* What passes between step t and the next in row b, at = t*B + b: the state v or, backward, its gradient;
 * zero where `ends` is set. */
INLINE vec carried(vec v, const uint8_t *ends, size_t at) { return ends && ends[at] ? fill(0.f) : v; }

/* Height of the next tile, with `left` rows remaining: tiles are of about equal height, at most ROWS. */
INLINE size_t tile(size_t left) {
  const size_t tiles = (left + ROWS - 1) / ROWS;
  return (left + tiles - 1) / tiles;
}

/* Pack the rows of U: for each block of `units` units and each k, the weights of all gates are adjacent.
 * U [gates*H, H] -> packed [H/units][H/PAIR][gates][units]. */
#define pack_rows NAME(pack_rows)
void pack_rows(size_t gates, size_t units, size_t H, size_t begin, size_t end, const float *U, factor *packed);

/* Pack the columns of U in blocks of UNITS. U [K, H] -> packed [H/UNITS][K/PAIR][UNITS]. */
#define pack_columns NAME(pack_columns)
void pack_columns(size_t K, size_t H, size_t begin, size_t end, const float *U, factor *packed);

/* sum [rows][wide] += a [rows, K] times packed [K][wide][LANES]; rows of `a` are `stride` factors apart. One
 * function per shape: multiply_<wide>[rows - 1]. */
typedef void NAME(multiply)(size_t K, const factor *a, size_t stride, const factor *packed, vec *sum);
#define multiply_2 NAME(multiply_2)
#define multiply_3 NAME(multiply_3)
extern NAME(multiply) *const multiply_2[ROWS], *const multiply_3[ROWS];

/* This thread's part of dh [B,H] += a [B,K] times the first K rows of U + c [B,H] (or null) times its
 * remaining rows. Rows of `a` are `stride` numbers apart; `packed` comes from pack_columns. */
#define add_back NAME(add_back)
void add_back(const share *mine, size_t H, const factor *packed, size_t rows_of_U, size_t K, const factor *a,
              size_t stride, const factor *c, float *dh);

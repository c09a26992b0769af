/* What the recurrences share: who computes what, packed weights, and products with them.
 *
 * Shapes, row-major: T time, B batch, H hidden, a multiple of UNITS (the caller pads); U [gates*H, H] the
 * recurrent weights, which are packed once a sequence, so that the inner loop reads them in order.
 *
 * What products multiply are "factors" of 32 bits: floats; or, where BF16 is defined (bf16.c), pairs of
 * bfloat16, the numbers of two neighbouring k. K and strides of `multiply` count factors. Sums are float32.
 */
#pragma once
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

#define UNITS (2 * LANES)

#ifdef BF16
#include <immintrin.h>
#define NAME(function) function##_bf16
#define PAIR 2 /* numbers in a factor */
typedef int factor;

/* sum + a times what is at b, in every lane. */
INLINE vec multiply_add(vec sum, factor a, const factor *b) {
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)_mm512_loadu_si512(b));
}
/* Numbers `at` on of an array of factors become v, rounded to the nearest. */
INLINE void store_rounded(factor *p, size_t at, vec v) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  memcpy((char *)p + 2 * at, &rounded, sizeof rounded);
}
/* UNITS numbers in a row as factors. */
INLINE void row_factors(const float *p, factor *out) {
  const __m512bh pairs = _mm512_cvtne2ps_pbh((__m512)load(p + LANES), (__m512)load(p));
  memcpy(out, &pairs, sizeof pairs);
}
/* Pairs of one number of `even`, one of `odd`. */
INLINE ivec pair_up(vec even, vec odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
  return (ivec)low | (ivec)high << 16;
}
/* LANES columns of this row, and of the next that is in their factors. */
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
/* Floats are their own factors: their array is one with the factors'. */
INLINE void store_rounded(factor *p, size_t at, vec v) { (void)p, (void)at, (void)v; }
#endif
/* v as numbers and as factors, `at` numbers on. */
INLINE void store_both(float *numbers, factor *factors, size_t at, vec v) {
  store(numbers + at, v), store_rounded(factors, at, v);
}

/* Rows of the batch in one product: ROWS x 3 sums fill the vector registers. */
#if defined(__AVX512F__)
#define ROWS 8
#else
#define ROWS 4
#endif
#define CACHE (1 << 20) /* bytes of weights that stay near a core */

/* What a thread computes: these rows of the batch, these units of each. It packs the weights of units
 * pack..pack_end, and meets the others every step if they need each other's units. */
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

/* This thread's part of the first states [B,H] as factors too. */
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

/* Rows of the next tile, where `left` are left: tiles of about equal height, at most ROWS. */
INLINE size_t tile(size_t left) {
  const size_t tiles = (left + ROWS - 1) / ROWS;
  return (left + tiles - 1) / tiles;
}

/* Rows of U as columns: for each `units` units of all gates and each k, their weights side by side.
 * U [gates*H, H] -> packed [H/units][H/PAIR][gates][units]. */
#define pack_rows NAME(pack_rows)
void pack_rows(size_t gates, size_t units, size_t H, size_t begin, size_t end, const float *U, factor *packed);

/* Columns of U as they are: for each UNITS columns, every k. U [K, H] -> packed [H/UNITS][K/PAIR][UNITS]. */
#define pack_columns NAME(pack_columns)
void pack_columns(size_t K, size_t H, size_t begin, size_t end, const float *U, factor *packed);

/* sum [rows][wide] += a [rows, K] times packed [K][wide][LANES]; `a` has `stride` factors a row. There is
 * one function for each shape: multiply_<wide>[rows - 1]. */
typedef void NAME(multiply)(size_t K, const factor *a, size_t stride, const factor *packed, vec *sum);
#define multiply_2 NAME(multiply_2)
#define multiply_3 NAME(multiply_3)
extern NAME(multiply) *const multiply_2[ROWS], *const multiply_3[ROWS];

/* dh [B,H], this thread's part, += a [B,K] times U's columns, and += c [B,H] times the rest of its rows;
 * `stride` counts numbers. */
#define add_back NAME(add_back)
void add_back(const share *mine, size_t H, const factor *packed, size_t rows_of_U, size_t K, const factor *a,
              size_t stride, const factor *c, float *dh);

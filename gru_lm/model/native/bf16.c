/* bfloat16 variants of the recurrences, and large matrix products: half the memory traffic and twice the
 * arithmetic per instruction (AVX512_BF16). Accumulators, states and gates stay float32.
 *
 * If the target processor lacks the instructions, only stubs are compiled and has_bf16 returns 0.
 */
#include <stddef.h>

#ifdef __AVX512BF16__
#define BF16
#include "products.c"

#include "gru.c"
#include "lstm.c"

/* ---- a large product ---- */

enum { DEPTH = 256 }; /* pairs of k per block, for both factors of a tile to stay in cache */

/* Transpose LANES rows of LANES elements in place, by swapping off-diagonal blocks of increasing size. */
INLINE void turn(ivec *r) {
  const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int s = 1; s < LANES; s *= 2) {
    const ivec in = (lane & s) != 0, low = lane + (in & (LANES - s)), high = lane + (in & LANES) + (~in & s);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & s)) {
        const __m512i a = (__m512i)r[i], b = (__m512i)r[i + s];
        r[i] = (ivec)_mm512_permutex2var_epi32(a, (__m512i)low, b);
        r[i + s] = (ivec)_mm512_permutex2var_epi32(a, (__m512i)high, b);
      }
  }
}

/* Load up to LANES numbers from p, where `left` remain, padded with zeros. */
INLINE vec load_some(const float *p, size_t left) {
  if (left >= LANES) return load(p);
  vec v = {0};
  memcpy(&v, p, left * sizeof(float));
  return v;
}

/* Pack groups begin..end of LANES rows, zero-padded after the last row, into [groups][depth/2][LANES] pairs
 * of columns. `row` and `column` are the strides of `a`, one of which is 1; `depth` is the number of columns. */
static void pack_groups(size_t begin, size_t end, size_t rows, size_t depth, const float *a, size_t row,
                        size_t column, factor *packed) {
  enum { NEAR = 4 }; /* adjacent groups packed together, which share prefetched memory */
  const size_t next = (depth + 1) / 2 * LANES;
  if (row == 1) {
    for (size_t first = begin; first < end; first += NEAR)
      for (size_t k = 0; k < depth; k += 2)
        for (size_t g = first; g < first + NEAR && g < end; g++) {
          const float *p = a + g * LANES + k * column;
          const size_t left = rows - g * LANES;
          const vec odd = k + 1 < depth ? load_some(p + column, left) : (vec){0};
          const ivec pairs = pair_up(load_some(p, left), odd);
          memcpy(packed + g * next + k / 2 * LANES, &pairs, sizeof pairs);
        }
    return;
  }
  for (size_t g = begin; g < end; g++)
    for (size_t k = 0; k < depth; k += 2 * LANES) {
      const size_t left = depth - k, count = rows - g * LANES < LANES ? rows - g * LANES : LANES;
      ivec square[LANES] = {{0}};
      for (size_t i = 0; i < count; i++) {
        const float *p = a + (g * LANES + i) * row + k;
        const vec first = load_some(p, left);
        const vec second = left > LANES ? load_some(p + LANES, left - LANES) : (vec){0};
        square[i] = (ivec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
      }
      turn(square);
      for (size_t i = 0; i < LANES && 2 * i < left; i++)
        memcpy(packed + g * next + (k / 2 + i) * LANES, square + i, sizeof(ivec));
    }
}

/* One tile: out [ROWS][wide*LANES] = from + the product, over `depth` pairs, of ROWS rows of group a with
 * `wide` groups b. Strides: `next` between groups of b, `step` between rows of from, `across` of out. */
#define TILE(wide)                                                                                     \
  static __attribute__((noinline)) void tile_##wide(size_t depth, const factor *a, const factor *b,    \
                                                    size_t next, const float *from, size_t step,       \
                                                    float *out, size_t across) {                       \
    vec s[ROWS][wide];                                                                                 \
    for (size_t i = 0; i < ROWS; i++)                                                                  \
      for (size_t v = 0; v < wide; v++) s[i][v] = load(from + i * step + v * LANES);                   \
    for (size_t k = 0; k < depth * LANES; k += LANES)                                                  \
      for (size_t i = 0; i < ROWS; i++)                                                                \
        for (size_t v = 0; v < wide; v++) s[i][v] = multiply_add(s[i][v], a[k + i], b + v * next + k); \
    for (size_t i = 0; i < ROWS; i++)                                                                  \
      for (size_t v = 0; v < wide; v++) store(out + i * across + v * LANES, s[i][v]);                  \
  }
TILE(1) TILE(2) TILE(3)

INLINE size_t groups_of(size_t rows) { return (rows + LANES - 1) / LANES; }

/* Size of a product's scratch buffer, in factors. */
size_t product_scratch_bf16(size_t N, size_t G) { return (groups_of(N) + groups_of(G)) * LANES * DEPTH; }

/* out [N,G] = a [N,K] times b [G,K] transposed + bias [G] (or null); with `more`, added to out instead. a and
 * b may each be stored transposed: one of the two strides must be 1. */
void product_bf16(size_t more, size_t N, size_t G, size_t K, const float *a, size_t a_row, size_t a_k,
                  const float *b, size_t b_row, size_t b_k, const float *bias, float *out, factor *packed,
                  int threads) {
  const size_t a_groups = groups_of(N), b_groups = groups_of(G);
  const float zeros[3 * LANES] = {0};
  factor *packed_b = packed, *packed_a = packed + b_groups * LANES * DEPTH;
#pragma omp parallel num_threads(threads)
  {
    float edge[ROWS * 3 * LANES] = {0}; /* buffer for tiles that extend beyond `out` */
    size_t id = 0, all = 1;
#ifdef _OPENMP
    id = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads();
#endif
    for (size_t k = 0; k < K || k == 0; k += 2 * DEPTH) { /* runs once if K is 0: out = bias */
      const size_t numbers = K - k < 2 * DEPTH ? K - k : 2 * DEPTH, depth = (numbers + 1) / 2;
      const size_t next = depth * LANES;
      pack_groups(b_groups * id / all, b_groups * (id + 1) / all, G, numbers, b + k * b_k, b_row, b_k,
                  packed_b);
      pack_groups(a_groups * id / all, a_groups * (id + 1) / all, N, numbers, a + k * a_k, a_row, a_k,
                  packed_a);
#pragma omp barrier
      const size_t tiles = (N + ROWS - 1) / ROWS;
      for (size_t g = 0, wide; g < b_groups; g += wide) {
        const size_t left = b_groups - g, column = g * LANES;
        wide = left == 4 ? 2 : left < 3 ? left : 3;
        for (size_t i = tiles * id / all; i < tiles * (id + 1) / all; i++) {
          const factor *rows = packed_a + i * ROWS / LANES * next + i * ROWS % LANES;
          const size_t count = N - i * ROWS < ROWS ? N - i * ROWS : ROWS;
          const size_t part = G - column < wide * LANES ? G - column : wide * LANES;
          const int whole = count == ROWS && part == wide * LANES, begun = k || more;
          float *to = out + i * ROWS * G + column;
          const float *from = begun ? to : bias ? bias + column : zeros;
          size_t step = begun ? G : 0, across = G;
          if (!whole) {
            for (size_t r = 0; r < count; r++)
              memcpy(edge + r * 3 * LANES, from + r * step, part * sizeof(float));
            from = to = edge, step = across = 3 * LANES;
          }
          (wide == 3   ? tile_3
           : wide == 2 ? tile_2
                       : tile_1)(depth, rows, packed_b + g * next, next, from, step, to, across);
          if (!whole)
            for (size_t r = 0; r < count; r++)
              memcpy(out + (i * ROWS + r) * G + column, edge + r * 3 * LANES, part * sizeof(float));
        }
      }
#pragma omp barrier
    }
  }
}

int has_bf16(void) { return 1; }
#else
int has_bf16(void) { return 0; }
size_t product_scratch_bf16(size_t N, size_t G) { return N * G * 0; }
#endif

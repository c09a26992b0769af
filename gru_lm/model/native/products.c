/* Weight packing, products with packed weights, and weight gradients for the recurrence kernels. */
#include "products.h"

void pack_rows(size_t gates, size_t units, size_t H, size_t begin, size_t end, const float *U,
               factor *packed) {
  enum { NEAR = UNITS / PAIR }; /* k per block, for the output to stay in L1 cache */
  for (size_t j = begin; j < end; j += units)
    for (size_t k0 = 0; k0 < H / PAIR; k0 += NEAR)
      for (size_t g = 0; g < gates; g++)
        for (size_t u = 0; u < units; u++) {
          factor row[NEAR], *out = packed + j / PAIR * gates * H + g * units + u;
          row_factors(U + (g * H + j + u) * H + k0 * PAIR, row);
          for (size_t k = 0; k < NEAR; k++) out[(k0 + k) * gates * units] = row[k];
        }
}

void pack_columns(size_t K, size_t H, size_t begin, size_t end, const float *U, factor *packed) {
  for (size_t j = begin; j < end; j += UNITS)
    for (size_t k = 0; k < K; k += PAIR)
      for (size_t u = 0; u < UNITS; u += LANES)
        column_factors(U + k * H + j + u, H, packed + (j * K + k * UNITS) / PAIR + u);
}

/* One function per shape, never inlined, so that the accumulators stay in registers. */
#define MULTIPLY(rows, wide)                                                           \
  static __attribute__((noinline)) void multiply_##rows##_##wide(                      \
      size_t K, const factor *a, size_t stride, const factor *packed, vec *sum) {      \
    vec s[rows][wide];                                                                 \
    memcpy(s, sum, sizeof s);                                                          \
    for (size_t k = 0; k < K; k++, packed += wide * LANES)                             \
      for (size_t i = 0; i < rows; i++)                                                \
        for (size_t v = 0; v < wide; v++)                                              \
          s[i][v] = multiply_add(s[i][v], a[i * stride + k], packed + v * LANES);      \
    memcpy(sum, s, sizeof s);                                                          \
  }
#define BOTH(rows) MULTIPLY(rows, 2) MULTIPLY(rows, 3)
BOTH(1) BOTH(2) BOTH(3) BOTH(4)
#if ROWS == 8
BOTH(5) BOTH(6) BOTH(7) BOTH(8)
#endif

NAME(multiply) *const multiply_2[ROWS] = {
    multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2,
#if ROWS == 8
    multiply_5_2, multiply_6_2, multiply_7_2, multiply_8_2,
#endif
};
NAME(multiply) *const multiply_3[ROWS] = {
    multiply_1_3, multiply_2_3, multiply_3_3, multiply_4_3,
#if ROWS == 8
    multiply_5_3, multiply_6_3, multiply_7_3, multiply_8_3,
#endif
};

void add_back(const share *mine, size_t H, const factor *packed, size_t rows_of_U, size_t K,
              const factor *a, size_t stride, const factor *c, float *dh) {
  for (size_t j = mine->unit; j < mine->unit_end; j += UNITS)
    for (size_t b = mine->row, rows; b < mine->row_end; b += rows) {
      const factor *columns = packed + j * rows_of_U / PAIR;
      vec sum[ROWS * 2];
      rows = tile(mine->row_end - b);
      for (size_t i = 0; i < rows; i++) memcpy(sum + 2 * i, dh + (b + i) * H + j, 2 * sizeof(vec));
      multiply_2[rows - 1](K / PAIR, a + b * stride / PAIR, stride / PAIR, columns, sum);
      if (c) multiply_2[rows - 1](H / PAIR, c + b * H / PAIR, H / PAIR, columns + K / PAIR * UNITS, sum);
      for (size_t i = 0; i < rows; i++) memcpy(dh + (b + i) * H + j, sum + 2 * i, 2 * sizeof(vec));
    }
}

#ifndef BF16
/* ---- weight gradients ---- */

enum { DEPTH = 256 }; /* rows per block, for both factors to stay in cache */

size_t outer_product_depth(void) { return DEPTH; }

/* out [G,H] = d [N,G] transposed times h [N,H]. G and H are multiples of UNITS; rows of d are `stride` floats
 * apart; `packed` is scratch of DEPTH*H floats. */
void outer_product(size_t N, size_t G, size_t H, const float *d, size_t stride, const float *h, float *out,
                   float *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share columns = my_share(0, H), rows = my_share(0, G);
    for (size_t n = 0; n < N; n += DEPTH) {
      const size_t depth = N - n < DEPTH ? N - n : DEPTH;
      pack_columns(depth, H, columns.pack, columns.pack_end, h + n * H, packed);
#pragma omp barrier
      for (size_t g = rows.pack; g < rows.pack_end; g += ROWS) {
        float turned[ROWS * DEPTH];
        for (size_t k = 0; k < depth; k++)
          for (size_t i = 0; i < ROWS; i++) turned[i * DEPTH + k] = d[(n + k) * stride + g + i];
        for (size_t j = 0; j < H; j += UNITS) {
          vec sum[ROWS * 2] = {0};
          if (n)
            for (size_t i = 0; i < ROWS; i++) memcpy(sum + 2 * i, out + (g + i) * H + j, 2 * sizeof(vec));
          multiply_2[ROWS - 1](depth, turned, DEPTH, packed + j * depth, sum);
          for (size_t i = 0; i < ROWS; i++) memcpy(out + (g + i) * H + j, sum + 2 * i, 2 * sizeof(vec));
        }
      }
#pragma omp barrier
    }
  }
}
#endif

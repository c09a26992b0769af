/* The recurrences of `gru` and `gru-before` on a CPU, float32: only what is sequential in time.
 *
 * The caller does the rest as one large matrix product each: the input projection of all steps before,
 * the gradients of weights and inputs after. A thread owns a range of hidden units for the whole
 * sequence: it multiplies by their part of the recurrent weights (packed once a sequence, so that the
 * inner loop reads them in order), applies their gates while the sums are still in registers, and meets
 * the other threads once or twice a step. Nothing is allocated.
 *
 * Plain C with the vector extension of GCC and Clang: no intrinsics, no BLAS, no PyTorch headers; and
 * no -ffast-math, so the process's floating-point mode stays as it is.
 *
 * Shapes, row-major: T time, B batch, H hidden, a multiple of UNITS (the caller pads). x [T,B,3H] is
 * W x + b of every gate, U [3H,H] the recurrent weights, hs [T+1,B,H] the states, hs[0] given; `packed`
 * is scratch of 3*H*H floats. Names of gates as in cells.py.
 */
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

#if defined(__AVX512F__)
#define ROWS 8
#else
#define ROWS 4
#endif
#define UNITS (2 * LANES)
typedef vec sums[ROWS][3];

size_t recurrence_units(void) { return UNITS; }

/* The units of this thread: whole blocks of UNITS. */
static void own(size_t H, size_t *begin, size_t *end) {
  size_t id = 0, all = 1;
#ifdef _OPENMP
  id = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads();
#endif
  const size_t blocks = H / UNITS;
  *begin = blocks * id / all * UNITS;
  *end = blocks * (id + 1) / all * UNITS;
}

/* Rows of U as columns: for each LANES units and each k, the weights of `gates` gates side by side.
 * U [gates*H, H] -> packed [H/LANES][H][gates][LANES]. */
static void pack_rows(size_t gates, size_t H, size_t begin, size_t end, const float *U, float *packed) {
  for (size_t j = begin; j < end; j += LANES)
    for (size_t g = 0; g < gates; g++)
      for (size_t lane = 0; lane < LANES; lane++) {
        const float *row = U + (g * H + j + lane) * H;
        float *out = packed + j * gates * H + g * LANES + lane;
        for (size_t k = 0; k < H; k++) out[k * gates * LANES] = row[k];
      }
}

/* Columns of U as they are: for each UNITS columns, every k. U [K, H] -> packed [H/UNITS][K][UNITS]. */
static void pack_columns(size_t K, size_t H, size_t begin, size_t end, const float *U, float *packed) {
  for (size_t j = begin; j < end; j += UNITS)
    for (size_t k = 0; k < K; k++)
      memcpy(packed + j * K + k * UNITS, U + k * H + j, UNITS * sizeof(float));
}

/* sum[rows][wide] += a [rows, K] times packed [K][wide][LANES]; `a` has `stride` floats a row. */
INLINE void multiply(const int rows, const int wide, size_t K, const float *a, size_t stride,
                     const float *packed, sums sum) {
  for (size_t k = 0; k < K; k++, packed += wide * LANES)
    for (int i = 0; i < rows; i++)
      for (int v = 0; v < wide; v++) sum[i][v] += fill(a[(size_t)i * stride + k]) * load(packed + v * LANES);
}

INLINE void zero(const int rows, const int wide, sums sum) {
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < wide; v++) sum[i][v] = (vec){0};
}

/* Do `tile(N)` for the batch in tiles of ROWS rows from row b on, the last one perhaps shorter: each
 * number of rows is code of its own, its sums in registers. */
#define CASE(n, tile) case n: tile(n); break;
#if ROWS == 8
#define MORE(tile) CASE(5, tile) CASE(6, tile) CASE(7, tile) CASE(8, tile)
#else
#define MORE(tile)
#endif
#define FOR_TILES(B, b, tile)                                     \
  for (size_t b = 0; b < (B); b += ROWS) switch ((B)-b < ROWS ? (B)-b : ROWS) { \
      CASE(1, tile) CASE(2, tile) CASE(3, tile) CASE(4, tile) MORE(tile)        \
    }

/* ---- gru: r, z = σ(x + U h₋); u = U_n h₋ + b_hn; n = tanh(x_n + r⊙u); h = (1−z)⊙n + z⊙h₋ ---- */

INLINE void gru_step(const int rows, size_t H, size_t j, const float *packed, const float *h,
                     const float *x, const float *bias, float *out, float *gates, float *inner) {
  sums sum;
  zero(rows, 3, sum);
  multiply(rows, 3, H, h, H, packed, sum);
  for (int i = 0; i < rows; i++) {
    const size_t at = (size_t)i * H + j, at3 = (size_t)i * 3 * H + j;
    const vec r = sigmoid(load(x + at3) + sum[i][0]);
    const vec z = sigmoid(load(x + at3 + H) + sum[i][1]);
    const vec u = sum[i][2] + load(bias + j), n = tanhv(load(x + at3 + 2 * H) + r * u);
    store(out + at, n + z * (load(h + at) - n));
    if (gates) {
      store(gates + at3, r), store(gates + at3 + H, z), store(gates + at3 + 2 * H, n);
      store(inner + at, u);
    }
  }
}

/* bias [H] is b_hn. gates [T,B,3H] (r, z, n) and inner [T,B,H] (u) are kept for the way back, or null. */
void gru_forward(size_t T, size_t B, size_t H, const float *x, const float *U, const float *bias,
                 float *hs, float *gates, float *inner, float *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    size_t begin, end;
    own(H, &begin, &end);
    pack_rows(3, H, begin, end, U, packed);
    for (size_t t = 0; t < T; t++) {
      const float *h = hs + t * B * H, *xt = x + t * B * 3 * H;
      float *out = hs + (t + 1) * B * H;
      float *g = gates ? gates + t * B * 3 * H : NULL, *u = gates ? inner + t * B * H : NULL;
      for (size_t j = begin; j < end; j += LANES) {
#define TILE(n)                                                                            \
  gru_step(n, H, j, packed + j * 3 * H, h + b * H, xt + b * 3 * H, bias, out + b * H,      \
           g ? g + b * 3 * H : NULL, g ? u + b * H : NULL)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
#pragma omp barrier
    }
  }
}

/* dh [.,H] += a [.,K] times columns j.. of U, and then += c [.,H] times the rest of its rows. */
INLINE void add_back(const int rows, size_t H, size_t j, const float *packed, size_t K, const float *a,
                     size_t stride, const float *c, float *dh) {
  sums sum;
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < 2; v++) sum[i][v] = load(dh + (size_t)i * H + j + (size_t)v * LANES);
  multiply(rows, 2, K, a, stride, packed, sum);
  if (c) multiply(rows, 2, H, c, H, packed + K * UNITS, sum);
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < 2; v++) store(dh + (size_t)i * H + j + (size_t)v * LANES, sum[i][v]);
}

/* dy [T,B,H]. dh [B,H] comes as the gradient of the last state and leaves as that of the first.
 * dx [T,B,3H] and dinner [T,B,H] become the gradients of x and of u. */
void gru_backward(size_t T, size_t B, size_t H, const float *dy, const float *U, const float *hs,
                  const float *gates, const float *inner, float *dh, float *dx, float *dinner,
                  float *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    size_t begin, end;
    own(H, &begin, &end);
    pack_columns(3 * H, H, begin, end, U, packed);
    for (size_t t = T; t-- > 0;) {
      for (size_t b = 0; b < B; b++)
        for (size_t j = begin; j < end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec r = load(gates + at3), z = load(gates + at3 + H), n = load(gates + at3 + 2 * H);
          const vec d = load(dh + b * H + j) + load(dy + at);
          const vec dn = d * (1.f - z) * (1.f - n * n);
          store(dx + at3, dn * load(inner + at) * r * (1.f - r));
          store(dx + at3 + H, d * (load(hs + at) - n) * z * (1.f - z));
          store(dx + at3 + 2 * H, dn);
          store(dinner + at, dn * r);
          store(dh + b * H + j, d * z);
        }
#pragma omp barrier
      const float *d = dx + t * B * 3 * H, *du = dinner + t * B * H;
      for (size_t j = begin; j < end; j += UNITS) {
#define TILE(n) add_back(n, H, j, packed + j * 3 * H, 2 * H, d + b * 3 * H, 3 * H, du + b * H, dh + b * H)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
    }
  }
}

/* ---- gru-before: u, r = σ(x + U c₋); c̃ = tanh(x_c + U_c (r⊙c₋)); c = u⊙c̃ + (1−u)⊙c₋ ---- */

INLINE void before_gates(const int rows, size_t H, size_t j, const float *packed, const float *h,
                         const float *x, float *gates, float *reset) {
  sums sum;
  zero(rows, 2, sum);
  multiply(rows, 2, H, h, H, packed, sum);
  for (int i = 0; i < rows; i++) {
    const size_t at = (size_t)i * H + j, at3 = (size_t)i * 3 * H + j;
    const vec r = sigmoid(load(x + at3 + H) + sum[i][1]);
    store(gates + at3, sigmoid(load(x + at3) + sum[i][0]));
    store(gates + at3 + H, r);
    store(reset + at, r * load(h + at));
  }
}

INLINE void before_state(const int rows, size_t H, size_t j, const float *packed, const float *reset,
                         const float *x, const float *h, float *gates, float *out) {
  sums sum;
  zero(rows, 2, sum);
  multiply(rows, 2, H, reset, H, packed, sum);
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < 2; v++) {
      const size_t at = (size_t)i * H + j + (size_t)v * LANES;
      const size_t at3 = (size_t)i * 3 * H + j + (size_t)v * LANES;
      const vec u = load(gates + at3), c = tanhv(load(x + at3 + 2 * H) + sum[i][v]);
      store(gates + at3 + 2 * H, c);
      store(out + at, load(h + at) + u * (c - load(h + at)));
    }
}

/* U_c is the last third of U. gates [T,B,3H] (u, r, c̃) and reset [T,B,H] (r⊙c₋) are always kept. */
void before_forward(size_t T, size_t B, size_t H, const float *x, const float *U, float *hs,
                    float *gates, float *reset, float *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    size_t begin, end;
    own(H, &begin, &end);
    float *packed_c = packed + 2 * H * H;
    pack_rows(2, H, begin, end, U, packed);
    /* [H/UNITS][H][2][LANES]: two LANES of one gate side by side */
    for (size_t j = begin; j < end; j++) {
      const float *row = U + (2 * H + j) * H;
      float *out = packed_c + j / UNITS * UNITS * H + j % UNITS;
      for (size_t k = 0; k < H; k++) out[k * UNITS] = row[k];
    }
    for (size_t t = 0; t < T; t++) {
      const float *h = hs + t * B * H, *xt = x + t * B * 3 * H;
      float *out = hs + (t + 1) * B * H, *g = gates + t * B * 3 * H, *rh = reset + t * B * H;
      for (size_t j = begin; j < end; j += LANES) {
#define TILE(n) before_gates(n, H, j, packed + j * 2 * H, h + b * H, xt + b * 3 * H, g + b * 3 * H, rh + b * H)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
#pragma omp barrier
      for (size_t j = begin; j < end; j += UNITS) {
#define TILE(n) \
  before_state(n, H, j, packed_c + j * H, rh + b * H, xt + b * 3 * H, h + b * H, g + b * 3 * H, out + b * H)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
#pragma omp barrier
    }
  }
}

/* As gru_backward; dreset [B,H] is scratch. dx [T,B,3H] becomes the gradient of x. */
void before_backward(size_t T, size_t B, size_t H, const float *dy, const float *U, const float *hs,
                     const float *gates, float *dh, float *dx, float *dreset, float *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    size_t begin, end;
    own(H, &begin, &end);
    float *packed_c = packed + 2 * H * H;
    pack_columns(2 * H, H, begin, end, U, packed);
    pack_columns(H, H, begin, end, U + 2 * H * H, packed_c);
    for (size_t t = T; t-- > 0;) {
      float *d3 = dx + t * B * 3 * H;
      for (size_t b = 0; b < B; b++)
        for (size_t j = begin; j < end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec u = load(gates + at3), c = load(gates + at3 + 2 * H);
          const vec d = load(dh + b * H + j) + load(dy + at);
          store(dx + at3, d * (c - load(hs + at)) * u * (1.f - u));
          store(dx + at3 + 2 * H, d * u * (1.f - c * c));
          store(dh + b * H + j, d * (1.f - u));
          store(dreset + b * H + j, fill(0.f));
        }
#pragma omp barrier
      for (size_t j = begin; j < end; j += UNITS) {
#define TILE(n) add_back(n, H, j, packed_c + j * H, H, d3 + 2 * H + b * 3 * H, 3 * H, NULL, dreset + b * H)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
      for (size_t b = 0; b < B; b++)
        for (size_t j = begin; j < end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec r = load(gates + at3 + H), d = load(dreset + b * H + j);
          store(dx + at3 + H, d * load(hs + at) * r * (1.f - r));
          store(dh + b * H + j, load(dh + b * H + j) + d * r);
        }
#pragma omp barrier
      for (size_t j = begin; j < end; j += UNITS) {
#define TILE(n) add_back(n, H, j, packed + j * 2 * H, 2 * H, d3 + b * 3 * H, 3 * H, NULL, dh + b * H)
        FOR_TILES(B, b, TILE)
#undef TILE
      }
    }
  }
}

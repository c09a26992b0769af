/* What the recurrences share: who computes what, packed weights, and products with them.
 *
 * Shapes, row-major: T time, B batch, H hidden, a multiple of UNITS (the caller pads); U [gates*H, H] the
 * recurrent weights, which are packed once a sequence, so that the inner loop reads them in order.
 */
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

/* Rows of the batch in one product: ROWS x 3 sums fill the vector registers. */
#if defined(__AVX512F__)
#define ROWS 8
#else
#define ROWS 4
#endif
#define UNITS (2 * LANES)
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
  if (3 * H * H * sizeof(float) <= CACHE && 2 * B >= ROWS * all)
    return (share){B * id / all, B * (id + 1) / all, 0, H, from, to, 0};
  return (share){0, B, from, to, from, to, all > 1};
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
 * U [gates*H, H] -> packed [H/units][H][gates][units]. */
void pack_rows(size_t gates, size_t units, size_t H, size_t begin, size_t end, const float *U, float *packed);

/* Columns of U as they are: for each UNITS columns, every k. U [K, H] -> packed [H/UNITS][K][UNITS]. */
void pack_columns(size_t K, size_t H, size_t begin, size_t end, const float *U, float *packed);

/* sum [rows][wide] += a [rows, K] times packed [K][wide][LANES]; `a` has `stride` floats a row. There is
 * one function for each shape: multiply_<wide>[rows - 1]. */
typedef void multiply(size_t K, const float *a, size_t stride, const float *packed, vec *sum);
extern multiply *const multiply_2[ROWS], *const multiply_3[ROWS];

/* dh [B,H], this thread's part, += a [B,K] times U's columns, and += c [B,H] times the rest of its rows. */
void add_back(const share *mine, size_t H, const float *packed, size_t rows_of_U, size_t K, const float *a,
              size_t stride, const float *c, float *dh);

/* Recurrence kernels of `gru` and `gru-before`: only the part that is sequential in time.
 *
 * The caller computes the rest as one large matrix product each: the input projection of all steps
 * beforehand, the gradients of weights and inputs afterwards. Threads split either the hidden units, for the
 * whole sequence, with one or two barriers per step; or, if the weights fit a core's cache, the batch rows,
 * without barriers. The recurrent weights are packed once per sequence so that the inner loop reads them
 * sequentially; gates are applied while the sums are in L1 cache. No memory is allocated.
 *
 * Plain C with the vector extensions of GCC and Clang: no BLAS, no PyTorch headers, and no -ffast-math, which
 * would change the floating-point mode of the process. Compiled twice: with float products here, with
 * bfloat16 pairs in bf16.c. Factors of products are stored both as numbers and as "factors" (products.h); in
 * float32 these are the same array.
 *
 * Shapes, row-major: T time, B batch, H hidden, a multiple of UNITS (the caller pads). x [T,B,3H]: W x + b of
 * all gates; U [3H,H]: recurrent weights; hs [T+1,B,H]: states, hs[0] an input; `packed`: scratch of 3*H*H
 * numbers. Gate names as in cells.py.
 *
 * Sequences may follow each other in a row: ends [T,B] (or null: none end) marks the steps after which the next
 * step starts from a zero state. hs then holds the state from which each step starts, and ys [T,B,H] (null
 * without `ends`) the outputs.
 */
#include "products.h"

#ifndef BF16
size_t recurrence_units(void) { return UNITS; }
#endif

/* ---- gru: r, z = σ(x + U h₋); u = U_n h₋ + b_hn; n = tanh(x_n + r⊙u); h = (1−z)⊙n + z⊙h₋ ---- */

/* bias [H]: b_hn. gates [T,B,3H] (r, z, n) and inner [T,B,H] (u): saved for the backward pass, or null. */
void NAME(gru_forward)(size_t T, size_t B, size_t H, const float *x, const float *U, const float *bias,
                       float *hs, factor *h_factors, const uint8_t *ends, float *ys, float *gates,
                       float *inner, factor *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    pack_rows(3, LANES, H, mine.pack, mine.pack_end, U, packed);
    round_part(&mine, H, hs, h_factors);
#pragma omp barrier
    for (size_t t = 0; t < T; t++) {
      const float *ht = hs + t * B * H, *xt = x + t * B * 3 * H;
      for (size_t j = mine.unit; j < mine.unit_end; j += LANES)
        for (size_t b = mine.row, rows; b < mine.row_end; b += rows) {
          vec sum[ROWS * 3] = {0}, *s = sum;
          rows = tile(mine.row_end - b);
          multiply_3[rows - 1](H / PAIR, h_factors + (t * B + b) * H / PAIR, H / PAIR,
                               packed + j * 3 * H / PAIR, sum);
          for (size_t i = b; i < b + rows; i++, s += 3) {
            const float *xi = xt + i * 3 * H + j;
            const vec h = load(ht + i * H + j);
            const vec r = sigmoid(load(xi) + s[0]), z = sigmoid(load(xi + H) + s[1]);
            const vec u = s[2] + load(bias + j), n = tanhv(load(xi + 2 * H) + r * u);
            const vec y = n + z * (h - n);
            store_both(hs, h_factors, ((t + 1) * B + i) * H + j, carried(y, ends, t * B + i));
            if (ys) store(ys + (t * B + i) * H + j, y);
            if (gates) {
              float *g = gates + (t * B + i) * 3 * H + j;
              store(g, r), store(g + H, z), store(g + 2 * H, n);
              store(inner + (t * B + i) * H + j, u);
            }
          }
        }
      MEET(mine);
    }
  }
}

/* dy [T,B,H]: gradient of the outputs. dh [B,H]: in, gradient of the final state; out, of the initial one.
 * dx [T,B,3H] and dinner [T,B,H]: out, gradients of x and u. */
void NAME(gru_backward)(size_t T, size_t B, size_t H, const float *dy, const float *U, const float *hs,
                        const uint8_t *ends, const float *gates, const float *inner, float *dh, float *dx,
                        factor *dx_factors, float *dinner, factor *dinner_factors, factor *packed,
                        int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    pack_columns(3 * H, H, mine.pack, mine.pack_end, U, packed);
#pragma omp barrier
    for (size_t t = T; t-- > 0;) {
      for (size_t b = mine.row; b < mine.row_end; b++)
        for (size_t j = mine.unit; j < mine.unit_end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec r = load(gates + at3), z = load(gates + at3 + H), n = load(gates + at3 + 2 * H);
          const vec d = carried(load(dh + b * H + j), ends, t * B + b) + load(dy + at);
          const vec dn = d * (1.f - z) * (1.f - n * n);
          store_both(dx, dx_factors, at3, dn * load(inner + at) * r * (1.f - r));
          store_both(dx, dx_factors, at3 + H, d * (load(hs + at) - n) * z * (1.f - z));
          store(dx + at3 + 2 * H, dn);
          store_both(dinner, dinner_factors, at, dn * r);
          store(dh + b * H + j, d * z);
        }
      MEET(mine);
      add_back(&mine, H, packed, 3 * H, 2 * H, dx_factors + t * B * 3 * H / PAIR, 3 * H,
               dinner_factors + t * B * H / PAIR, dh);
    }
  }
}

/* ---- gru-before: u, r = σ(x + U c₋); c̃ = tanh(x_c + U_c (r⊙c₋)); c = u⊙c̃ + (1−u)⊙c₋ ---- */

/* U_c is the last third of U. gates [T,B,3H] (u, r, c̃) and reset [T,B,H] (r⊙c₋) are always saved. */
void NAME(before_forward)(size_t T, size_t B, size_t H, const float *x, const float *U, float *hs,
                          factor *h_factors, const uint8_t *ends, float *ys, float *gates, float *reset,
                          factor *reset_factors, factor *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    factor *packed_c = packed + 2 * H * H / PAIR;
    pack_rows(2, LANES, H, mine.pack, mine.pack_end, U, packed);
    pack_rows(1, UNITS, H, mine.pack, mine.pack_end, U + 2 * H * H, packed_c);
    round_part(&mine, H, hs, h_factors);
#pragma omp barrier
    for (size_t t = 0; t < T; t++) {
      const float *ht = hs + t * B * H, *xt = x + t * B * 3 * H;
      float *gt = gates + t * B * 3 * H;
      for (size_t j = mine.unit; j < mine.unit_end; j += LANES)
        for (size_t b = mine.row, rows; b < mine.row_end; b += rows) {
          vec sum[ROWS * 2] = {0}, *s = sum;
          rows = tile(mine.row_end - b);
          multiply_2[rows - 1](H / PAIR, h_factors + (t * B + b) * H / PAIR, H / PAIR,
                               packed + j * 2 * H / PAIR, sum);
          for (size_t i = b; i < b + rows; i++, s += 2) {
            const float *xi = xt + i * 3 * H + j;
            float *g = gt + i * 3 * H + j;
            const vec u = sigmoid(load(xi) + s[0]), r = sigmoid(load(xi + H) + s[1]);
            store(g, u), store(g + H, r);
            store_both(reset, reset_factors, (t * B + i) * H + j, r * load(ht + i * H + j));
          }
        }
      MEET(mine);
      for (size_t j = mine.unit; j < mine.unit_end; j += UNITS)
        for (size_t b = mine.row, rows; b < mine.row_end; b += rows) {
          vec sum[ROWS * 2] = {0}, *s = sum;
          rows = tile(mine.row_end - b);
          multiply_2[rows - 1](H / PAIR, reset_factors + (t * B + b) * H / PAIR, H / PAIR,
                               packed_c + j * H / PAIR, sum);
          for (size_t i = b; i < b + rows; i++, s += 2)
            for (size_t v = 0; v < 2; v++) {
              const size_t at = i * H + j + v * LANES, at3 = i * 3 * H + j + v * LANES;
              const vec u = load(gt + at3), c = tanhv(load(xt + at3 + 2 * H) + s[v]);
              store(gt + at3 + 2 * H, c);
              const vec y = load(ht + at) + u * (c - load(ht + at));
              store_both(hs, h_factors, (t + 1) * B * H + at, carried(y, ends, t * B + i));
              if (ys) store(ys + t * B * H + at, y);
            }
        }
      MEET(mine);
    }
  }
}

/* Arguments as in gru_backward; dreset [B,H] is scratch. dx [T,B,3H]: out, gradient of x. */
void NAME(before_backward)(size_t T, size_t B, size_t H, const float *dy, const float *U, const float *hs,
                           const uint8_t *ends, const float *gates, float *dh, float *dx,
                           factor *dx_factors, float *dreset, factor *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    factor *packed_c = packed + 2 * H * H / PAIR;
    pack_columns(2 * H, H, mine.pack, mine.pack_end, U, packed);
    pack_columns(H, H, mine.pack, mine.pack_end, U + 2 * H * H, packed_c);
#pragma omp barrier
    for (size_t t = T; t-- > 0;) {
      const factor *dx_t = dx_factors + t * B * 3 * H / PAIR;
      for (size_t b = mine.row; b < mine.row_end; b++)
        for (size_t j = mine.unit; j < mine.unit_end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec u = load(gates + at3), c = load(gates + at3 + 2 * H);
          const vec d = carried(load(dh + b * H + j), ends, t * B + b) + load(dy + at);
          store_both(dx, dx_factors, at3, d * (c - load(hs + at)) * u * (1.f - u));
          store_both(dx, dx_factors, at3 + 2 * H, d * u * (1.f - c * c));
          store(dh + b * H + j, d * (1.f - u));
          store(dreset + b * H + j, fill(0.f));
        }
      MEET(mine);
      add_back(&mine, H, packed_c, H, H, dx_t + 2 * H / PAIR, 3 * H, NULL, dreset);
      for (size_t b = mine.row; b < mine.row_end; b++)
        for (size_t j = mine.unit; j < mine.unit_end; j += LANES) {
          const size_t at = (t * B + b) * H + j, at3 = (t * B + b) * 3 * H + j;
          const vec r = load(gates + at3 + H), d = load(dreset + b * H + j);
          store_both(dx, dx_factors, at3 + H, d * load(hs + at) * r * (1.f - r));
          store(dh + b * H + j, load(dh + b * H + j) + d * r);
        }
      MEET(mine);
      add_back(&mine, H, packed, 2 * H, 2 * H, dx_t, 3 * H, NULL, dh);
    }
  }
}

/* Recurrence kernels of `lstm`, `lstm-thread` and `rnn`, with the structure of gru.c.
 *
 * Shapes as in gru.c, except x: [T,B,4H] and [T,B,H]. Gate names as in cells.py.
 */
#include "products.h"

/* ---- lstm: i, f, o = σ(x + U h₋); g = tanh(x + U h₋); c = i⊙g + f⊙c₋; h = o⊙tanh(c) ----
 * ---- lstm-thread: no tanh on the output ("plain"), and a different gate order ---- */

typedef struct { size_t g, i, f, o; } order;
static order gates_of(int plain) { return plain ? (order){0, 1, 2, 3} : (order){2, 0, 1, 3}; }

/* hs, cs [T+1,B,H]: the states; the first of each is an input. gates [T,B,4H]: saved for the backward pass. */
void NAME(lstm_forward)(size_t plain, size_t T, size_t B, size_t H, const float *x, const float *U, float *hs,
                        factor *h_factors, const uint8_t *ends, float *ys, float *cs, float *gates,
                        factor *packed, int threads) {
  const order at = gates_of((int)plain);
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    factor *packed_2 = packed + 2 * H * H / PAIR; /* weights of the last two gates */
    pack_rows(2, LANES, H, mine.pack, mine.pack_end, U, packed);
    pack_rows(2, LANES, H, mine.pack, mine.pack_end, U + 2 * H * H, packed_2);
    round_part(&mine, H, hs, h_factors);
#pragma omp barrier
    for (size_t t = 0; t < T; t++) {
      for (size_t j = mine.unit; j < mine.unit_end; j += LANES)
        for (size_t b = mine.row, rows; b < mine.row_end; b += rows) {
          vec sum[2][ROWS * 2] = {{{0}}};
          rows = tile(mine.row_end - b);
          const factor *h = h_factors + (t * B + b) * H / PAIR;
          multiply_2[rows - 1](H / PAIR, h, H / PAIR, packed + j * 2 * H / PAIR, sum[0]);
          multiply_2[rows - 1](H / PAIR, h, H / PAIR, packed_2 + j * 2 * H / PAIR, sum[1]);
          for (size_t r = 0; r < rows; r++) {
            const size_t now = (t * B + b + r) * H + j, next = now + B * H, all = now + 3 * (now - j);
            vec a[4];
            for (size_t v = 0; v < 4; v++) a[v] = load(x + all + v * H) + sum[v / 2][2 * r + v % 2];
            const vec g = tanhv(a[at.g]), i = sigmoid(a[at.i]), f = sigmoid(a[at.f]), o = sigmoid(a[at.o]);
            const vec c = i * g + f * load(cs + now), y = o * (plain ? c : tanhv(c));
            store(gates + all + at.g * H, g), store(gates + all + at.i * H, i);
            store(gates + all + at.f * H, f), store(gates + all + at.o * H, o);
            store(cs + next, carried(c, ends, now / H));
            store_both(hs, h_factors, next, carried(y, ends, now / H));
            if (ys) store(ys + now, y);
          }
        }
      MEET(mine);
    }
  }
}

/* dy [T,B,H]: gradient of the outputs. dh, dc [B,H]: in, gradients of the final states; out, of the initial
 * ones. dx [T,B,4H]: out, gradient of x. */
void NAME(lstm_backward)(size_t plain, size_t T, size_t B, size_t H, const float *dy, const float *U,
                         const float *cs, const uint8_t *ends, const float *gates, float *dh, float *dc,
                         float *dx, factor *dx_factors, factor *packed, int threads) {
  const order at = gates_of((int)plain);
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    pack_columns(4 * H, H, mine.pack, mine.pack_end, U, packed);
#pragma omp barrier
    for (size_t t = T; t-- > 0;) {
      for (size_t b = mine.row; b < mine.row_end; b++)
        for (size_t j = mine.unit; j < mine.unit_end; j += LANES) {
          const size_t now = (t * B + b) * H + j, all = (t * B + b) * 4 * H + j;
          const vec g = load(gates + all + at.g * H), i = load(gates + all + at.i * H);
          const vec f = load(gates + all + at.f * H), o = load(gates + all + at.o * H);
          const int end = ends && ends[t * B + b]; /* the next step starts from zero, not from c */
          const vec c = end ? i * g + f * load(cs + now) : load(cs + now + B * H), out = plain ? c : tanhv(c);
          const vec d = carried(load(dh + b * H + j), ends, t * B + b) + load(dy + now);
          const vec e = carried(load(dc + b * H + j), ends, t * B + b) + d * o * (plain ? fill(1.f) : 1.f - out * out);
          store_both(dx, dx_factors, all + at.g * H, e * i * (1.f - g * g));
          store_both(dx, dx_factors, all + at.i * H, e * g * i * (1.f - i));
          store_both(dx, dx_factors, all + at.f * H, e * load(cs + now) * f * (1.f - f));
          store_both(dx, dx_factors, all + at.o * H, d * out * o * (1.f - o));
          store(dc + b * H + j, e * f);
          store(dh + b * H + j, fill(0.f));
        }
      MEET(mine);
      add_back(&mine, H, packed, 4 * H, 4 * H, dx_factors + t * B * 4 * H / PAIR, 4 * H, NULL, dh);
    }
  }
}

/* ---- rnn: h = tanh(x + U h₋) ---- */

void NAME(rnn_forward)(size_t T, size_t B, size_t H, const float *x, const float *U, float *hs,
                       factor *h_factors, const uint8_t *ends, float *ys, factor *packed, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    pack_rows(1, UNITS, H, mine.pack, mine.pack_end, U, packed);
    round_part(&mine, H, hs, h_factors);
#pragma omp barrier
    for (size_t t = 0; t < T; t++) {
      for (size_t j = mine.unit; j < mine.unit_end; j += UNITS)
        for (size_t b = mine.row, rows; b < mine.row_end; b += rows) {
          vec sum[ROWS * 2];
          rows = tile(mine.row_end - b);
          const size_t at = (t * B + b) * H + j;
          for (size_t i = 0; i < rows; i++) memcpy(sum + 2 * i, x + at + i * H, 2 * sizeof(vec));
          multiply_2[rows - 1](H / PAIR, h_factors + (t * B + b) * H / PAIR, H / PAIR,
                               packed + j * H / PAIR, sum);
          for (size_t i = 0; i < rows; i++)
            for (size_t v = 0; v < 2; v++) {
              const size_t now = at + i * H + v * LANES;
              const vec y = tanhv(sum[2 * i + v]);
              store_both(hs, h_factors, now + B * H, carried(y, ends, t * B + b + i));
              if (ys) store(ys + now, y);
            }
        }
      MEET(mine);
    }
  }
}

/* Arguments as in lstm_backward; ys [T,B,H] are the outputs, dx is [T,B,H]. */
void NAME(rnn_backward)(size_t T, size_t B, size_t H, const float *dy, const float *U, const float *ys,
                        const uint8_t *ends, float *dh, float *dx, factor *dx_factors, factor *packed,
                        int threads) {
#pragma omp parallel num_threads(threads)
  {
    const share mine = my_share(B, H);
    pack_columns(H, H, mine.pack, mine.pack_end, U, packed);
#pragma omp barrier
    for (size_t t = T; t-- > 0;) {
      for (size_t b = mine.row; b < mine.row_end; b++)
        for (size_t j = mine.unit; j < mine.unit_end; j += LANES) {
          const size_t at = (t * B + b) * H + j;
          const vec y = load(ys + at), d = carried(load(dh + b * H + j), ends, t * B + b) + load(dy + at);
          store_both(dx, dx_factors, at, d * (1.f - y * y));
          store(dh + b * H + j, fill(0.f));
        }
      MEET(mine);
      add_back(&mine, H, packed, H, H, dx_factors + t * B * H / PAIR, H, NULL, dh);
    }
  }
}

/* Step-by-step inference of a `gru` or `gru-before` language model in float32: N parallel streams with states
 * updated in place, and sampling from the model's distribution.
 *
 * If the weights fit a core's cache, threads split the streams, without barriers; otherwise they split the
 * rows of every matrix, with a barrier after each product. Every sum runs over k in order, in one
 * accumulator, for any number of streams: a stream's results do not depend on the others. No memory is
 * allocated.
 *
 * Shapes: N streams, T steps, E embedding, H hidden, V vocabulary, K inputs of a product; P, Q, R are H, V
 * and the input size of the softmax, padded to UNITS. A matrix is packed in groups of rows, [groups][K][rows
 * of a group]: UNITS rows, or LANES rows of each gate side by side; outputs of its products have the same
 * order. Padding is zero, except for biases of the padded vocabulary, which are -inf.
 */
#include "choose.h"
#include "products.h"

typedef struct {
  size_t inputs;            /* K of W; 0: the input products are in the table */
  const float *W, *W_bias;  /* [3P,K], [3P] */
  const float *U, *U_bias;  /* gru: [3P,H], [3P]; gru-before: the first two gates, [2P,H], [2P] */
  const float *C, *C_bias;  /* gru-before: the candidate, [P,H], [P] */
  float *h[2];              /* states [N,P], double-buffered: h[turn] is read, h[!turn] written */
} layer;

typedef struct {
  size_t layers, before, E, H, V, P, Q, R, outputs; /* before: whether the cells are gru-before */
  size_t bytes, turn;                               /* size of all weights; number of steps modulo 2 */
  const layer *layer;
  const float *table;                  /* the first layer's W x + b [V,3P], or embeddings [V,E] */
  const float *project, *project_bias; /* projection from state to softmax input, [R,H], [R]; or null */
  const float *head, *head_bias;       /* [Q,outputs], [Q] */
  float *inputs, *x, *u, *reset, *candidate, *projected, *logits, *weights; /* scratch, N rows each */
  float *sum; /* residual stream [N,P], or null without residual connections */
  int32_t *keys;
} model;

/* A thread's share of the work: its streams, and part `id` of `threads` of whatever else is split. */
typedef struct { size_t row, row_end, id, threads; } work;
typedef struct { size_t begin, end; } range;

static work my_work(size_t N, size_t bytes) {
  size_t id = 0, all = 1;
#ifdef _OPENMP
  id = (size_t)omp_get_thread_num(), all = (size_t)omp_get_num_threads();
#endif
  if (bytes <= CACHE && 2 * N >= ROWS * all) return (work){N * id / all, N * (id + 1) / all, 0, 1};
  return (work){0, N, id, all};
}
static range part_of(const work *mine, size_t all) {
  return (range){all * mine->id / mine->threads, all * (mine->id + 1) / mine->threads};
}
#define MEET_OTHERS(mine)      \
  do {                         \
    if ((mine)->threads > 1) { \
      _Pragma("omp barrier")   \
    }                          \
  } while (0)

/* The given groups of out [N,.] = bias + a [N,K] times packed groups of `wide` vectors; rows of a are `stride`
 * apart, those of out `across`. */
static void product(const work *mine, range groups, size_t wide, size_t K, const float *a, size_t stride,
                    const float *packed, const float *bias, float *out, size_t across) {
  multiply *const *const multiply_wide = wide == 3 ? multiply_3 : multiply_2;
  const size_t n = wide * LANES;
  for (size_t g = groups.begin; g < groups.end; g++)
    for (size_t i = mine->row, rows; i < mine->row_end; i += rows) {
      vec sum[ROWS * 3];
      rows = tile(mine->row_end - i);
      for (size_t r = 0; r < rows; r++) memcpy(sum + r * wide, bias + g * n, wide * sizeof(vec));
      multiply_wide[rows - 1](K, a + i * stride, stride, packed + g * n * K, sum);
      for (size_t r = 0; r < rows; r++) memcpy(out + (i + r) * across + g * n, sum + r * wide, wide * sizeof(vec));
    }
}

/* A layer's input W x + b of stream i for LANES units from block j on: from the table, or from the product. */
INLINE const float *given(const model *m, const layer *l, const int64_t *tokens, size_t i, size_t j) {
  return (l->inputs ? m->x + i * 3 * m->P : m->table + (size_t)tokens[i] * 3 * m->P) + j * 3 * LANES;
}

/* Compute a layer's next state, h[!turn], from its inputs: rows of `below`, `stride` apart. */
static void advance(const work *mine, const model *m, const layer *l, size_t turn, const int64_t *tokens,
                    const float *below, size_t stride) {
  const size_t P = m->P, H = m->H;
  const range pairs = part_of(mine, P / UNITS);
  const range blocks = m->before ? (range){2 * pairs.begin, 2 * pairs.end} : part_of(mine, P / LANES);
  const float *h = l->h[turn];
  float *out = l->h[!turn], *u = m->u, *c = m->candidate;
#define EACH                                            \
  for (size_t i = mine->row; i < mine->row_end; i++)    \
    for (size_t j = blocks.begin, at = i * P + j * LANES; j < blocks.end; j++, at += LANES)
  if (l->inputs) product(mine, blocks, 3, l->inputs, below, stride, l->W, l->W_bias, m->x, 3 * P);
  if (!m->before) { /* r, z = σ(x + U h₋); n = tanh(x_n + r⊙u_n); h = (1−z)⊙n + z⊙h₋ */
    product(mine, blocks, 3, H, h, P, l->U, l->U_bias, u, 3 * P);
    EACH {
      const float *x = given(m, l, tokens, i, j), *s = u + 3 * at;
      const vec r = sigmoid(load(x) + load(s)), z = sigmoid(load(x + LANES) + load(s + LANES));
      const vec n = tanhv(load(x + 2 * LANES) + r * load(s + 2 * LANES));
      store(out + at, n + z * (load(h + at) - n));
    }
    return;
  }
  /* u, r = σ(x + U h₋); c = tanh(x_c + C (r⊙h₋)); h = u⊙c + (1−u)⊙h₋ */
  product(mine, blocks, 2, H, h, P, l->U, l->U_bias, u, 2 * P);
  EACH {
    const vec r = sigmoid(load(given(m, l, tokens, i, j) + LANES) + load(u + 2 * at + LANES));
    store(m->reset + at, r * load(h + at));
  }
  MEET_OTHERS(mine);
  product(mine, pairs, 2, H, m->reset, P, l->C, l->C_bias, c, P);
  EACH {
    const float *x = given(m, l, tokens, i, j);
    const vec update = sigmoid(load(x) + load(u + 2 * at));
    const vec new = tanhv(load(x + 2 * LANES) + load(c + at));
    store(out + at, load(h + at) + update * (new - load(h + at)));
  }
}

/* Run T steps of N streams, starting by feeding the tokens `last` [N]. With `uniform` [N,T], in [0,1), each step
 * samples every stream's next token as configured by `how` and marks it in `seen` [N,V] (or null); outputs are
 * `tokens` and `log_probs` [N,T], the latter of the unmodified distribution. With `uniform` null, T is 1, and
 * the logits [N,Q] become log-probabilities. */
void step_run(model *m, const choice *how, size_t T, size_t N, int64_t *last, const double *uniform,
              uint8_t *seen, int64_t *tokens, float *log_probs, int threads) {
  const size_t Q = m->Q, first = m->turn;
#pragma omp parallel num_threads(threads)
  {
    const work mine = my_work(N, m->bytes);
    /* Rows of this thread in loops over rows only: all its streams, or its part of the shared ones. */
    const range part = part_of(&mine, mine.row_end - mine.row);
    const range own = {mine.row + part.begin, mine.row + part.end};
    for (size_t t = 0; t < T; t++) {
      const size_t turn = (first + t) % 2;
      const float *below = m->inputs;
      size_t stride = m->E;
      if (m->layer->inputs) {
        for (size_t i = own.begin; i < own.end; i++)
          memcpy(m->inputs + i * m->E, m->table + (size_t)last[i] * m->E, m->E * sizeof(float));
        MEET_OTHERS(&mine);
      }
      for (size_t l = 0; l < m->layers; l++) {
        advance(&mine, m, m->layer + l, turn, last, below, stride);
        MEET_OTHERS(&mine);
        const float *h = m->layer[l].h[!turn];
        if (m->sum && l) {
          for (size_t at = own.begin * m->P; at < own.end * m->P; at++) m->sum[at] = below[at] + h[at];
          MEET_OTHERS(&mine);
          h = m->sum;
        }
        below = h, stride = m->P;
      }
      if (m->project) {
        product(&mine, part_of(&mine, m->R / UNITS), 2, m->H, below, stride, m->project, m->project_bias,
                m->projected, m->R);
        MEET_OTHERS(&mine);
        below = m->projected, stride = m->R;
      }
      product(&mine, part_of(&mine, Q / UNITS), 2, m->outputs, below, stride, m->head, m->head_bias,
              m->logits, Q);
      MEET_OTHERS(&mine);
      for (size_t i = own.begin; i < own.end; i++) {
        float *scores = m->logits + i * Q, *weights = m->weights + i * Q;
        const float minus = normaliser(scores, Q, weights);
        if (!uniform) {
          for (size_t q = 0; q < Q; q++) scores[q] -= minus;
          continue;
        }
        uint8_t *its = seen ? seen + i * m->V : NULL;
        const size_t token =
            choose_token(how, Q, m->V, scores, minus, its, uniform[i * T + t], weights, m->keys + i * Q);
        if (its) its[token] = 1;
        last[i] = tokens[i * T + t] = (int64_t)token;
        log_probs[i * T + t] = scores[token] - minus;
      }
      MEET_OTHERS(&mine);
    }
  }
  m->turn = (first + T) % 2;
}

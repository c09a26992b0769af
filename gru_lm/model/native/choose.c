/* Sampling a token from scores: penalty, temperature, filters and draw, as defined in generation/choice.py.
 *
 * A filter zeroes the weights of the tokens it drops; the others are not renormalized. Nothing is sorted:
 * a filter's threshold is found by bisection over 32-bit keys, in 32 passes.
 *
 * Shapes: V vocabulary; Q is V padded to LANES, with scores of -inf and weights of 0.
 */
#include "choose.h"

#include "vectors.h"

INLINE ivec load_keys(const int32_t *p) { ivec v; memcpy(&v, p, sizeof v); return v; }

/* Sum of a vector's elements, by pairwise halving. */
INLINE float total(vec sum) {
  float part[LANES];
  memcpy(part, &sum, sizeof sum);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

/* Sum of n floats; n is a multiple of LANES. */
static float sum_of(const float *x, size_t n) {
  vec sum = load(x);
  for (size_t i = LANES; i < n; i += LANES) sum += load(x + i);
  return total(sum);
}

static float largest(const float *x, size_t Q) {
  vec most = load(x);
  for (size_t q = LANES; q < Q; q += LANES) most = choose(load(x + q) > most, load(x + q), most);
  float found = most[0];
  for (int i = 1; i < LANES; i++) found = most[i] > found ? most[i] : found;
  return found;
}

/* ln x for positive x, by Halley's method on e^y = x. Propagates NaN. Avoids linking libm. */
static vec logarithm(vec x) {
  vec y = __builtin_convertvector((ivec)x - 0x3F800000, vec) * 8.2629582e-8f; /* ln 2 / 2^23; error up to 0.06 */
  for (int i = 0; i < 2; i++) {
    const vec e = expv(y);
    y += 2.f * (x - e) / (x + e);
  }
  return y;
}

/* out = e^((x - most) / temperature), with exponents of -87 and below giving 0; returns the sum. */
static float exponentials(const float *x, size_t Q, float most, float per_temperature, float *out) {
  for (size_t q = 0; q < Q; q += LANES) {
    const vec power = (load(x + q) - most) * per_temperature;
    store(out + q, choose(power <= -87.f, fill(0.f), expv(power)));
  }
  return sum_of(out, Q);
}

float normaliser(const float *scores, size_t Q, float *weights) {
  const float most = largest(scores, Q);
  return most + logarithm(fill(exponentials(scores, Q, most, 1.f, weights)))[0];
}

/* Sum of the amounts (null: ones) whose keys are at most `key`. */
static float amount_to(int32_t key, const int32_t *keys, const float *amounts, size_t Q) {
  vec sum = {0};
  for (size_t q = 0; q < Q; q += LANES) {
    const vec amount = amounts ? load(amounts + q) : fill(1.f);
    sum += choose(load_keys(keys + q) <= key, amount, fill(0.f));
  }
  return total(sum);
}

/* The smallest key up to which the amounts sum to at least `wanted`. */
static int32_t border(const int32_t *keys, const float *amounts, size_t Q, float wanted) {
  int32_t low = INT32_MIN, high = INT32_MAX;
  while (low < high) {
    const int32_t middle = (int32_t)(((int64_t)low + high) >> 1);
    if (amount_to(middle, keys, amounts, Q) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Keep only tokens whose keys are at most `last`. */
static void keep_to(int32_t last, const int32_t *keys, size_t Q, float *weights) {
  for (size_t q = 0; q < Q; q++) weights[q] = keys[q] <= last ? weights[q] : 0;
}

/* Keep the fewest tokens, in order of key and then of token number, whose weights reach a share `mass` of the
 * total. */
static void keep_mass(float mass, const int32_t *keys, size_t Q, float *weights) {
  const float wanted = mass * sum_of(weights, Q);
  const int32_t last = border(keys, weights, Q, wanted);
  float before = last > INT32_MIN ? amount_to(last - 1, keys, weights, Q) : 0;
  keep_to(last, keys, Q, weights);
  for (size_t q = 0; q < Q; q++)
    if (keys[q] == last) {
      const float weight = weights[q];
      if (before >= wanted) weights[q] = 0;
      before += weight;
    }
}

/* Keys in order of decreasing weight: non-negative floats are ordered like their bits. */
static void by_weight(const float *weights, size_t Q, int32_t *keys) {
  for (size_t q = 0; q < Q; q += LANES) {
    const ivec key = -(ivec)load(weights + q);
    memcpy(keys + q, &key, sizeof key);
  }
}

/* Keys in order of increasing distance between surprisal and entropy (locally typical sampling). */
static void by_distance(const float *weights, size_t Q, int32_t *keys) {
  const float whole = sum_of(weights, Q);
  vec sum = {0};
  for (size_t q = 0; q < Q; q += LANES) sum += load(weights + q) * logarithm(load(weights + q) / whole);
  const float entropy = -total(sum) / whole;
  for (size_t q = 0; q < Q; q += LANES) {
    const ivec key = (ivec)(logarithm(load(weights + q) / whole) + entropy) & INT32_MAX; /* absolute value */
    memcpy(keys + q, &key, sizeof key);
  }
}

/* The first token at which the cumulative weight exceeds a share `uniform` of the total. Searches large blocks,
 * then small ones, then tokens. A token of zero weight is never drawn. */
static size_t draw(const float *weights, size_t Q, double uniform) {
  double before = 0, until = uniform * sum_of(weights, Q);
  size_t begin = 0, end = Q;
  for (size_t size = 8 * LANES; size; size = size > LANES ? LANES : size > 1 ? 1 : 0) {
    size_t found = begin, q = begin;
    for (; q < end; q += size) {
      const float sum = size == 1 ? weights[q] : sum_of(weights + q, end - q < size ? end - q : size);
      if (!(sum > 0)) continue;
      found = q;
      if (before + sum > until) break;
      before += sum;
    }
    if (q >= end) until = __builtin_inf(); /* not found, by rounding: take the last token with weight */
    begin = found;
    if (found + size < end) end = found + size;
  }
  return begin;
}

size_t choose_token(const choice *how, size_t Q, size_t V, const float *scores, float minus,
                    const uint8_t *seen, double uniform, float *weights, int32_t *keys) {
  int again = how->penalty != 1 || how->per_temperature != 1;
  if (how->nevers) { /* renormalize without them */
    const float whole = sum_of(weights, Q);
    for (size_t n = 0; n < how->nevers; n++) weights[how->never[n]] = 0;
    const float left = sum_of(weights, Q) / whole;
    if (left > 1e-20f) minus += logarithm(fill(left))[0];
    else again = 1; /* too little is left to be told apart at this scale */
  }
  if (again) {
    for (size_t q = 0; q < Q; q += LANES) store(weights + q, load(scores + q) - minus);
    if (how->penalty != 1)
      for (size_t v = 0; v < V; v++) weights[v] *= seen[v] ? how->penalty : 1.f;
    for (size_t n = 0; n < how->nevers; n++) weights[how->never[n]] = -__builtin_inff();
    exponentials(weights, Q, largest(weights, Q), how->per_temperature, weights);
  }
  if (how->top_k && how->top_k < V) {
    by_weight(weights, Q, keys);
    keep_to(border(keys, NULL, Q, (float)how->top_k), keys, Q, weights);
  }
  if (how->top_p < 1) {
    by_weight(weights, Q, keys);
    keep_mass(how->top_p, keys, Q, weights);
  }
  if (how->min_p > 0) {
    const float least = how->min_p * largest(weights, Q);
    for (size_t q = 0; q < Q; q++) weights[q] = weights[q] >= least ? weights[q] : 0;
  }
  if (how->typical < 1) {
    by_distance(weights, Q, keys);
    keep_mass(how->typical, keys, Q, weights);
  }
  return draw(weights, Q, uniform);
}

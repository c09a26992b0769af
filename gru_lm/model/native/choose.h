/* Sampling a token; see choose.c. */
#include <stddef.h>
#include <stdint.h>

typedef struct {
  float per_temperature, top_p, min_p, typical, penalty; /* 1/T; the others are off at 1, 0, 1, 1 */
  size_t top_k;  /* 0: off */
  size_t nevers; /* number of excluded tokens */
  const int64_t *never; /* [nevers] */
} choice;

/* Returns the log-normalizer of scores [Q]: subtracted from them, it gives log-probabilities. Fills `weights`
 * [Q] with e^(score - largest). Q is a multiple of LANES. */
float normaliser(const float *scores, size_t Q, float *weights);

/* Draws a token from scores [Q], of which the first V are tokens. `weights` and `minus` come from `normaliser`;
 * `seen` [V] marks the tokens to penalize; `uniform` is in [0,1); `keys` [Q] is scratch. */
size_t choose_token(const choice *how, size_t Q, size_t V, const float *scores, float minus,
                    const uint8_t *seen, double uniform, float *weights, int32_t *keys);

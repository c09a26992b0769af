/* How a token is drawn; see choose.c. */
#include <stddef.h>
#include <stdint.h>

typedef struct {
  float per_temperature, top_p, min_p, typical, penalty; /* 1/T; 1, 0, 1, 1: off */
  size_t top_k;  /* 0: off */
  size_t nevers; /* tokens that are not drawn */
  const int64_t *never; /* [nevers] */
} choice;

/* The logarithm that makes scores [Q] log-probabilities when it is subtracted; e^(score - largest) in
 * `weights` [Q]. Q is a multiple of LANES. */
float normaliser(const float *scores, size_t Q, float *weights);

/* A token of scores [Q], of which the first V count. `weights` and `minus` come from `normaliser`; `seen` [V]
 * marks what the penalty is for; `uniform` is in [0,1); `keys` [Q] is scratch. */
size_t choose_token(const choice *how, size_t Q, size_t V, const float *scores, float minus,
                    const uint8_t *seen, double uniform, float *weights, int32_t *keys);

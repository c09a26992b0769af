/* Float vectors by the vector extensions of GCC and Clang, and the activation functions of the gates.
 *
 * Plain C: no intrinsics, and no -ffast-math, which would change the floating-point mode of the process.
 */
#pragma once
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int ivec __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec fill(float x) { return x - (vec){0}; }
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* e^x to about 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes). Propagates NaN. */
INLINE vec expv(vec x) {
  const vec low = fill(-87.f), high = fill(88.f), magic = fill(12582912.f);
  x = choose(x < low, low, x);
  x = choose(x > high, high, x);
  const vec t = x * 1.44269504f + magic; /* nearest integer n, in the low bits */
  const vec n = t - magic, r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  return p * (vec)(((ivec)t - 0x4B400000 + 127) << 23);
}
INLINE vec sigmoid(vec x) { return 1.f / (1.f + expv(-x)); }
INLINE vec tanhv(vec x) { return 2.f / (1.f + expv(-2.f * x)) - 1.f; }

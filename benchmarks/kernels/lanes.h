/* What the kernels share: vectors of lanes (one trajectory per lane), tanh, and blocks of lanes over threads.

   A kernel defines DIM, GROUPS (vectors of lanes that are iterated together) and
       static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps)
   and is called through iterate(), whose states are stored component by component: states[component][trajectory]. */

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define WIDTH 8
#define LANES (WIDTH * GROUPS)
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 32")
#define ROLLED _Pragma("GCC unroll 1")

typedef double vec __attribute__((vector_size(8 * WIDTH)));
typedef long long ivec __attribute__((vector_size(8 * WIDTH)));

INLINE vec all(double value) { return (vec){} + value; }

/* tanh |x| = e / (e + 2) with e = expm1(2 |x|) = 2^n expm1(r) + (2^n - 1); expm1(r) by its Taylor series, |r| <
   log(2) / 2. To be compiled without -ffast-math: n is found by adding and subtracting 1.5 * 2^52. */
INLINE vec tanh_of(vec x) {
  const ivec sign = (ivec)x & (long long)0x8000000000000000LL;
  vec y = 2.0 * (vec)((ivec)x ^ sign);
  const ivec large = y > 40.0;
  y = (vec)((large & (ivec)all(40.0)) | (~large & (ivec)y));
  const vec shifted = y * 0x1.71547652b82fep0 + 0x1.8p52;
  const vec n = shifted - 0x1.8p52;
  const vec r = (y - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
  const vec power = (vec)(((ivec)shifted << 52) + 0x3ff0000000000000LL);
  const vec r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
  const vec a = (1.0 / 2 + r * (1.0 / 6)) + r2 * (1.0 / 24 + r * (1.0 / 120));
  const vec b = (1.0 / 720 + r * (1.0 / 5040)) + r2 * (1.0 / 40320 + r * (1.0 / 362880));
  const vec c = (1.0 / 3628800 + r * (1.0 / 39916800)) + r2 * (1.0 / 479001600 + r * (1.0 / 6227020800.0));
  const vec q = (a + r4 * b) + r8 * c;
  const vec e = power * (r + r2 * q) + (power - 1.0);
  return (vec)((ivec)(e / (e + 2.0)) | sign);
}

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps);

struct work {
  double *states;
  long count, steps;
  double step_size;
  const double *constants;
  atomic_long next;
};

static void *work_on(void *argument) {
  struct work *work = argument;
  vec state[DIM][GROUPS];
  for (;;) {
    const long begin = LANES * atomic_fetch_add(&work->next, 1);
    if (begin >= work->count) return 0;
    for (int d = 0; d < DIM; d++) memcpy(state[d], work->states + d * work->count + begin, sizeof state[d]);
    advance(state, work->constants, work->step_size, work->steps);
    for (int d = 0; d < DIM; d++) memcpy(work->states + d * work->count + begin, state[d], sizeof state[d]);
  }
}

/* Lanes in a block: count below must be a multiple of it. */
int lanes(void) { return LANES; }

int iterate(double *states, long count, long steps, double step_size, const double *constants, int threads) {
  struct work work = {states, count, steps, step_size, constants, 0};
  pthread_t others[256];
  int started = 0;
  if (count % LANES) return 1;
  while (started < threads - 1 && started < 256 && !pthread_create(others + started, 0, work_on, &work)) started++;
  work_on(&work);
  for (int k = 0; k < started; k++) pthread_join(others[k], 0);
  return 0;
}

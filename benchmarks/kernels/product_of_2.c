/* (w_0 w_1 - 1)^2 / 2. */
#define DIM 2
#define GROUPS 8
#include "lanes.h"

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  vec a[GROUPS], b[GROUPS];
  UNROLLED for (int k = 0; k < GROUPS; k++) a[k] = state[0][k], b[k] = state[1][k];
  ROLLED for (long t = 0; t < steps; t++)
    UNROLLED for (int k = 0; k < GROUPS; k++) {
      const vec slope = step_size * (a[k] * b[k] - 1.0), before = a[k];
      a[k] -= slope * b[k];
      b[k] -= slope * before;
    }
  UNROLLED for (int k = 0; k < GROUPS; k++) state[0][k] = a[k], state[1][k] = b[k];
}

/* (w_0 w_1 w_2 w_3 - 1)^2 / 2. */
#define DIM 4
#define GROUPS 4
#include "lanes.h"

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  vec a[GROUPS], b[GROUPS], c[GROUPS], d[GROUPS];
  UNROLLED for (int k = 0; k < GROUPS; k++)
    a[k] = state[0][k], b[k] = state[1][k], c[k] = state[2][k], d[k] = state[3][k];
  ROLLED for (long t = 0; t < steps; t++)
    UNROLLED for (int k = 0; k < GROUPS; k++) {
      const vec ab = a[k] * b[k], cd = c[k] * d[k], slope = step_size * (ab * cd - 1.0);
      const vec of_ab = slope * cd, of_cd = slope * ab, a_before = a[k], c_before = c[k];
      a[k] -= of_ab * b[k];
      b[k] -= of_ab * a_before;
      c[k] -= of_cd * d[k];
      d[k] -= of_cd * c_before;
    }
  UNROLLED for (int k = 0; k < GROUPS; k++)
    state[0][k] = a[k], state[1][k] = b[k], state[2][k] = c[k], state[3][k] = d[k];
}

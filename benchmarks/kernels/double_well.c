/* (x^2 - 1)^2 / 4. */
#define DIM 1
#define GROUPS 8
#include "lanes.h"

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  vec x[GROUPS];
  UNROLLED for (int k = 0; k < GROUPS; k++) x[k] = state[0][k];
  ROLLED for (long t = 0; t < steps; t++)
    UNROLLED for (int k = 0; k < GROUPS; k++) x[k] -= step_size * (x[k] * (x[k] * x[k] - 1.0));
  UNROLLED for (int k = 0; k < GROUPS; k++) state[0][k] = x[k];
}

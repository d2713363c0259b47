/* Independent chains of fused multiply-adds in registers: the float64 peak. */
#define DIM 1
#define GROUPS 16
#include "lanes.h"

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  vec a[GROUPS];
  const vec factor = all(constants[0]), shift = all(step_size);
  UNROLLED for (int k = 0; k < GROUPS; k++) a[k] = state[0][k];
  ROLLED for (long t = 0; t < steps; t++)
    UNROLLED for (int k = 0; k < GROUPS; k++) a[k] = a[k] * factor + shift;
  UNROLLED for (int k = 0; k < GROUPS; k++) state[0][k] = a[k];
}

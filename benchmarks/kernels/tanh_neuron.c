/* The mean of (tanh(w x + b) - y)^2 / 2 over SAMPLES points; constants: the x, then the y. */
#define DIM 2
#define GROUPS 1
#include "lanes.h"
#ifndef SAMPLES
#define SAMPLES 8
#endif

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  const double *x = constants, *y = constants + SAMPLES, rate = step_size / SAMPLES;
  vec w = state[0][0], b = state[1][0];
  ROLLED for (long t = 0; t < steps; t++) {
    vec of_w = {}, of_b = {};
    UNROLLED for (int i = 0; i < SAMPLES; i++) {
      const vec h = tanh_of(w * x[i] + b), slope = (h - y[i]) * (1.0 - h * h);
      of_w += slope * x[i];
      of_b += slope;
    }
    w -= rate * of_w;
    b -= rate * of_b;
  }
  state[0][0] = w, state[1][0] = b;
}

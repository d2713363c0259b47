/* The mean of (v . tanh(W x + b) + c - y)^2 / 2 over 32 points, W 8 x 2; the state is W, b, v, c. Constants: the
   pairs x, then the y. */
#define HIDDEN 8
#define SAMPLES 32
#define DIM (4 * HIDDEN + 1)
#define GROUPS 1
#include "lanes.h"

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  const double *x = constants, *y = constants + 2 * SAMPLES, rate = step_size / SAMPLES;
  vec(*w)[1] = state, (*b)[1] = state + 2 * HIDDEN, (*v)[1] = state + 3 * HIDDEN, *c = state[4 * HIDDEN];
  vec hidden[SAMPLES][HIDDEN], error[SAMPLES];
  ROLLED for (long t = 0; t < steps; t++) {
    vec errors = {};
    ROLLED for (int i = 0; i < SAMPLES; i++) {
      vec output = *c - y[i];
      UNROLLED for (int j = 0; j < HIDDEN; j++) {
        hidden[i][j] = tanh_of(w[2 * j][0] * x[2 * i] + w[2 * j + 1][0] * x[2 * i + 1] + b[j][0]);
        output += v[j][0] * hidden[i][j];
      }
      error[i] = output;
      errors += output;
    }
    ROLLED for (int j = 0; j < HIDDEN; j++) {
      vec of_v = {}, of_b = {}, of_w0 = {}, of_w1 = {};
      ROLLED for (int i = 0; i < SAMPLES; i++) {
        const vec h = hidden[i][j], share = error[i] * h, slope = error[i] - share * h;
        of_v += share;
        of_b += slope;
        of_w0 += slope * x[2 * i];
        of_w1 += slope * x[2 * i + 1];
      }
      const vec through = rate * v[j][0];
      w[2 * j][0] -= through * of_w0;
      w[2 * j + 1][0] -= through * of_w1;
      b[j][0] -= through * of_b;
      v[j][0] -= rate * of_v;
    }
    *c -= rate * errors;
  }
}

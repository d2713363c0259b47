/* ||W_3 W_2 W_1 - T||^2 / 2, all matrices 5 x 5; constants: T. All 25 numbers of a product are accumulated in
   registers; the factors come from the first-level cache. */
#define N 5
#define DIM (3 * N * N)
#define GROUPS 1
#include "lanes.h"

#define EACH UNROLLED for (int i = 0; i < N; i++) UNROLLED for (int j = 0; j < N; j++)
/* total[i][j] = sum_k left(i, k) right(k, j); how far apart neighbours in i, k and j are makes the transposes. */
#define PRODUCT(left, li, lk, right, rk, rj)                     \
  vec total[N][N] = {};                                          \
  {                                                              \
    const vec *l = (left), *r = (right);                         \
    ROLLED for (int k = 0; k < N; k++, l += (lk), r += (rk)) {   \
      EACH total[i][j] += l[i * (li)] * r[j * (rj)];             \
    }                                                            \
  }

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  enum { BYTES = N * N * sizeof(vec) };
  vec first[2][N * N], w2[N * N], w3[N * N], product[N * N], error[N * N], back[N * N];
  vec *w1 = first[0], *fresh = first[1];
  memcpy(w1, state, BYTES), memcpy(w2, state + N * N, BYTES), memcpy(w3, state + 2 * N * N, BYTES);
  ROLLED for (long t = 0; t < steps; t++) {
    { PRODUCT(w2, N, 1, w1, N, 1) EACH product[i * N + j] = total[i][j]; }
    { PRODUCT(w3, N, 1, product, N, 1) EACH error[i * N + j] = total[i][j] - constants[i * N + j]; }
    { PRODUCT(w3, 1, N, error, N, 1) EACH back[i * N + j] = total[i][j]; }
    { PRODUCT(error, N, 1, product, 1, N) EACH w3[i * N + j] -= step_size * total[i][j]; }
    { PRODUCT(w2, 1, N, back, N, 1) EACH fresh[i * N + j] = w1[i * N + j] - step_size * total[i][j]; }
    { PRODUCT(back, N, 1, w1, 1, N) EACH w2[i * N + j] -= step_size * total[i][j]; }
    vec *other = w1;
    w1 = fresh, fresh = other;
  }
  memcpy(state, w1, BYTES), memcpy(state + N * N, w2, BYTES), memcpy(state + 2 * N * N, w3, BYTES);
}

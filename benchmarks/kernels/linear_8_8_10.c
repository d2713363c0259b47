/* ||W_2 W_1 S - C||^2 / 2 with W_1 8 x 8 and W_2 10 x 8; constants: S (8 x 8), then C (10 x 8). Products are made
   in tiles whose totals stay in registers. */
#define INPUTS 8
#define HIDDEN 8
#define OUTPUTS 10
#define DIM (HIDDEN * INPUTS + OUTPUTS * HIDDEN)
#define GROUPS 1
#include "lanes.h"

/* total[i][j] = sum_k left(i, k) right(k, j) for each tile of `high` x `wide`; `use` sees it at row and column. */
#define PRODUCT(rows, columns, depth, high, wide, left, right, use)                        \
  ROLLED for (int i0 = 0; i0 < (rows); i0 += (high))                                       \
    ROLLED for (int j0 = 0; j0 < (columns); j0 += (wide)) {                                \
      vec total[high][wide] = {};                                                          \
      ROLLED for (int k = 0; k < (depth); k++)                                             \
        UNROLLED for (int a = 0; a < (high); a++) {                                        \
          const int i = i0 + a;                                                            \
          UNROLLED for (int b = 0; b < (wide); b++) {                                      \
            const int j = j0 + b;                                                          \
            total[a][b] += (left) * (right);                                               \
          }                                                                                \
        }                                                                                  \
      UNROLLED for (int a = 0; a < (high); a++) UNROLLED for (int b = 0; b < (wide); b++) { \
        const int row = i0 + a, column = j0 + b;                                           \
        const vec sum = total[a][b];                                                       \
        use;                                                                               \
      }                                                                                    \
    }

static void advance(vec state[DIM][GROUPS], const double *constants, double step_size, long steps) {
  const double(*s)[INPUTS] = (const double(*)[INPUTS])constants;
  const double(*c)[INPUTS] = s + INPUTS;
  vec first[2][HIDDEN][INPUTS], w2[OUTPUTS][HIDDEN], product[OUTPUTS][INPUTS], error[OUTPUTS][INPUTS];
  vec(*w1)[INPUTS] = first[0], (*fresh)[INPUTS] = first[1];
  memcpy(w1, state, sizeof first[0]), memcpy(w2, state + HIDDEN * INPUTS, sizeof w2);
  ROLLED for (long t = 0; t < steps; t++) {
    PRODUCT(OUTPUTS, INPUTS, HIDDEN, 5, 4, w2[i][k], w1[k][j], product[row][column] = sum)
    PRODUCT(OUTPUTS, INPUTS, INPUTS, 5, 4, product[i][k], s[k][j], error[row][column] = sum - c[row][column])
    PRODUCT(OUTPUTS, INPUTS, INPUTS, 5, 4, error[i][k], s[j][k], product[row][column] = sum)
    PRODUCT(HIDDEN, INPUTS, OUTPUTS, 4, 4, w2[k][i], product[k][j],
            fresh[row][column] = w1[row][column] - step_size * sum)
    PRODUCT(OUTPUTS, HIDDEN, INPUTS, 5, 4, product[i][k], w1[j][k], w2[row][column] -= step_size * sum)
    vec(*other)[INPUTS] = w1;
    w1 = fresh, fresh = other;
  }
  memcpy(state, w1, sizeof first[0]), memcpy(state + HIDDEN * INPUTS, w2, sizeof w2);
}

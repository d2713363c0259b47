"""Loops written by hand for Numba: one trajectory after the other, the trajectories over the processors."""

import numpy as np
from numba import njit, prange

SETTINGS = {"parallel": True, "fastmath": False}


@njit(**SETTINGS)
def product_of_2(states, steps, step_size, constants):
    for lane in prange(len(states)):
        a, b = states[lane]
        for _ in range(steps):
            slope = step_size * (a * b - 1.0)
            a, b = a - slope * b, b - slope * a
        states[lane, 0], states[lane, 1] = a, b


@njit(**SETTINGS)
def product_of_4(states, steps, step_size, constants):
    for lane in prange(len(states)):
        a, b, c, d = states[lane, 0], states[lane, 1], states[lane, 2], states[lane, 3]
        for _ in range(steps):
            ab, cd = a * b, c * d
            slope = step_size * (ab * cd - 1.0)
            of_ab, of_cd = slope * cd, slope * ab
            a, b, c, d = a - of_ab * b, b - of_ab * a, c - of_cd * d, d - of_cd * c
        states[lane, 0], states[lane, 1], states[lane, 2], states[lane, 3] = a, b, c, d


@njit(**SETTINGS)
def double_well(states, steps, step_size, constants):
    for lane in prange(len(states)):
        x = states[lane, 0]
        for _ in range(steps):
            x -= step_size * (x * (x * x - 1.0))
        states[lane, 0] = x


@njit(**SETTINGS)
def tanh_neuron(states, steps, step_size, constants):
    samples = len(constants) // 2
    for lane in prange(len(states)):
        w, b = states[lane, 0], states[lane, 1]
        for _ in range(steps):
            of_w = of_b = 0.0
            for i in range(samples):
                h = np.tanh(w * constants[i] + b)
                slope = (h - constants[samples + i]) * (1.0 - h * h)
                of_w += slope * constants[i]
                of_b += slope
            w -= step_size / samples * of_w
            b -= step_size / samples * of_b
        states[lane, 0], states[lane, 1] = w, b


@njit(**SETTINGS)
def relu_toy(states, steps, step_size, constants):
    samples = len(constants)
    for lane in prange(len(states)):
        a, b = states[lane, 0], states[lane, 1]
        for _ in range(steps):
            of_a = of_b = 0.0
            for i in range(samples):
                x = constants[i]
                hidden = a * x
                if hidden > 0.0 and b > 0.0:
                    error = b * hidden - x
                    of_a += error * b * x
                    of_b += error * hidden
            a, b = a - step_size / samples * of_a, b - step_size / samples * of_b
        states[lane, 0], states[lane, 1] = a, b


@njit(**SETTINGS)
def linear_5_5_5_5(states, steps, step_size, constants):
    n = 5
    for lane in prange(len(states)):
        w1 = states[lane, : n * n].copy().reshape(n, n)
        w2 = states[lane, n * n : 2 * n * n].copy().reshape(n, n)
        w3 = states[lane, 2 * n * n :].copy().reshape(n, n)
        product, error, back = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
        of1, of2, of3 = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
        for _ in range(steps):
            for i in range(n):
                for j in range(n):
                    total = 0.0
                    for k in range(n):
                        total += w2[i, k] * w1[k, j]
                    product[i, j] = total
            for i in range(n):
                for j in range(n):
                    total = -constants[i * n + j]
                    for k in range(n):
                        total += w3[i, k] * product[k, j]
                    error[i, j] = total
            for i in range(n):
                for j in range(n):
                    total, gradient = 0.0, 0.0
                    for k in range(n):
                        total += w3[k, i] * error[k, j]
                        gradient += error[i, k] * product[j, k]
                    back[i, j], of3[i, j] = total, gradient
            for i in range(n):
                for j in range(n):
                    total, gradient = 0.0, 0.0
                    for k in range(n):
                        total += back[i, k] * w1[j, k]
                        gradient += w2[k, i] * back[k, j]
                    of2[i, j], of1[i, j] = total, gradient
            for i in range(n):
                for j in range(n):
                    w1[i, j] -= step_size * of1[i, j]
                    w2[i, j] -= step_size * of2[i, j]
                    w3[i, j] -= step_size * of3[i, j]
        states[lane, : n * n] = w1.ravel()
        states[lane, n * n : 2 * n * n] = w2.ravel()
        states[lane, 2 * n * n :] = w3.ravel()


LOOPS = {
    loop.__name__: loop
    for loop in (product_of_2, product_of_4, double_well, tanh_neuron, relu_toy, linear_5_5_5_5)
}


class Loop:
    """A loop with its starts, ready to run."""

    def __init__(self, key: str, starts: np.ndarray, step_size: float, constants: np.ndarray) -> None:
        if key not in LOOPS:
            raise LookupError("no loop written")
        self.loop, self.starts, self.step_size, self.constants = LOOPS[key], starts, step_size, constants
        self.ends = starts

    def run(self, steps: int) -> None:
        self.ends = self.starts.copy()
        self.loop(self.ends, steps, self.step_size, self.constants)

    def states(self) -> np.ndarray:
        """Where the last run ended, one row per start."""
        return self.ends

"""The objectives that are measured, with the runs: starts, step sizes and horizons."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

import gdmap


class Cost(NamedTuple):
    """Additions and multiplications of one step, written without anything computed twice, and the values of tanh
    and exp beside them.
    """

    flops: int
    transcendentals: int = 0


class Run(NamedTuple):
    """Starts, Gaussian about ``centre`` in every component, a step size and a horizon."""

    starts: int
    step_size: float
    steps: int
    scale: float
    centre: float = 0.0


class Problem(NamedTuple):
    """An objective and its runs.

    ``key`` names the hand-written kernels and ``title`` the rows of the table; ``constants`` are the numbers of
    the loss, flat, in the order that those kernels take them. In the long run the step size is so small that most
    starts need many thousands of steps, in the short one it is ordinary.
    """

    key: str
    title: str
    objective: Any
    constants: np.ndarray
    cost: Cost
    long: Run
    short: Run | None

    def draw(self, run: Run, count: int) -> np.ndarray:
        """The first starts of a run, at most ``count``."""
        return run.centre + gdmap.gaussian_starts(min(count, run.starts), self.objective.dim, scale=run.scale)


def neuron_points() -> tuple[np.ndarray, np.ndarray]:
    """Eight points on [-2, 2] and a neuron's outputs there."""
    x = np.linspace(-2, 2, 8)
    return x, np.tanh(1.5 * x - 0.3)


def neuron() -> gdmap.Objective:
    """The mean of ``(tanh(w x + b) - y)^2 / 2``."""
    import jax.numpy as jnp

    return gdmap.Objective(lambda t, x, y: (jnp.tanh(t[0] * x + t[1]) - y) ** 2 / 2, np.ones(2), neuron_points())


def plane_points() -> tuple[np.ndarray, np.ndarray]:
    """32 points of the plane and a smooth function there."""
    x = np.random.default_rng(0).normal(size=(32, 2))
    return x, np.sin(x[:, :1]) * np.cos(x[:, 1:])


def images() -> tuple[np.ndarray, np.ndarray]:
    """256 images of noise, 784 pixels, in ten classes."""
    rng = np.random.default_rng(0)
    return rng.random((256, 784)), rng.integers(10, size=256)


RELU_POINTS = np.array([0.9, 2.5])


def relu_toy() -> gdmap.Objective:
    """Half the squared error of ``relu(t_1 relu(t_0 x))`` on the samples (0.9, 0.9) and (2.5, 2.5)."""
    import jax

    def loss(t: Any, x: Any, y: Any) -> Any:
        return (y - jax.nn.relu(t[1] * jax.nn.relu(t[0] * x))) ** 2 / 2

    return gdmap.Objective(loss, np.ones(2), data=(RELU_POINTS, RELU_POINTS))


def perceptron(widths: tuple[int, ...], data: tuple[np.ndarray, np.ndarray], loss: str) -> gdmap.Network:
    return gdmap.Network(gdmap.models.FullyConnected(widths, "tanh"), *data, loss)


def flat(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate([np.empty(0), *(np.ravel(array) for array in arrays)])


@cache
def problems() -> tuple[Problem, ...]:
    """All of them."""
    diagonal = np.diag([1, 0.8, 0.6, 0.4, 0.2])
    digits = gdmap.data.digits(components=8).linear_network([8])
    statistics = (digits.data_loss.covariance_factor, digits.data_loss.whitened_target)
    two = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    four = gdmap.Function(lambda w: (w[0] * w[1] * w[2] * w[3] - 1) ** 2 / 2, 4)
    well = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
    cube = gdmap.LinearNetwork.whitened((5, 5, 5, 5), diagonal)
    plane, noise = plane_points(), images()
    planar, deep = perceptron((2, 8, 1), plane, "squared"), perceptron((784, 32, 10), noise, "cross_entropy")
    many, never, horizon = 8192, 10**8, 10_000

    def problem(key: str, title: str, objective: Any, constants: tuple, cost: Cost, *runs: Run | None) -> Problem:
        return Problem(key, title, objective, flat(*constants), cost, *runs)

    return (
        problem(
            *("product_of_2", "product of 2", two, (), Cost(7)),
            *(Run(many, 5e-6, never, 1.0), Run(many, 0.3, horizon, 1.0)),
        ),
        problem(
            *("product_of_4", "product of 4", four, (), Cost(15)),
            *(Run(many, 2e-5, never, 1.0), Run(many, 0.1, horizon, 1.0)),
        ),
        problem(
            *("double_well", "double well", well, (), Cost(5)),
            *(Run(many, 4e-6, never, 0.5), Run(many, 0.3, horizon, 0.5)),
        ),
        problem(
            *("tanh_neuron", "tanh neuron", neuron(), neuron_points(), Cost(8 * 9 + 4, 8)),
            *(Run(many, 3e-3, never, 1.0), Run(many, 1.0, horizon, 1.0)),
        ),
        problem(
            *("relu_toy", "relu toy", relu_toy(), (RELU_POINTS,), Cost(2 * 8 + 4)),
            *(Run(many, 5e-6, never, 0.2, 1.0), Run(many, 0.1, horizon, 0.2, 1.0)),
        ),
        problem(
            *("linear_5_5_5_5", "linear 5-5-5-5", cube, (diagonal,), Cost(6 * 250 + 25 + 2 * 75)),
            *(Run(4096, 5e-4, 10**6, 0.3), Run(2048, 0.2, horizon, 0.3)),
        ),
        problem(
            *(
                "linear_8_8_10",
                "linear 8-8-10, digits",
                digits,
                statistics,
                Cost(2 * (4 * 640 + 512) + 80 + 2 * 144),
            ),
            *(Run(2048, 2e-2, 10**6, 0.1), Run(1024, 0.5, horizon, 0.1)),
        ),
        problem(
            *("mlp_2_8_1", "MLP 2-8-1, 32 points", planar, plane, Cost(32 * (8 * 15 + 2) + 8 * 9 + 2, 32 * 8)),
            *(Run(512, 0.05, 40_000, 0.5), Run(256, 0.5, horizon, 0.5)),
        ),
        # Steps so short that the runs go straight on: what follows runs that do not is not stepping.
        problem(
            *("mlp_784_32_10", "MLP 784-32-10", deep, noise),
            Cost(2 * 256 * (2 * 784 * 32 + 3 * 32 * 10), 256 * (32 + 10)),
            *(Run(16, 1e-6, 4096, 0.05), None),
        ),
    )

"""Deep linear networks on a data set that has been reduced to its sufficient statistics."""

import math
import operator
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point
from gdmap.objectives.base import AbstractObjective
from gdmap.objectives.objective import checked_probabilities

ROWS_AT_ONCE = 65536
NO_SAMPLES = "this linear network was made from a target matrix, so it has no samples"


class Samples:
    """The training samples, kept out of the traced arrays so that a step does not carry them."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> None:
        self.inputs = inputs
        self.targets = targets
        self.probabilities = probabilities


class LinearNetwork(AbstractObjective):
    """The square loss of a deep linear network ``x -> W_N ... W_1 x``.

    ``L(theta) = 1/(2m) sum_i ||W_N ... W_1 x_i - y_i||^2``, evaluated from sufficient statistics as
    ``L_ls + 1/2 ||W_N ... W_1 S - C||_F^2``. Here ``S S^T = Sigma = X^T X / m`` is the input covariance
    (uncentred second moment), ``C = W_ls S`` with ``W_ls`` the least-squares map, and ``L_ls`` its loss. So a
    step costs the same for 100 and for 10 million samples, and nothing cancels near the optimum.

    ``theta`` is ``W_1, ..., W_N`` in that order, each ``(d_l, d_{l-1})`` and row-major. No biases.

    Parameters
    ----------
    widths
        ``(d_0, ..., d_N)``, at least two; ``N = 1`` is linear regression.
    inputs, targets
        Arrays of shape ``(m, d_0)`` and ``(m, d_N)``; integers are read as numbers.
    probabilities
        Weights of the samples in the mean (non-negative, summing to 1); uniform by default.
    provenance
        Where the data come from and how they were preprocessed, in words; stored with every result, because
        preprocessing changes the thresholds.

    Raises
    ------
    ValueError
        For widths that do not fit the data, data that are not finite, or arrays that are not 2-D.
    """

    widths: tuple[int, ...] = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    least_squares: np.ndarray
    covariance_factor: np.ndarray | None
    whitened_target: np.ndarray
    residual_loss: np.ndarray
    bottleneck_loss: np.ndarray
    samples: Samples | None = eqx.field(static=True)
    provenance: str = eqx.field(static=True)

    def __init__(
        self,
        widths: Sequence[int],
        inputs: Any,
        targets: Any,
        *,
        probabilities: Any = None,
        provenance: str = "",
    ) -> None:
        self.widths, self.dim = checked_widths(widths)
        inputs = checked_samples(inputs, "inputs", self.widths[0], "d_0")
        targets = checked_samples(targets, "targets", self.widths[-1], "d_N")
        if len(inputs) != len(targets):
            raise ValueError(f"inputs has {len(inputs)} samples but targets has {len(targets)}")
        if probabilities is not None:
            probabilities = checked_probabilities(probabilities, len(inputs))
        factor = triangular_factor(inputs, targets, probabilities)
        d0 = self.widths[0]
        S, cross = factor[:d0, :d0], factor[:d0, d0:]
        solved = solve_least_squares(S, cross)
        unexplained = cross - solved.explained
        residual_loss = (np.sum(unexplained**2) + np.sum(factor[d0:, d0:] ** 2)) / 2
        self._fill(
            samples=Samples(inputs, targets, probabilities),
            provenance=provenance,
            **statistics(self.widths, solved.solution.T, S.T, solved.explained.T, residual_loss),
        )

    @classmethod
    def whitened(cls, widths: Sequence[int], target_matrix: Any) -> "LinearNetwork":
        """The network on whitened data: ``L = 1/2 ||W_N ... W_1 - target_matrix||_F^2``.

        ``target_matrix`` has shape ``(d_N, d_0)``; the input covariance is the identity.
        """
        network = object.__new__(cls)
        sizes, dim = checked_widths(widths)
        target = np.array(target_matrix, dtype=float)
        if target.shape != (sizes[-1], sizes[0]):
            raise ValueError(
                f"target_matrix has shape {target.shape}, expected (d_N, d_0) = ({sizes[-1]}, {sizes[0]})"
            )
        if not np.all(np.isfinite(target)):
            raise ValueError("target_matrix holds values that are not finite")
        check_magnitude(target, "target_matrix")
        network._fill(
            widths=sizes,
            dim=dim,
            samples=None,
            provenance="whitened data, given by the target matrix",
            **statistics(sizes, target, None, target, 0.0),
        )
        return network

    def _fill(self, **values: Any) -> None:
        # The modules are frozen; every constructor ends here.
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def for_tracing(self) -> "LinearNetwork":
        """The network without its samples and their description: what a compiled program may depend on."""
        network = object.__new__(LinearNetwork)
        kept = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        network._fill(**{**kept, "samples": None, "provenance": ""})
        return network

    def evaluate(self, theta: Any) -> Any:
        """``L_ls + 1/2 ||W S - C||_F^2``."""
        return jnp.asarray(self.residual_loss, theta.dtype) + self._misfit(theta)

    @entry_point
    def excess(self, theta: Any) -> Any:
        """``L(theta) - L*``, without cancellation where the network can reach the least-squares map."""
        return self._misfit(theta) - jnp.asarray(self.bottleneck_loss, theta.dtype)

    def _misfit(self, theta: Any) -> Any:
        product = self.product(theta)
        if self.covariance_factor is not None:
            product = product @ jnp.asarray(self.covariance_factor, theta.dtype)
        return jnp.sum((product - jnp.asarray(self.whitened_target, theta.dtype)) ** 2) / 2

    def matrices(self, theta: Any) -> list[Any]:
        """The weight matrices ``[W_1, ..., W_N]`` in ``theta``."""
        self.checked(theta)
        matrices, position = [], 0
        for columns, rows in pairwise(self.widths):
            matrices.append(theta[position : position + rows * columns].reshape(rows, columns))
            position += rows * columns
        return matrices

    def product(self, theta: Any) -> Any:
        """The end-to-end matrix ``W_N ... W_1``, shape ``(d_N, d_0)``."""
        product, *rest = self.matrices(theta)
        for matrix in rest:
            product = matrix @ product
        return product

    def ravel(self, params: Any) -> np.ndarray:
        """The flat vector of ``[W_1, ..., W_N]``."""
        shapes = [(rows, columns) for columns, rows in pairwise(self.widths)]
        found = [np.shape(matrix) for matrix in params]
        if found != shapes:
            raise ValueError(f"the weight matrices have shapes {found}, expected {shapes}")
        return np.concatenate([np.ravel(np.asarray(matrix, dtype=float)) for matrix in params])

    def unravel(self, theta: Any) -> list[Any]:
        """``[W_1, ..., W_N]``, the same as `matrices`."""
        return self.matrices(theta)

    @property
    def depth(self) -> int:
        """The number of layers ``N``."""
        return len(self.widths) - 1

    @property
    def is_whitened(self) -> bool:
        """Whether the input covariance is the identity by construction."""
        return self.covariance_factor is None

    @property
    def input_covariance(self) -> np.ndarray:
        """``Sigma = X^T X / m``, shape ``(d_0, d_0)``; not centred unless the inputs are."""
        if self.covariance_factor is None:
            return np.eye(self.widths[0])
        return self.covariance_factor @ self.covariance_factor.T

    @property
    def cross_covariance(self) -> np.ndarray:
        """``Y^T X / m``, shape ``(d_N, d_0)``."""
        return self.least_squares @ self.input_covariance

    @property
    def target_energy(self) -> float:
        """``||Y||_F^2 / m``."""
        return float(np.sum(self.whitened_target**2) + 2 * self.residual_loss)

    @property
    def target_rank(self) -> int:
        """The numerical rank of ``C``: singular values above rounding, relative to the target energy."""
        return numerical_rank(self.whitened_target, self.target_energy)

    @property
    def reaches_least_squares(self) -> bool:
        """Whether ``min(widths) >= rank C``, so that the network can realise the least-squares map."""
        return self.target_rank <= min(self.widths)

    @property
    def optimum(self) -> np.ndarray:
        """``W*``, the least-squares map or, behind a bottleneck, the reduced-rank regression optimum.

        ``W* = U_r U_r^T W_ls`` with ``U_r`` the leading left singular vectors of ``C``. Where the inputs do
        not span, the pseudo-inverse fixes the free part.
        """
        if self.reaches_least_squares:
            return self.least_squares
        U = np.linalg.svd(self.whitened_target)[0][:, : min(self.widths)]
        return U @ (U.T @ self.least_squares)

    @property
    def optimal_value(self) -> float:
        """``L* = min L``, the loss of `optimum`."""
        return float(self.residual_loss + self.bottleneck_loss)

    @property
    def knows_optimum(self) -> bool:
        """Always: least squares or reduced-rank regression."""
        return True

    @property
    def critical_gap(self) -> float:
        """The smallest excess of the loss over ``L*`` at a critical point that is not a global minimum.

        At a critical point the end-to-end matrix keeps a subset of at most ``min(widths)`` singular
        components of ``C`` (Baldi & Hornik 1989), and those above the optimum are saddles: no spurious minima.
        Infinite for linear regression and for a zero optimum, where every critical value is optimal.
        """
        singular_values = np.linalg.svd(self.whitened_target, compute_uv=False)
        kept = min(*self.widths, self.target_rank)
        if self.depth == 1 or kept == 0:
            return math.inf
        smallest = singular_values[kept - 1]
        below = singular_values[kept:] if not self.reaches_least_squares else np.zeros(0)
        below = below[below < smallest * (1 - 1e-12)]
        next_one = below[0] if below.size else 0.0
        return float((smallest**2 - next_one**2) / 2)

    @property
    def n_samples(self) -> int:
        """The number of samples ``m``."""
        return len(self._samples().inputs)

    @entry_point
    def _sample_losses(self, theta: Any, inputs: Any, targets: Any) -> Any:
        return jnp.sum((inputs @ self.product(theta).T - targets) ** 2, axis=1) / 2

    def sample_values(self, theta: Any) -> Any:
        """``1/2 ||W_N ... W_1 x_i - y_i||^2`` for every sample, shape ``(n_samples,)``."""
        samples = self._samples()
        return self._sample_losses(theta, samples.inputs, samples.targets)

    def weighted(self, p: Any) -> "LinearNetwork":
        """The same network with sampling probabilities ``p`` for the mean."""
        samples = self._samples()
        return LinearNetwork(
            self.widths, samples.inputs, samples.targets, probabilities=p, provenance=self.provenance
        )

    def _samples(self) -> Samples:
        if self.samples is None:
            raise ValueError(NO_SAMPLES)
        return self.samples

    def describe(self) -> dict[str, Any]:
        """The record of `AbstractObjective.describe` with the widths and the normalisation of the loss."""
        normalisation = "1/2 ||W - W*||_F^2" if self.is_whitened else "1/(2m) sum ||W x - y||^2"
        return {
            **super().describe(),
            "widths": list(self.widths),
            "normalisation": normalisation,
            "data": self.provenance,
        }


class LeastSquares(NamedTuple):
    """The minimum-norm solution ``x`` of ``a x = b`` and what it explains, ``a x`` without its rounding."""

    solution: np.ndarray
    explained: np.ndarray


def solve_least_squares(a: np.ndarray, b: np.ndarray) -> LeastSquares:
    """Least squares with a numerical rank that does not depend on the units of the columns of ``a``.

    Singular values of ``a`` with columns of unit length count as zero below ``max(shape) eps``; the
    pseudo-inverse solution is then taken in the original units.
    """
    lengths = np.linalg.norm(a, axis=0)
    lengths = np.where(lengths > 0, lengths, 1.0)
    U, singular_values, Vt = np.linalg.svd(a / lengths)
    rank = int(np.sum(singular_values > max(a.shape) * np.finfo(float).eps * singular_values[0]))
    if rank == min(a.shape):
        x = (Vt.T / singular_values) @ (U.T @ b) / lengths[:, None]
        return LeastSquares(x, b)
    kept = U[:, :rank]
    explained = kept @ (kept.T @ b)
    # The equation a x = explained is solvable; its minimum-norm solution lies in the row space of a.
    rows = np.linalg.qr((Vt[:rank] * lengths).T)[0]
    particular = (Vt[:rank].T / singular_values[:rank]) @ (kept.T @ b) / lengths[:, None]
    return LeastSquares(rows @ (rows.T @ particular), explained)


def numerical_rank(target: np.ndarray, energy: float) -> int:
    """Singular values of ``C`` above ``8 max(d_0, d_N) eps`` of the norm of the targets; the rest is rounding."""
    cutoff = 8 * max(target.shape) * float(np.finfo(float).eps) * math.sqrt(energy)
    return int(np.sum(np.linalg.svd(target, compute_uv=False) > cutoff))


def statistics(
    widths: tuple[int, ...],
    least_squares: np.ndarray,
    covariance_factor: np.ndarray | None,
    target: np.ndarray,
    residual_loss: float,
) -> dict[str, Any]:
    """The array fields of a network: what the data come to, and the loss that a bottleneck adds."""
    energy = float(np.sum(target**2) + 2 * residual_loss)
    cut_off = 0.0
    if numerical_rank(target, energy) > min(widths):
        cut_off = float(np.sum(np.linalg.svd(target, compute_uv=False)[min(widths) :] ** 2) / 2)
    return {
        "least_squares": least_squares,
        "covariance_factor": covariance_factor,
        "whitened_target": target,
        "residual_loss": np.asarray(residual_loss),
        "bottleneck_loss": np.asarray(cut_off),
    }


def checked_widths(widths: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The widths as integers and the number of parameters they make."""
    try:
        sizes = tuple(operator.index(width) for width in widths)
    except TypeError:
        raise TypeError(f"widths must be a sequence of integers (d_0, ..., d_N), got {widths!r}") from None
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"widths must be at least two positive integers (d_0, ..., d_N), got {sizes}")
    return sizes, sum(a * b for a, b in pairwise(sizes))


def checked_samples(array: Any, name: str, width: int, symbol: str) -> np.ndarray:
    """``array`` as finite float64 of shape ``(m, width)``."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)  # a copy: the caller may change theirs
    if array.ndim != 2:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (samples, {symbol}); "
            "reshape(-1, 1) makes a column of a vector"
        )
    if array.shape[1] != width:
        raise ValueError(f"{name} has {array.shape[1]} columns, but widths says {symbol} = {width}")
    if len(array) == 0:
        raise ValueError(f"{name} holds no samples")
    if not np.all(np.isfinite(array)):
        row = int(np.argwhere(~np.isfinite(array).all(axis=1))[0, 0])
        raise ValueError(f"{name} holds values that are not finite, first in row {row}: remove or impute them")
    check_magnitude(array, name)
    return array


def check_magnitude(array: np.ndarray, name: str) -> None:
    """Refuse numbers whose squares leave the range of float64."""
    largest = float(np.abs(array).max(initial=0.0))
    if largest > 0 and not 1e-100 < largest < 1e100:
        raise ValueError(
            f"{name} has a largest entry of {largest:.3g}: rescale, its square leaves float64's range"
        )


def triangular_factor(inputs: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
    """The triangular ``R`` of ``[X, Y] diag(p)^{1/2} = Q R``, from rows taken a few at a time.

    ``R`` holds the input covariance, the cross-covariance and the target energy at once
    (``R^T R = [X, Y]^T diag(p) [X, Y]``) without squaring the condition number.
    """
    m, size = len(inputs), inputs.shape[1] + targets.shape[1]
    R = np.zeros((0, size))
    for begin in range(0, m, ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        weight = np.full(len(inputs[rows]), 1 / m) if probabilities is None else probabilities[rows]
        block = np.hstack([inputs[rows], targets[rows]]) * np.sqrt(weight)[:, None]
        R = np.asarray(np.linalg.qr(np.vstack([R, block]), mode="r"))
    return np.vstack([R, np.zeros((size - len(R), size))])

"""The square loss of linear maps from sufficient statistics, and the numerical linear algebra behind it."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

ROWS_AT_ONCE = 65536


class SquareLoss(eqx.Module):
    """``L_ls + 1/2 ||W S - C||_F^2`` as a function of the end-to-end matrix ``W``.

    ``least_squares`` is ``W_ls``, ``covariance_factor`` is ``S`` (``None`` for the identity),
    ``whitened_target`` is ``C = W_ls S``, ``residual_loss`` is ``L_ls`` and ``bottleneck_loss`` what the
    narrowest layer adds to it at the optimum.
    """

    least_squares: np.ndarray
    covariance_factor: np.ndarray | None
    whitened_target: np.ndarray
    residual_loss: np.ndarray
    bottleneck_loss: np.ndarray

    def evaluate(self, product: Any) -> Any:
        """The loss of ``W = product``, shape ``(d_N, d_0)``."""
        return jnp.asarray(self.residual_loss, product.dtype) + self.misfit(product)

    def misfit(self, product: Any) -> Any:
        """``1/2 ||W S - C||_F^2``."""
        return jnp.sum(self.residuals(product) ** 2) / 2

    def residuals(self, product: Any) -> Any:
        """``W S - C``, shape ``(d_N, d_0)``."""
        if self.covariance_factor is not None:
            product = product @ jnp.asarray(self.covariance_factor, product.dtype)
        return product - jnp.asarray(self.whitened_target, product.dtype)

    @property
    def target_energy(self) -> float:
        """``||Y||_F^2 / m``."""
        return float(np.sum(self.whitened_target**2) + 2 * self.residual_loss)


def square_loss_of_samples(
    widths: tuple[int, ...], inputs: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None
) -> SquareLoss:
    """The square loss of a network with these widths on these samples."""
    factor = triangular_factor(inputs, targets, probabilities)
    d0 = widths[0]
    S, cross = factor[:d0, :d0], factor[:d0, d0:]
    solved = solve_least_squares(S, cross)
    unexplained = cross - solved.explained
    residual_loss = (np.sum(unexplained**2) + np.sum(factor[d0:, d0:] ** 2)) / 2
    return square_loss(widths, solved.solution.T, S.T, solved.explained.T, residual_loss)


def square_loss(
    widths: tuple[int, ...],
    least_squares: np.ndarray,
    covariance_factor: np.ndarray | None,
    target: np.ndarray,
    residual_loss: float,
) -> SquareLoss:
    """What the data come to, and the loss that a bottleneck adds."""
    energy = float(np.sum(target**2) + 2 * residual_loss)
    cut_off = 0.0
    if numerical_rank(target, energy) > min(widths):
        cut_off = float(np.sum(np.linalg.svd(target, compute_uv=False)[min(widths) :] ** 2) / 2)
    return SquareLoss(least_squares, covariance_factor, target, np.asarray(residual_loss), np.asarray(cut_off))


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
    """The number of singular values of ``C`` above the rounding of the data."""
    return int(np.sum(np.linalg.svd(target, compute_uv=False) > rank_cutoff(target, energy)))


def rank_cutoff(target: np.ndarray, energy: float) -> float:
    """``8 max(d_0, d_N) eps`` of the norm of the targets: singular values of ``C`` below it are rounding."""
    return 8 * max(target.shape) * float(np.finfo(float).eps) * math.sqrt(energy)


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

"""Minima of deep linear networks under the square loss, and how flat they can be.

Notation (docs/critical-step-size.md has the proofs): ``Sigma = S S^T`` the input covariance, ``C = W_ls S``
the whitened target, ``C_r`` its best approximation of rank ``r = min(widths)``, ``N`` the depth.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import brentq

from gdmap.engines.random import gaussian_starts
from gdmap.objectives import LinearNetwork


@dataclass(frozen=True)
class SharpnessBound:
    """A lower bound on the sharpness of every global minimum, and the layer scale that meets it.

    ``value = N max_v ||S v||^{2/N} ||C_r v||^{2-2/N} = min_t lambda_max(t^{N-1} S^T S + (N-1) C_r^T C_r / t)``;
    ``scale`` is the minimising ``t``, ``direction`` the maximising unit vector ``v``. ``relative_error`` bounds
    (as a first-order estimate) what rounding in the statistics and in the evaluation does to the value.
    """

    value: float
    relative_error: float
    scale: float
    direction: np.ndarray


def reachable_target(network: LinearNetwork) -> np.ndarray:
    """``C_r``: the whitened target truncated to the rank that the network can realise."""
    U, singular_values, Vt = np.linalg.svd(network.whitened_target, full_matrices=False)
    rank = reachable_rank(network)
    return (U[:, :rank] * singular_values[:rank]) @ Vt[:rank]


def reachable_rank(network: LinearNetwork) -> int:
    """The rank of the optimum, ``min(min(widths), rank C)``."""
    return min(*network.widths, network.target_rank)


def input_factor(network: LinearNetwork) -> np.ndarray:
    """``S`` with ``S S^T = Sigma``."""
    return np.eye(network.widths[0]) if network.covariance_factor is None else network.covariance_factor


def minimal_sharpness_bound(network: LinearNetwork) -> SharpnessBound:
    """The lower bound on the sharpness over all global minima, for any depth, widths and covariance.

    Every unit vector ``v`` gives the bound ``N ||S v||^{2/N} ||C_r v||^{2-2/N}``; the best one is found
    through the dual problem, which is convex in ``log t`` and is solved by bisection on its derivative.

    Raises
    ------
    ValueError
        If the optimum is zero (then there are arbitrarily flat minima once ``N >= 2``).
    """
    N, S, C = network.depth, input_factor(network), reachable_target(network)
    inputs, outputs = S.T @ S, C.T @ C
    if N == 1:
        values, vectors = np.linalg.eigh(inputs)
        v = vectors[:, -1]
        return SharpnessBound(float(values[-1]), _relative_error(network, S, C, v), 1.0, v)
    if not np.any(C):
        raise ValueError("the optimum is zero: no positive lower bound on the sharpness exists")

    def top_direction(log_scale: float) -> np.ndarray:
        scale = np.exp(log_scale)
        return np.linalg.eigh(scale ** (N - 1) * inputs + (N - 1) * outputs / scale)[1][:, -1]

    def slope(log_scale: float, v: np.ndarray) -> float:
        # Sign of the derivative of the dual objective along v: t^N ||S v||^2 - ||C v||^2.
        return float(np.exp(N * log_scale) * np.sum((S @ v) ** 2) - np.sum((C @ v) ** 2))

    # t^N = ||C v||^2 / ||S v||^2 <= ||W||^2 at the optimum, so the top end has positive slope.
    high = np.log(np.sum(network.least_squares**2)) / N + 1.0
    low = high - 1.0
    while slope(low, top_direction(low)) > 0:
        low -= 1.0
    below, above = top_direction(low), top_direction(high)
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        v = top_direction(middle)
        if slope(middle, v) > 0:
            high, above = middle, v
        else:
            low, below = middle, v
    direction = _zero_slope_direction(functools.partial(slope, low), below, above)
    a, b = np.sum((S @ direction) ** 2), np.sum((C @ direction) ** 2)
    value = float(N * a ** (1 / N) * b ** (1 - 1 / N))
    return SharpnessBound(value, _relative_error(network, S, C, direction), float(np.exp(low)), direction)


def _relative_error(network: LinearNetwork, S: np.ndarray, C: np.ndarray, v: np.ndarray) -> float:
    """First-order relative error of ``||S v||^{2/N} ||C_r v||^{2-2/N}``, with a safety factor for dimension.

    The factorisation of the data has errors relative to the norms of inputs and targets, not to the parts
    that matter; those of ``C`` grow with the condition number of the inputs in units of their columns.
    """
    N = network.depth
    unit = 4 * (network.widths[0] + network.widths[-1] + N) * float(np.finfo(float).eps)
    if network.is_whitened:
        return unit
    lengths = np.linalg.norm(S.T, axis=0)
    singular_values = np.linalg.svd(S.T / np.where(lengths > 0, lengths, 1.0), compute_uv=False)
    condition = singular_values[0] / singular_values[singular_values > unit * singular_values[0]][-1]
    inputs = np.linalg.norm(S, 2) / np.linalg.norm(S @ v)
    if N == 1:
        return float(unit * 2 * inputs)
    targets = condition * np.sqrt(network.target_energy) / np.linalg.norm(C @ v)
    return float(unit * (2 / N * inputs + (2 - 2 / N) * targets))


def _zero_slope_direction(slope: Any, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A unit vector between two eigenvectors of the same (multiple) eigenvalue where the slope vanishes."""
    if below @ above < 0:
        above = -above

    def blend(angle: float) -> np.ndarray:
        mixed = np.cos(angle) * below + np.sin(angle) * above
        return mixed / np.linalg.norm(mixed)

    if slope(blend(0.0)) < 0 < slope(blend(np.pi / 2)):
        return blend(brentq(lambda angle: slope(blend(angle)), 0.0, np.pi / 2, xtol=1e-15))
    return below


def balanced_minimum(network: LinearNetwork) -> np.ndarray:
    """The balanced global minimum ``W_l = U_l D^{1/N} U_{l-1}^T``, shape ``(dim,)``.

    ``D`` holds the singular values of the optimum. On whitened data it attains the smallest sharpness
    ``N sigma_1^{2-2/N}``.
    """
    rank, N = min(network.widths), network.depth
    if N == 1:
        return network.ravel([network.least_squares])
    U, singular_values, Vt = np.linalg.svd(network.optimum)
    roots = singular_values[:rank] ** (1 / N)
    layers = [_embedded(np.diag(roots), shape) for shape in layer_shapes(network)]
    layers[0] = layers[0][:, :rank] @ Vt[:rank]
    layers[-1] = U[:, :rank] @ layers[-1][:rank]
    return network.ravel(layers)


def aligned_minimum(network: LinearNetwork, scale: float) -> np.ndarray:
    """A global minimum whose upper layers are multiples of an isometry; shape ``(dim,)``.

    ``W_N = tau U E``, ``W_l = tau E`` and ``W_1 = tau^{1-N} E U^T W_ls`` with ``tau^2 = scale``, ``U`` a basis
    of the range of the optimum and ``E`` partial identities. Its sharpness is
    ``lambda_max(t^{N-1} S^T S + (N-1) C^T C / t)`` with ``t = scale``: at the scale of
    `minimal_sharpness_bound` it meets the lower bound.

    Raises
    ------
    ValueError
        If a bottleneck keeps the network from the least-squares map.
    """
    if not network.reaches_least_squares:
        raise ValueError("behind a bottleneck the aligned minimum does not exist")
    rank, N, tau = reachable_rank(network), network.depth, np.sqrt(scale)
    if N == 1:
        return network.ravel([network.least_squares])
    U = np.linalg.svd(network.whitened_target)[0][:, :rank]
    layers = [_embedded(tau * np.eye(rank), shape) for shape in layer_shapes(network)]
    first = U.T @ network.least_squares / tau ** (N - 1)
    layers[0] = np.vstack([first, np.zeros((network.widths[1] - rank, network.widths[0]))])
    layers[-1] = U @ layers[-1][:rank]
    return network.ravel(layers)


def layer_shapes(network: LinearNetwork) -> list[tuple[int, int]]:
    """The shapes ``(d_l, d_{l-1})`` of ``W_1, ..., W_N``."""
    return [(rows, columns) for columns, rows in pairwise(network.widths)]


def _embedded(block: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros(shape)
    rows, columns = min(block.shape[0], shape[0]), min(block.shape[1], shape[1])
    matrix[:rows, :columns] = block[:rows, :columns]
    return matrix


def exact_minima(network: LinearNetwork, count: int, seed: int, scale: float) -> np.ndarray | None:
    """Random global minima, shape ``(count, dim)``; ``None`` behind a bottleneck or for other losses.

    All layers have independent ``N(0, scale^2)`` entries; then the first is changed as little as the optimum
    demands (``W_1 + A^+ (W - A W_1)`` with ``A`` the layers above), or the last where the layers below it span.
    Where the inputs do not span, the free part of ``W`` is Gaussian too.
    """
    if not network.is_squared:
        return None
    inputs, *hidden, outputs = network.widths
    solve_first_layer = all(width >= outputs for width in hidden)
    if not (solve_first_layer or all(width >= inputs for width in hidden)):
        return None
    shapes = layer_shapes(network)
    draws = gaussian_starts(count, network.dim + outputs * inputs, seed, scale)
    free = draws[:, network.dim :].reshape(count, outputs, inputs)
    S = input_factor(network)
    targets = network.optimum + free @ (np.eye(inputs) - S @ np.linalg.pinv(S))
    if network.depth == 1:
        return targets.reshape(count, -1)
    layers, position = [], 0
    for rows, columns in shapes:
        layers.append(draws[:, position : position + rows * columns].reshape(count, rows, columns))
        position += rows * columns
    if solve_first_layer:
        above = functools.reduce(lambda lower, upper: upper @ lower, layers[1:])
        layers[0] = layers[0] + np.linalg.pinv(above) @ (targets - above @ layers[0])
    else:
        below = functools.reduce(lambda lower, upper: upper @ lower, layers[:-1])
        layers[-1] = layers[-1] + (targets - layers[-1] @ below) @ np.linalg.pinv(below)
    return np.concatenate([layer.reshape(count, -1) for layer in layers], axis=1)

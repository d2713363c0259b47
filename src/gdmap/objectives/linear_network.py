"""Deep linear networks; for the square loss the data are reduced to their sufficient statistics."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point
from gdmap.objectives.base import AbstractObjective, check_scalar_loss
from gdmap.objectives.least_squares import SquareLoss, numerical_rank, square_loss, square_loss_of_samples
from gdmap.objectives.objective import checked_probabilities
from gdmap.objectives.residual_loss import SQUARED, ResidualLoss, resolve_loss
from gdmap.objectives.samples import SampleLosses

NO_SAMPLES = "this linear network was made from a target matrix, so it has no samples"


class Samples:
    """The training samples, kept out of the traced arrays so that a step does not carry them."""

    def __init__(self, inputs: Any, targets: Any, probabilities: Any) -> None:
        self.inputs = inputs
        self.targets = targets
        self.probabilities = probabilities


class LinearNetwork(AbstractObjective):
    """A loss of the residual of a deep linear network ``x -> W_N ... W_1 x``; by default the square loss.

    ``L(theta) = 1/(2m) sum_i ||W_N ... W_1 x_i - y_i||^2``, evaluated from sufficient statistics as
    ``L_ls + 1/2 ||W_N ... W_1 S - C||_F^2``. Here ``S S^T = Sigma = X^T X / m`` is the input covariance
    (uncentred second moment), ``C = W_ls S`` with ``W_ls`` the least-squares map, and ``L_ls`` its loss. So a
    step costs the same for 100 and for 10 million samples, and nothing cancels near the optimum.

    Another ``loss`` gives ``L(theta) = 1/m sum_i loss(W_N ... W_1 x_i - y_i)``, evaluated sample by sample. Its
    minima are not known in closed form: what belongs to the square loss alone (`optimum`, `whitened_target`,
    `target_rank`, `residuals`, ...) raises a ``ValueError``, and `optimal_value` and `critical_gap` are
    ``None``.

    ``theta`` is ``W_1, ..., W_N`` in that order, each ``(d_l, d_{l-1})`` and row-major. No biases.

    Parameters
    ----------
    widths
        ``(d_0, ..., d_N)``, at least two; ``N = 1`` is linear regression.
    inputs, targets
        Arrays of shape ``(m, d_0)`` and ``(m, d_N)``; integers are read as numbers.
    loss
        ``'squared'`` (``1/2 ||r||^2``); ``'huber'`` (summed over the entries of ``r``: ``r_j^2 / 2`` for
        ``|r_j| <= 1``, else ``|r_j| - 1/2``); ``'log_cosh'`` (the sum of ``log cosh r_j``); or a JAX function of
        the residual ``r`` of one sample, shape ``(d_N,)``, that returns a scalar, or a vector of that shape,
        which is summed. It is taken as it is: neither convexity nor a minimum at 0 is required.
    probabilities
        Weights of the samples in the mean (non-negative, summing to 1); uniform by default.
    provenance
        Where the data come from and how they were preprocessed, in words; stored with every result, because
        preprocessing changes the thresholds.

    Raises
    ------
    TypeError
        For a loss that is no function, or does not return real floating numbers of one of the two shapes.
    ValueError
        For an unknown name of a loss, widths that do not fit the data, data that are not finite, or arrays
        that are not 2-D.
    """

    widths: tuple[int, ...] = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    data_loss: SquareLoss | ResidualLoss
    samples: Samples | None = eqx.field(static=True)
    provenance: str = eqx.field(static=True)

    def __init__(
        self,
        widths: Sequence[int],
        inputs: Any,
        targets: Any,
        *,
        loss: str | Callable[[Any], Any] = SQUARED,
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
        self.samples = Samples(inputs, targets, probabilities)
        self.provenance = provenance
        if isinstance(loss, str) and loss == SQUARED:
            self.data_loss = square_loss_of_samples(self.widths, inputs, targets, probabilities)
        else:
            self.data_loss = ResidualLoss(*resolve_loss(loss), inputs, targets, probabilities)
            try:
                check_scalar_loss(self)
            except jax.errors.JAXTypeError as error:
                raise TypeError(f"loss must be traceable by JAX, written with jax.numpy: {error}") from error

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
            data_loss=square_loss(sizes, target, None, target, 0.0),
        )
        return network

    def _fill(self, **values: Any) -> None:
        # The modules are frozen; constructors other than __init__ end here.
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def for_tracing(self) -> "LinearNetwork":
        """The network without its samples and their description: what a compiled program may depend on."""
        network = object.__new__(LinearNetwork)
        kept = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        network._fill(**{**kept, "samples": None, "provenance": ""})
        return network

    def evaluate(self, theta: Any) -> Any:
        """``L_ls + 1/2 ||W S - C||_F^2``, or the mean of another loss over the samples."""
        return self.data_loss.evaluate(self.product(theta))

    @entry_point
    def excess(self, theta: Any) -> Any:
        """``L(theta) - L*``, without cancellation where the network can reach the least-squares map."""
        square = self._square("excess")
        product = self.product(theta)
        return square.misfit(product) - jnp.asarray(square.bottleneck_loss, product.dtype)

    @entry_point
    def residuals(self, theta: Any) -> Any:
        """``W S - C`` as a flat vector ``r``, shape ``(d_N d_0,)``: ``L(theta) = L_ls + 1/2 ||r||^2``.

        For the square loss only (see `has_residuals`).
        """
        return self._square("residuals").residuals(self.product(theta)).ravel()

    @property
    def has_residuals(self) -> bool:
        """Whether the loss is a constant plus half a sum of squares of `residuals`."""
        return self.is_squared

    @property
    def is_squared(self) -> bool:
        """Whether the loss is the square loss, by name."""
        return isinstance(self.data_loss, SquareLoss)

    @property
    def loss(self) -> str | Callable[[Any], Any]:
        """The loss of the residual as given at construction."""
        if isinstance(self.data_loss, SquareLoss):
            return SQUARED
        return self.data_loss.name if self.data_loss.is_named else self.data_loss.function

    def _square(self, name: str) -> SquareLoss:
        if not isinstance(self.data_loss, SquareLoss):
            raise ValueError(
                f"{name} belongs to the square loss; this linear network has the loss {self.data_loss.name!r}, "
                "whose minima are not known in closed form"
            )
        return self.data_loss

    @property
    def least_squares(self) -> np.ndarray:
        """``W_ls``, the least-squares map of minimum norm, shape ``(d_N, d_0)``."""
        return self._square("least_squares").least_squares

    @property
    def covariance_factor(self) -> np.ndarray | None:
        """``S`` with ``S S^T = Sigma``, lower triangular; ``None`` where it is the identity by construction."""
        return self._square("covariance_factor").covariance_factor

    @property
    def whitened_target(self) -> np.ndarray:
        """``C = W_ls S``, shape ``(d_N, d_0)``."""
        return self._square("whitened_target").whitened_target

    @property
    def residual_loss(self) -> np.ndarray:
        """``L_ls``, the loss of the least-squares map."""
        return self._square("residual_loss").residual_loss

    @property
    def bottleneck_loss(self) -> np.ndarray:
        """``L* - L_ls``, what the narrowest layer costs."""
        return self._square("bottleneck_loss").bottleneck_loss

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
        return isinstance(self.data_loss, SquareLoss) and self.data_loss.covariance_factor is None

    @property
    def input_covariance(self) -> np.ndarray:
        """``Sigma = X^T X / m``, shape ``(d_0, d_0)``; not centred unless the inputs are."""
        if isinstance(self.data_loss, ResidualLoss):
            return self.data_loss.second_moment(self.data_loss.inputs)
        factor = self.data_loss.covariance_factor
        return np.eye(self.widths[0]) if factor is None else factor @ factor.T

    @property
    def cross_covariance(self) -> np.ndarray:
        """``Y^T X / m``, shape ``(d_N, d_0)``."""
        if isinstance(self.data_loss, ResidualLoss):
            return self.data_loss.second_moment(self.data_loss.targets)
        return self.data_loss.least_squares @ self.input_covariance

    @property
    def target_energy(self) -> float:
        """``||Y||_F^2 / m``."""
        return self.data_loss.target_energy

    @property
    def target_rank(self) -> int:
        """The numerical rank of ``C``: singular values above rounding, relative to the target energy."""
        square = self._square("target_rank")
        return numerical_rank(square.whitened_target, square.target_energy)

    @property
    def reaches_least_squares(self) -> bool:
        """Whether ``min(widths) >= rank C``, so that the network can realise the least-squares map."""
        self._square("reaches_least_squares")
        return self.target_rank <= min(self.widths)

    @property
    def optimum(self) -> np.ndarray:
        """``W*``, the least-squares map or, behind a bottleneck, the reduced-rank regression optimum.

        ``W* = U_r U_r^T W_ls`` with ``U_r`` the leading left singular vectors of ``C``. Where the inputs do
        not span, the pseudo-inverse fixes the free part.
        """
        self._square("optimum")
        if self.reaches_least_squares:
            return self.least_squares
        U = np.linalg.svd(self.whitened_target)[0][:, : min(self.widths)]
        return U @ (U.T @ self.least_squares)

    @property
    def optimal_value(self) -> float | None:
        """``L* = min L``, the loss of `optimum`; ``None`` for other losses than the square loss."""
        return float(self.residual_loss + self.bottleneck_loss) if self.is_squared else None

    @property
    def knows_optimum(self) -> bool:
        """For the square loss: least squares or reduced-rank regression."""
        return self.is_squared

    @property
    def critical_gap(self) -> float | None:
        """The smallest excess of the loss over ``L*`` at a critical point that is not a global minimum.

        At a critical point the end-to-end matrix keeps a subset of at most ``min(widths)`` singular
        components of ``C`` (Baldi & Hornik 1989), and those above the optimum are saddles: no spurious minima.
        Infinite for linear regression and for a zero optimum, where every critical value is optimal; ``None``
        for other losses than the square loss.
        """
        if not self.is_squared:
            return None
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

    @property
    def sample_losses(self) -> "NetworkSamples":
        """The losses of single samples."""
        samples = self._samples()
        return NetworkSamples(self, samples.inputs, samples.targets)

    @property
    def probabilities(self) -> np.ndarray | None:
        """The weights of the samples in the mean; ``None``: uniform."""
        return self._samples().probabilities

    @entry_point
    def _sample_losses(self, theta: Any, inputs: Any, targets: Any) -> Any:
        inputs, targets = jnp.asarray(inputs, theta.dtype), jnp.asarray(targets, theta.dtype)
        residuals = inputs @ self.product(theta).T - targets
        if isinstance(self.data_loss, ResidualLoss):
            return jax.vmap(self.data_loss.of_one_sample)(residuals)
        return jnp.sum(residuals**2, axis=1) / 2

    def sample_values(self, theta: Any) -> Any:
        """The loss of every sample (``1/2 ||W_N ... W_1 x_i - y_i||^2``), shape ``(n_samples,)``."""
        samples = self._samples()
        return self._sample_losses(theta, samples.inputs, samples.targets)

    def weighted(self, p: Any) -> "LinearNetwork":
        """The same network with sampling probabilities ``p`` for the mean."""
        samples = self._samples()
        return LinearNetwork(
            self.widths,
            samples.inputs,
            samples.targets,
            loss=self.loss,
            probabilities=p,
            provenance=self.provenance,
        )

    def _samples(self) -> Samples:
        if self.samples is not None:
            return self.samples
        if isinstance(self.data_loss, ResidualLoss):
            return Samples(self.data_loss.inputs, self.data_loss.targets, self.data_loss.probabilities)
        raise ValueError(NO_SAMPLES)

    def describe(self) -> dict[str, Any]:
        """The record of `AbstractObjective.describe` with the widths, the loss and its normalisation.

        A loss of the user's is named as they named it; what it computes is covered by the fingerprint.
        """
        if isinstance(self.data_loss, ResidualLoss):
            name, normalisation = self.data_loss.name, self.data_loss.normalisation
        else:
            name = SQUARED
            normalisation = "1/2 ||W - W*||_F^2" if self.is_whitened else "1/(2m) sum ||W x - y||^2"
        return {
            **super().describe(),
            "widths": list(self.widths),
            "loss": name,
            "normalisation": normalisation,
            "data": self.provenance,
        }


class NetworkSamples(SampleLosses):
    """The losses of the samples of a `LinearNetwork`."""

    network: LinearNetwork
    inputs: np.ndarray
    targets: np.ndarray

    @property
    def n_samples(self) -> int:
        """The number of samples ``n``."""
        return len(self.inputs)

    def values(self, theta: Any, indices: Any) -> Any:
        """The losses of the residuals of the samples ``indices``."""
        inputs, targets = jnp.asarray(self.inputs)[indices], jnp.asarray(self.targets)[indices]
        return self.network._sample_losses(theta, inputs, targets)


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

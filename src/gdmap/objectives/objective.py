"""A loss of a parameter pytree, optionally averaged over samples, as an objective."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point
from gdmap.objectives.base import (
    AbstractObjective,
    check_one_real_scalar,
    check_scalar_loss,
    checked_optimal_value,
)
from gdmap.objectives.samples import SampleLosses

NO_SAMPLES = (
    "this objective was made without data=, so it has no samples: gdmap.Objective(loss, params, data=(x, y))"
)


class Objective(AbstractObjective):
    """The objective of a user's ``loss`` over a pytree of parameters.

    Without data ``L(theta) = loss(unravel(theta))``; with ``data=(x, y)`` of ``m`` samples
    ``L(theta) = sum_i p_i loss(unravel(theta), x_i, y_i)``, where ``p_i = 1/m`` unless `weighted`.

    Parameters
    ----------
    loss
        A JAX function ``loss(params)`` or, with data, ``loss(params, x_i, y_i)`` of *one* sample; it returns
        a real scalar.
    params
        A pytree (nested lists, dicts, Equinox modules) that gives the structure and shapes; its
        floating-point arrays are the parameters, in the order of `jax.tree.leaves`, each row-major. Anything
        that is not a number (activation functions, strings) is kept as it is.
    data
        A tuple of arrays or pytrees with one common leading length ``m``, passed to ``loss`` sample by
        sample.
    probabilities
        The weights ``p_i`` of the samples, non-negative with sum 1; uniform by default.
    optimal_value
        ``min L`` if known; see `Function`.

    Raises
    ------
    TypeError
        For integer or complex parameters, or a loss that is not a real scalar.
    ValueError
        For non-finite data, samples of unequal number, or no parameters at all.
    """

    loss: Callable[..., Any]
    template: Any
    data: Any
    probabilities: Any
    dim: int = eqx.field(static=True)
    known_minimum: float | None = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[..., Any],
        params: Any,
        data: Any = None,
        *,
        probabilities: Any = None,
        optimal_value: float | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss must be a JAX function, got {type(loss).__name__}")
        self.loss = loss
        self.template = parameter_template(params)
        self.dim = sum(leaf.size for leaf in jax.tree.leaves(self.template) if is_shape(leaf))
        if self.dim == 0:
            raise ValueError("params holds no floating-point array: there is nothing to optimise")
        self.data = None if data is None else checked_data(data)
        self.probabilities = None
        if probabilities is not None:
            self.probabilities = checked_probabilities(probabilities, self.n_samples)
        self.known_minimum = checked_optimal_value(optimal_value)
        check_scalar_loss(self)

    @property
    def optimal_value(self) -> float | None:
        """``min L`` as given at construction, or ``None``."""
        return self.known_minimum

    def evaluate(self, theta: Any) -> Any:
        """``loss`` of the unravelled parameters, averaged over the samples where there are any."""
        if self.data is None:
            return self.loss(self.unravel(theta))
        values = self.sample_values(theta)
        if self.probabilities is None:
            return jnp.mean(values)
        return jnp.asarray(self.probabilities, values.dtype) @ values

    @entry_point
    def sample_values(self, theta: Any) -> Any:
        """The loss of every sample, shape ``(n_samples,)``; their weighted mean is `value`."""
        if self.data is None:
            raise ValueError(NO_SAMPLES)
        params = self.unravel(theta)
        data = jax.tree.map(lambda array: cast_floating(array, theta.dtype), self.data)
        values = jax.vmap(lambda sample: self.loss(params, *sample))(data)
        check_one_real_scalar(values, (self.n_samples,))
        return values

    @property
    def n_samples(self) -> int:
        """The number of samples ``m``."""
        if self.data is None:
            raise ValueError(NO_SAMPLES)
        return int(jax.tree.leaves(self.data)[0].shape[0])

    @property
    def sample_losses(self) -> "ObjectiveSamples":
        """The losses of single samples."""
        if self.data is None:
            raise ValueError(NO_SAMPLES)
        return ObjectiveSamples(self)

    def weighted(self, p: Any) -> "Objective":
        """The same objective with sampling probabilities ``p`` (non-negative, summing to 1) for the mean.

        A known ``optimal_value`` is dropped: it belonged to the other weights.
        """
        params = self.unravel(np.zeros(self.dim))
        return Objective(self.loss, params, self.data, probabilities=p)

    def ravel(self, params: Any) -> np.ndarray:
        """The flat vector of a pytree with the structure given at construction, in its common dtype."""
        expected = jax.tree.leaves(self.template)
        given = jax.tree.leaves(params)
        expected_structure: Any = jax.tree.structure(self.template)
        if jax.tree.structure(params) != expected_structure:
            raise ValueError("params has another structure than the one this objective was made with")
        arrays = []
        for leaf, shape in zip(given, expected, strict=True):
            if is_shape(shape):
                if np.shape(leaf) != shape.shape:
                    raise ValueError(f"a parameter has shape {np.shape(leaf)}, expected {shape.shape}")
                arrays.append(np.ravel(np.asarray(leaf)))
        return np.concatenate(arrays)

    def unravel(self, theta: Any) -> Any:
        """The parameter pytree of the flat vector ``theta``; every array takes the dtype of ``theta``."""
        self.checked(theta)
        leaves, structure = jax.tree.flatten(self.template)
        position, filled = 0, []
        for leaf in leaves:
            if is_shape(leaf):
                filled.append(theta[position : position + leaf.size].reshape(leaf.shape))
                position += leaf.size
            else:
                filled.append(leaf)
        return jax.tree.unflatten(structure, filled)


class ObjectiveSamples(SampleLosses):
    """The losses of the samples of an `Objective` with data."""

    objective: Objective

    @property
    def n_samples(self) -> int:
        """The number of samples ``n``."""
        return self.objective.n_samples

    def values(self, theta: Any, indices: Any) -> Any:
        """``loss(unravel(theta), x_i, y_i)`` of the samples ``indices``."""
        params = self.objective.unravel(theta)
        chosen = jax.tree.map(lambda array: cast_floating(array, theta.dtype)[indices], self.objective.data)
        return jax.vmap(lambda sample: self.objective.loss(params, *sample))(chosen)


def is_shape(leaf: Any) -> bool:
    """Whether a leaf of a parameter template stands for an array."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def parameter_template(params: Any) -> Any:
    """``params`` with every floating array replaced by its shape; other leaves stay."""

    def shape_of(path: Any, leaf: Any) -> Any:
        is_number = isinstance(leaf, (np.ndarray, np.generic, jax.Array, float, int, complex))
        if not is_number or isinstance(leaf, bool):
            return leaf
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        where = f"params{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {array.dtype}: parameters are real floating-point numbers. "
                "Convert it with .astype(float), or let the loss close over it if it is no parameter"
            )
        if not np.all(np.isfinite(np.asarray(array, dtype=float))):
            raise ValueError(f"{where} is not finite")
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    return jax.tree_util.tree_map_with_path(shape_of, params)


def checked_data(data: Any) -> Any:
    """``data`` as a tuple of NumPy pytrees with one common leading length, all finite."""
    if not isinstance(data, tuple):
        raise TypeError(f"data must be a tuple such as (x, y), got {type(data).__name__}")
    data = jax.tree.map(np.array, data)  # copies: the caller may change theirs
    leaves = jax.tree_util.tree_leaves_with_path(data)
    lengths = {}
    for path, leaf in leaves:
        where = f"data{jax.tree_util.keystr(path)}"
        if leaf.ndim == 0:
            raise ValueError(f"{where} is a scalar: every array needs a leading sample dimension")
        if np.issubdtype(leaf.dtype, np.inexact) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{where} holds values that are not finite: remove or impute those samples")
        lengths[where] = leaf.shape[0]
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the arrays of data differ in their number of samples: {lengths}")
    if next(iter(lengths.values())) == 0:
        raise ValueError("data holds no samples")
    return data


def cast_floating(array: Any, dtype: Any) -> Any:
    """``array`` in ``dtype`` if it is floating point, otherwise (labels, indices) unchanged."""
    return jnp.asarray(array, dtype) if jnp.issubdtype(array.dtype, jnp.floating) else jnp.asarray(array)


def checked_probabilities(probabilities: Any, n_samples: int) -> np.ndarray:
    """Sampling probabilities as an array, or an error if they are not a distribution over the samples."""
    try:
        p = np.asarray(probabilities, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"probabilities must be numbers, one per sample, got {probabilities!r}") from None
    if p.shape != (n_samples,):
        raise ValueError(f"probabilities have shape {p.shape}, expected ({n_samples},): one per sample")
    wrong = np.flatnonzero(~(np.isfinite(p) & (p >= 0)))
    if wrong.size:
        raise ValueError(f"probabilities must be non-negative and sum to 1; entry {wrong[0]} is {p[wrong[0]]}")
    if abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"probabilities must be non-negative and sum to 1; their sum is {float(p.sum())!r}")
    return p

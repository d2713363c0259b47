"""Symmetric matrices known through their products with vectors: Hessians, and what a user brings along."""

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import equinox as eqx
import jax
import numpy as np
from scipy.sparse.linalg import LinearOperator

from gdmap.engines.precision import as_floating, float64, for_tracing, is_traced
from gdmap.objectives import AbstractObjective
from gdmap.spectra.dense import one_thread

PROBE_TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-6}
COLUMNS_AT_ONCE = 16


class HessianOperator(LinearOperator):
    """The Hessian of ``objective`` at ``theta`` as a SciPy linear operator; made by `hessian_operator`.

    The gradient is linearised once; a product then costs about two gradients (measured: a matrix product of
    the network has one derivative, its product rule two).
    """

    def __init__(self, objective: AbstractObjective, theta: np.ndarray) -> None:
        super().__init__(dtype=theta.dtype, shape=(objective.dim, objective.dim))
        self.objective = objective
        self.theta = theta

    @functools.cached_property
    def _product(self) -> Any:
        with float64():
            return _linearised(for_tracing(self.objective), self.theta)

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        with float64():
            return np.asarray(_apply(self._product, np.asarray(v, self.dtype).reshape(-1)))

    def _matmat(self, V: np.ndarray) -> np.ndarray:
        with float64():
            return np.asarray(_apply_columns(self._product, np.asarray(V, self.dtype)))

    def _adjoint(self) -> "HessianOperator":
        return self

    def moved(self, rng: np.random.Generator) -> "HessianOperator":
        """The Hessian with every parameter moved by one unit in the last place, up or down at random."""
        signs = rng.choice(np.array([-1.0, 1.0], self.dtype), len(self.theta))
        return HessianOperator(self.objective, self.theta + signs * np.spacing(self.theta))


@eqx.filter_jit
def _linearised(objective: AbstractObjective, theta: Any) -> Any:
    return jax.linearize(jax.grad(objective.evaluate), theta)[1]


@eqx.filter_jit
def _apply(product: Any, v: Any) -> Any:
    return product(v)


@eqx.filter_jit
def _apply_columns(product: Any, columns: Any) -> Any:
    return jax.lax.map(product, columns.T, batch_size=COLUMNS_AT_ONCE).T


def hessian_operator(objective: AbstractObjective, theta: Any) -> HessianOperator:
    """The Hessian ``H(theta)`` as a `scipy.sparse.linalg.LinearOperator`, shape ``(dim, dim)``, never formed.

    Products are forward-over-reverse, from one linearisation of the gradient at ``theta``, in the dtype of
    ``theta`` (float32 or float64). Its memory is that of the gradient's intermediate values.

    Raises
    ------
    TypeError
        If ``objective`` is no gdmap objective, or ``theta`` is not float32 or float64.
    ValueError
        If ``theta`` has another shape than ``(dim,)`` or is not finite.
    """
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    return HessianOperator(objective, checked_parameters(objective, theta))


def checked_parameters(objective: AbstractObjective, theta: Any) -> np.ndarray:
    """``theta`` as a finite NumPy vector of the objective's dimension, float32 or float64."""
    if is_traced(theta):
        raise TypeError("eigenvalues cannot be computed under a JAX transformation: pass a concrete theta")
    array = np.asarray(as_floating(theta))
    if array.dtype not in PROBE_TOLERANCE:
        raise TypeError(f"theta has dtype {array.dtype}: eigenvalues are computed in float32 or float64")
    objective.checked(array)
    if not np.all(np.isfinite(array)):
        raise ValueError("theta holds values that are not finite, so the Hessian does not exist there")
    return array


def symmetric_operator(objective: Any, theta: Any = None) -> LinearOperator:
    """The Hessian of an objective at ``theta``, or a real symmetric `LinearOperator` given in its place.

    Symmetry is probed: ``<u, A v> = <A u, v>`` for one random pair.

    Raises
    ------
    TypeError
        For anything else, and for complex operators.
    ValueError
        If ``theta`` is missing or superfluous, or the operator is not square or not symmetric.
    """
    if isinstance(objective, AbstractObjective):
        if theta is None:
            raise ValueError("theta is missing: the Hessian of an objective depends on the point")
        return hessian_operator(objective, theta)
    if not isinstance(objective, LinearOperator):
        raise TypeError(
            "expected a gdmap objective or a scipy.sparse.linalg.LinearOperator, got "
            f"{type(objective).__name__}: wrap a matrix with scipy.sparse.linalg.aslinearoperator"
        )
    if theta is not None:
        raise ValueError("a LinearOperator is a fixed matrix: leave theta out")
    if isinstance(objective, HessianOperator):
        return objective
    rows, columns = objective.shape
    if rows != columns or rows < 1:
        raise ValueError(f"the operator has shape {objective.shape}: eigenvalues need a square one")
    if np.dtype(objective.dtype).kind not in "biuf":
        raise TypeError(f"the operator has dtype {objective.dtype}: only real symmetric ones are supported")
    _check_symmetry(objective)
    return objective


def blas_threads(operator: LinearOperator) -> AbstractContextManager[Any]:
    """One BLAS thread between the products of a Hessian.

    The threads of XLA and of BLAS otherwise wait for each other (products then took 1.6 times as long), and
    rounding would depend on the number of threads. Foreign operators may need BLAS themselves.
    """
    return one_thread() if isinstance(operator, HessianOperator) else nullcontext()


def working_dtype(operator: LinearOperator) -> np.dtype:
    """float32 for operators in float32 or less, otherwise float64."""
    dtype = np.dtype(operator.dtype)
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def _check_symmetry(operator: LinearOperator) -> None:
    dtype = working_dtype(operator)
    u, v = np.random.default_rng(0).standard_normal((2, operator.shape[0]))
    product = Products(operator)
    Au, Av = product(u.astype(dtype)).astype(float), product(v.astype(dtype)).astype(float)
    size = max(np.linalg.norm(Au), np.linalg.norm(Av))
    if abs(u @ Av - v @ Au) > PROBE_TOLERANCE[dtype] * size:
        left, right = product.in_units(np.array([u @ Av, v @ Au]))
        raise ValueError(
            f"the operator is not symmetric: <u, A v> = {left:.6g} but <A u, v> = {right:.6g} for random u, v "
            "(a matrix that changes between products, such as one of random mini-batches, fails too)"
        )


class Products:
    """Products with an operator, counted, checked and brought to a size near 1.

    ``A v`` is divided by ``2^exponent``, fixed by the first product that is not zero, so that squares neither
    overflow nor vanish whatever the units of the loss. ``sign=-1`` turns the spectrum round.
    """

    def __init__(self, operator: LinearOperator, sign: int = 1, exponent: int | None = None) -> None:
        self.operator = operator
        self.sign = sign
        self.exponent = exponent
        self.count = 0

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """``sign A v / 2^exponent``, shape ``(dim,)``."""
        self.count += 1
        product = np.asarray(self.operator.matvec(v)).reshape(-1)
        if np.iscomplexobj(product):
            raise TypeError("the operator returns complex products: only real symmetric ones are supported")
        size = float(np.abs(product).max())
        if not math.isfinite(size):
            raise ValueError(not_finite(self.operator))
        if self.exponent is None and size > 0:
            self.exponent = math.frexp(size)[1]
        if product.dtype.kind != "f":
            product = product.astype(float)
        return self.sign * np.ldexp(product, -(self.exponent or 0))

    def in_units(self, scaled: Any) -> Any:
        """Numbers computed from scaled products, in the units of the operator."""
        return np.ldexp(scaled, self.exponent or 0)


def not_finite(operator: LinearOperator) -> str:
    """What to say about an operator whose products are not finite."""
    if isinstance(operator, HessianOperator):
        return (
            "the Hessian is not finite at theta: the loss overflows there or is not twice differentiable "
            f"(loss {float(operator.objective.value(operator.theta))!r})"
        )
    return "the operator's product with a finite vector is not finite"


def dense_matrix(operator: LinearOperator) -> np.ndarray:
    """The matrix itself, shape ``(dim, dim)``, float64 and symmetric."""
    if isinstance(operator, HessianOperator):
        matrix = operator.objective.hessian(operator.theta)
    else:
        matrix = np.asarray(operator.matmat(np.eye(operator.shape[0], dtype=working_dtype(operator))))
    matrix = np.asarray(matrix, dtype=float)
    if not np.all(np.isfinite(matrix)):
        raise ValueError(not_finite(operator))
    return (matrix + matrix.T) / 2

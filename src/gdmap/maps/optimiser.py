"""Any optax optimiser as a map of its parameters and its own state."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from gdmap.engines.precision import entry_point, float64, is_traced
from gdmap.maps.base import Map
from gdmap.maps.optax_update import (
    LIMIT_TIMES,
    Layout,
    Leaf,
    UnusableTransformationError,
    analysed,
    differentiable_update,
    evaluate,
    made_up,
    traced_update,
)
from gdmap.objectives import AbstractObjective, Function

STEP_SIZE = "learning_rate"
# The updates at two very large times agree if they do up to this share of the step.
LIMIT_AGREEMENT = 1e-9


class Optimiser(Map):
    """One update of an optax optimiser as a map; beyond arXiv:2402.13108, which treats plain GD with fixed step.

    The state is one flat vector: the parameters ``theta``, then the floating arrays of the optax state in the
    order of `jax.tree.leaves`, each row-major. Optax runs on the flat ``theta`` in double precision and the new
    state is rounded to the dtype of the old one. Its integers are time: where they matter (Adam's bias
    correction, a schedule) the map ``depends_on_time``, so `step` refuses and `step_at` takes the number of
    updates already made. Schedules are evaluated in double precision.

    The Jacobian is that of the update itself, forward mode. Where the chain rule fails at a zero square root
    although the update is differentiable (Adam at an exact minimum, where ``nu = 0`` and the update is
    ``mu / eps`` to first order), it is the true one-sided derivative; where there is none, `jacobian` says so.

    Parameters
    ----------
    objective
        The loss ``L``.
    factory
        What makes the optax transformation, such as ``optax.sgd``; called as ``factory(**keywords)``.
    frozen
        Floating fields of the optax state held at given values, such as ``{'nu': 1.0}`` for Adam with a frozen
        preconditioner ``sqrt(nu + eps_root) + eps``. A value is a number, an array, or a pytree like the
        parameters. Wherever the update reads the field, before or after updating it, it finds this value.
    limit
        Take the integers to their limit, which makes the map autonomous: no bias correction, a schedule at its
        end value.
    **keywords
        The keywords of the factory. Floating ones are arrays of the map, so that it can be traced, swept and
        continued in them; the others (and those the factory cannot take as traced values) are fixed.

    Raises
    ------
    TypeError
        If ``objective`` is no objective or ``factory`` makes no optax transformation.
    ValueError
        For keywords the factory cannot use, unknown fields in ``frozen``, transformations that are no
        deterministic map of such a state (random ones, line searches), or if ``limit`` does not exist.
    """

    objective: AbstractObjective
    factory: Callable[..., Any]
    floats: dict[str, Any]
    others: dict[str, Any]
    frozen: dict[str, Any]
    limit: bool = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)
    order: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        objective: AbstractObjective,
        factory: Callable[..., Any],
        *,
        frozen: Mapping[str, Any] | None = None,
        limit: bool = False,
        **keywords: Any,
    ) -> None:
        if not isinstance(objective, AbstractObjective):
            raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
        if not callable(factory):
            raise TypeError(
                f"factory must be a function that makes an optax transformation, got {type(factory).__name__}: "
                "write Optimiser(objective, optax.sgd, learning_rate=0.1), not optax.sgd(0.1)"
            )
        if not isinstance(limit, bool):
            raise TypeError(f"limit must be True or False, got {limit!r}")
        if frozen is not None and not isinstance(frozen, Mapping):
            raise TypeError(f"frozen must be a dictionary such as {{'nu': 1.0}}, got {frozen!r}")
        self.objective, self.factory, self.limit = objective, factory, limit
        self.order = tuple(keywords)
        frozen = dict(frozen or {})
        with float64():
            self.floats, self.others = split_keywords(factory, keywords, objective.dim)
            self.layout = self._analysed(tuple(frozen))
        self.frozen = {
            leaf.name: frozen_value(objective, leaf, frozen[leaf.name])
            for leaf in self.layout.leaves
            if leaf.kind == "frozen"
        }
        if limit and self.layout.depends_on_time:
            self._check_limit()

    def update(self, state: Any) -> Any:
        """The next state; for maps that depend on time only with ``limit=True``."""
        if self.depends_on_time:
            raise ValueError(
                f"{self._name} depends on time (bias correction or a schedule), so it is not one map: use "
                "step_at(state, time), or Optimiser(..., limit=True) for what it becomes after many steps"
            )
        return self.update_at(state, 0)

    def update_at(self, state: Any, time: Any) -> Any:
        """The next state when ``time`` updates have been made, traceable; with ``limit=True`` at the limit."""
        return self.update_given(state, self.objective.gradient(self.parameters(state)), time)

    def update_given(self, state: Any, gradient: Any, time: Any) -> Any:
        """`update_at` with the given vector in place of the gradient at the parameters of ``state``."""
        theta, leaves = self._unpacked(state, self._limit_of(time), self.frozen)
        keywords = {name: jnp.asarray(value) for name, value in self.floats.items()}
        program, arguments = traced_update(self._make, self.layout, keywords, theta, gradient, leaves)
        outputs = [0, *(1 + position for position in self.layout.of_kind("float"))]
        results = differentiable_update(program, arguments, outputs)
        return jnp.concatenate([jnp.ravel(result).astype(state.dtype) for result in results])

    @property
    def depends_on_time(self) -> bool:
        """Whether the update changes with the number of updates already made."""
        return self.layout.depends_on_time and not self.limit

    @property
    def state_dim(self) -> int:
        """The number of parameters and of floating numbers in the optax state."""
        return self.objective.dim + sum(self.layout.leaves[place].size for place in self.layout.of_kind("float"))

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the factory, floating scalars as floats."""
        return {
            name: plain(self.floats[name]) if name in self.floats else self.others[name] for name in self.order
        }

    def with_keywords(self, **changes: Any) -> "Optimiser":
        """The same optimiser with some keywords changed or added."""
        known = all(name in self.floats and is_traced(value) for name, value in changes.items())
        if known:
            return self.with_floats(**changes)
        keywords = {**self.keywords, **changes}
        return Optimiser(self.objective, self.factory, frozen=self.frozen, limit=self.limit, **keywords)

    def with_floats(self, **changes: Any) -> "Optimiser":
        """The same optimiser with other values of floating keywords, unchecked, so usable while tracing."""
        floats = {**self.floats, **changes}
        return eqx.tree_at(lambda map_: map_.floats, self, floats)

    @property
    def numbers(self) -> dict[str, float]:
        """The floating scalar keywords; ``step_size`` is the ``learning_rate``."""
        scalars = {name: float(value) for name, value in self.floats.items() if np.ndim(value) == 0}
        return ({"step_size": scalars[STEP_SIZE]} if STEP_SIZE in scalars else {}) | scalars

    def with_number(self, name: str, value: Any) -> "Optimiser":
        """The same optimiser with another value of one of its `numbers`, unchecked, so usable while tracing."""
        return self.with_floats(**{STEP_SIZE if name == "step_size" else name: value})

    @property
    def stability_limit(self) -> float | None:
        """The curvature ``lam`` beyond which the optimiser is unstable on ``lam x^2 / 2``, as ``2 / eta`` for GD.

        The smallest one at which the spectral radius passes 1 (floating point, to 1e-12 relative). ``None`` where
        the update is not linear in state and gradient (Adam), so that there is no such number, where fields are
        frozen, and where it is stable on every quadratic up to 1e12 or on none from 1e-12 on.
        """
        if self.frozen or self.depends_on_time or is_traced(self):
            return None
        return scalar_stability_limit(self)

    @entry_point
    def initial_state(self, theta: Any) -> Any:
        """The state in which a run from the parameters ``theta`` begins, shape ``(state_dim,)``."""
        self.objective.checked(theta)
        keywords = {name: jnp.asarray(value) for name, value in self.floats.items()}
        leaves = jax.tree.leaves(self._make(keywords).init(theta))
        kept = [leaves[position] for position in self.layout.of_kind("float")]
        return jnp.concatenate([theta, *(jnp.ravel(leaf).astype(theta.dtype) for leaf in kept)])

    def parameters(self, state: Any) -> Any:
        """The parameters ``theta`` in ``state``."""
        return self.checked(state)[: self.objective.dim]

    def opt_state(self, state: Any, time: Any = 0) -> Any:
        """The optax state in ``state`` when ``time`` updates have been made, as optax's own pytree."""
        with float64():
            _, leaves = self._unpacked(self.checked(state), self._limit_of(time), self.frozen)
            if not is_traced(leaves):
                kept = [leaf if leaf.kind == "count" else None for leaf in self.layout.leaves]
                leaves = [np.asarray(x, leaf and leaf.dtype) for x, leaf in zip(leaves, kept, strict=True)]
            return jax.tree.unflatten(self.layout.structure, leaves)

    def jacobian(self, state: Any) -> Any:
        """The Jacobian of `step` at ``state``, shape ``(state_dim, state_dim)``.

        Raises
        ------
        ValueError
            If the update has no derivative there.
        """
        jacobian = super().jacobian(state)
        if not is_traced(jacobian) and not is_derivative(np.asarray(jacobian)):
            raise ValueError(no_derivative(self))
        return jacobian

    def slogdet(self, state: Any) -> Any:
        """Sign and logarithm of the modulus of the Jacobian determinant; errors as `jacobian`."""
        if not is_traced(self, state):
            self.jacobian(state)
        return super().slogdet(state)

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self.keywords.items())
        shown += f", frozen={sorted(self.frozen)}" if self.frozen else ""
        shown += ", limit=True" if self.limit else ""
        return f"Optimiser({type(self.objective).__name__}, {self._name}{shown})"

    @property
    def _name(self) -> str:
        return getattr(self.factory, "__name__", type(self.factory).__name__)

    def _make(self, floats: Mapping[str, Any]) -> Any:
        return transformation(self.factory, {**floats, **self.others})

    def _limit_of(self, time: Any) -> Any:
        return LIMIT_TIMES[0] if self.limit and self.layout.depends_on_time else time

    def _unpacked(self, state: Any, time: Any, frozen: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """The parameters and the leaves of the optax state in ``state`` when ``time`` updates have been made."""
        theta, rest = state[: self.objective.dim], state[self.objective.dim :]
        position, leaves = 0, []
        for leaf in self.layout.leaves:
            value: Any
            if leaf.kind == "float":
                value = rest[position : position + leaf.size].reshape(leaf.shape)
                position += leaf.size
            elif leaf.kind == "frozen":
                value = jnp.asarray(frozen[leaf.name])
            elif leaf.kind == "count":
                # Wider than optax's own 32 bits, from which schedules would be computed in single precision.
                value = jnp.asarray(leaf.initial + time, int)
            elif leaf.kind == "switch":
                value = jnp.where(jnp.asarray(time) == 0, leaf.initial, leaf.later).astype(leaf.dtype)
            else:
                value = jnp.zeros(leaf.shape, leaf.dtype)
            leaves.append(value)
        return theta, leaves

    def _analysed(self, frozen: tuple[str, ...]) -> Layout:
        try:
            return analysed(self._make, self.floats, self.objective.dim, frozen, self._name)
        except UnusableTransformationError as problem:
            raise ValueError(str(problem)) from None

    def _check_limit(self) -> None:
        """Refuse if the updates at very large times differ (keywords that are being traced: on made-up values)."""
        with float64(), jax.ensure_compile_time_eval():
            keywords, theta, gradient = made_up(self.floats, self.objective.dim)
            frozen = {
                name: np.ones(value.shape) if is_traced(value) else value for name, value in self.frozen.items()
            }
            numbers = np.random.default_rng(1).uniform(0.5, 1.5, self.state_dim - self.objective.dim)
            updates = []
            for time in LIMIT_TIMES:
                _, leaves = self._unpacked(jnp.concatenate([theta, numbers]), time, frozen)
                program, arguments = traced_update(self._make, self.layout, keywords, theta, gradient, leaves)
                updates.append(evaluate(program, arguments)[0] - theta)
        if is_traced(updates):
            return
        first, *others = (np.asarray(update) for update in updates)
        if any(np.abs(other - first).max() > LIMIT_AGREEMENT * np.abs(first).max() for other in others):
            raise ValueError(
                f"{self._name} has no limit: its updates after {', '.join(map(str, LIMIT_TIMES))} steps differ "
                "(a schedule that never settles, or a decay rate too close to 1). Use step_at without limit=True"
            )


class ScalarJacobian(eqx.Module):
    """The Jacobian of an optimiser on ``lam x^2 / 2``, at rest, as a function of ``lam``."""

    map: Optimiser

    def __call__(self, curvature: Any) -> Any:
        """Shape ``(state_dim, state_dim)``."""

        def update(state: Any) -> Any:
            return self.map.update_given(state, curvature * self.map.parameters(state), 0)

        return jax.jacfwd(update)(jnp.zeros(self.map.state_dim))


def scalar_stability_limit(map_: Optimiser) -> float | None:
    """`Optimiser.stability_limit`, by a scan over twelve decades either side of 1 and bisection."""
    if any(np.ndim(value) for value in map_.floats.values()):
        return None
    scalar = Optimiser(Function(lambda x: jnp.sum(x * x) / 2, 1), map_.factory, limit=map_.limit, **map_.keywords)
    with float64():
        if not (is_linear(scalar) and is_alike_in_all_components(map_, scalar)):
            return None
        jacobians = jax.jit(lambda curvatures: jax.vmap(ScalarJacobian(scalar))(curvatures))

        def radius(curvatures: np.ndarray) -> np.ndarray:
            return np.abs(np.linalg.eigvals(np.asarray(jacobians(curvatures)))).max(axis=1)

        grid = np.geomspace(1e-12, 1e12, 4801)
        unstable = radius(grid) > 1 + 1e-12
        if unstable[0] or not unstable.any():
            return None
        first = int(np.argmax(unstable))
        return float(brentq(lambda lam: radius(np.array([lam]))[0] - 1, grid[first - 1], grid[first], rtol=1e-12))


def is_linear(scalar: Optimiser) -> bool:
    """Whether doubling state and gradient doubles the update of an optimiser of one parameter."""
    state = np.random.default_rng(0).uniform(0.5, 1.5, scalar.state_dim)
    once, twice = (np.asarray(scalar.update_given(c * state, c * np.ones(1), 0)) for c in (1.0, 2.0))
    return bool(np.allclose(twice, 2 * once, rtol=1e-12, atol=0))


def is_alike_in_all_components(map_: Optimiser, scalar: Optimiser) -> bool:
    """Whether an optimiser does with every parameter what it does with one."""
    dim = map_.objective.dim
    if map_.state_dim != dim * scalar.state_dim:
        return False
    slots = np.random.default_rng(0).uniform(0.5, 1.5, scalar.state_dim)
    one = np.asarray(scalar.update_given(slots, np.ones(1), 0))
    all_ = np.asarray(map_.update_given(np.repeat(slots, dim), np.ones(dim), 0))
    return bool(np.allclose(all_, np.repeat(one, dim), rtol=1e-12, atol=0))


def transformation(factory: Callable[..., Any], keywords: Mapping[str, Any]) -> Any:
    """``factory(**keywords)``, or an error if that is no optax transformation."""
    made = factory(**keywords)
    if hasattr(made, "gradient_transformation"):
        made = made.gradient_transformation()
    if not callable(getattr(made, "init", None)) or not callable(getattr(made, "update", None)):
        raise NotATransformationError(
            f"factory must return an optax transformation (with init and update), but it returned {made!r}"
        )
    return made


class NotATransformationError(TypeError):
    """What the factory returned has no ``init`` and ``update``."""


def split_keywords(
    factory: Callable[..., Any], keywords: Mapping[str, Any], dim: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that may be traced, as arrays, and the others as they are.

    A floating keyword on whose value the factory branches in Python is one of the others.
    """
    step_size = keywords.get(STEP_SIZE, 1.0)
    is_number = isinstance(step_size, int) and not isinstance(step_size, bool) and step_size > 0
    if not (is_number or is_float(step_size) or callable(step_size)):
        raise ValueError(f"{STEP_SIZE} must be a positive number or an optax schedule, got {step_size!r}")
    floats = {name: checked_float(name, value) for name, value in keywords.items() if is_float(value)}
    fixed = {name: value for name, value in keywords.items() if name not in floats}
    name_of_factory = getattr(factory, "__name__", repr(factory))

    def attempt(chosen: set[str]) -> None:
        rest = {**fixed, **{name: plain(value) for name, value in floats.items() if name not in chosen}}

        def update(traced: dict[str, Any], theta: Any) -> Any:
            made = transformation(factory, {**traced, **rest})
            return made.update(theta, made.init(theta), theta)

        shapes = {name: jax.ShapeDtypeStruct(np.shape(floats[name]), np.float64) for name in chosen}
        jax.eval_shape(update, shapes, jax.ShapeDtypeStruct((dim,), np.float64))

    def works(chosen: set[str]) -> bool:
        try:
            attempt(chosen)
        except Exception:
            return False
        return True

    traceable = set(floats)
    if not works(traceable):
        must = {name for name, value in floats.items() if is_traced(value)}
        try:
            attempt(must)
        except NotATransformationError:
            raise
        except jax.errors.ConcretizationTypeError:
            raise ValueError(
                f"{name_of_factory} decides on the value of {' or '.join(sorted(must))} in Python, so it cannot "
                "be traced or swept: give a number"
            ) from None
        except Exception as error:
            more = (
                "(optimisers that need more than the gradient, such as L-BFGS or Polyak steps, are not supported)"
            )
            raise ValueError(
                f"{name_of_factory} cannot be run as a map of parameters and optimiser state: {error} "
                + (more if "keyword-only" in str(error) else "")
            ) from error
        traceable = must | {name for name in floats if works(must | {name})}
        traceable = traceable if works(traceable) else must
    fixed |= {name: plain(value) for name, value in floats.items() if name not in traceable}
    return {name: value for name, value in floats.items() if name in traceable}, fixed


def is_float(value: Any) -> bool:
    """Whether a keyword is a floating number or array."""
    if isinstance(value, float):
        return True
    return isinstance(value, (np.ndarray, np.generic, jax.Array)) and jnp.issubdtype(value.dtype, jnp.floating)


def checked_float(name: str, value: Any) -> Any:
    """A floating keyword as an array, or an error if it is not a number."""
    if is_traced(value):
        return value
    array = np.array(value, dtype=np.float64)
    if np.any(np.isnan(array)) or (name == STEP_SIZE and not np.all(np.isfinite(array) & (array > 0))):
        requirement = "positive and finite" if name == STEP_SIZE else "a number"
        raise ValueError(f"{name} must be {requirement}, got {plain(array)!r}")
    return array


def plain(value: Any) -> Any:
    """A concrete scalar as a float, anything else as it is."""
    return value if is_traced(value) or np.ndim(value) else float(value)


def frozen_value(objective: AbstractObjective, leaf: Leaf, value: Any) -> Any:
    """The value at which a field of the optimiser's state is held, in the shape of the field."""
    if not is_traced(value):
        of_parameters = leaf.shape == (objective.dim,)
        is_array = isinstance(value, (int, float, list, np.ndarray, np.generic, jax.Array))
        if of_parameters and not (is_array and np.shape(value) in ((), leaf.shape)):
            value = objective.ravel(value)
        value = np.asarray(value, dtype=np.float64)
        if not np.all(np.isfinite(value)):
            raise ValueError(f"frozen[{leaf.name!r}] is not finite")
    if np.shape(value) not in ((), leaf.shape):
        raise ValueError(
            f"frozen[{leaf.name!r}] has shape {np.shape(value)}, expected a number or shape {leaf.shape}"
        )
    return jnp.broadcast_to(value, leaf.shape) if is_traced(value) else np.broadcast_to(value, leaf.shape).copy()


def is_derivative(jacobian: np.ndarray) -> bool:
    """Whether every entry is finite, and none the reciprocal of a square root that stands for zero."""
    largest = float(np.finfo(jacobian.dtype).tiny) ** -0.2
    return bool(np.all(np.isfinite(jacobian)) and np.abs(jacobian).max(initial=0.0) < largest)


def no_derivative(map_: Optimiser) -> str:
    """What to do where the update of an optimiser has no derivative."""
    fields = [leaf.name for leaf in map_.layout.leaves if leaf.kind == "float"]
    advice = [f"hold one of the fields {', '.join(map(repr, fields))} fixed with frozen="] if fields else []
    try:
        if "eps_root" in inspect.signature(map_.factory).parameters:
            advice.append("give eps_root > 0")
    except (TypeError, ValueError):
        pass
    return (
        "the update has no derivative at this state, or none that is finite: a sign, norm or square root vanishes"
        + (f". You may {', or '.join(advice)}" if advice else "")
    )

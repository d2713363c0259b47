"""Piecewise analytic functions: their kinks, their pieces, and the analytic function that holds on each piece.

Every comparison that depends on the parameters (the two sides of a ReLU, the winner of a maximum) is a *kink*. A
*pattern* says on which side of each kink a point lies. For a fixed pattern the program has no comparison left: it
is an analytic function, on all of parameter space unless a logarithm, a root or a quotient limits it, and equal to
the original wherever the original has this pattern.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from gdmap.engines import ranges as interval
from gdmap.engines.balls import structure
from gdmap.engines.balls.arithmetic import EITHER, UNDECIDED, Arithmetic, UndecidedError
from gdmap.engines.balls.evaluate import RULES, Evaluator, is_plain, refuse_narrow, refuse_rounding
from gdmap.engines.balls.mid_rad import MidRad
from gdmap.engines.balls.tracked import Tracked, TrackedValue
from gdmap.engines.intervals import constant_interval, hull
from gdmap.engines.precision import float64
from gdmap.engines.program import (
    CUSTOM_RULES,
    UnsupportedProgramError,
    flattened,
    flow_of,
    opened,
    replay,
)
from gdmap.engines.shifts import shifts

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
# Directions of differentiation that are pushed through a program together.
DIRECTIONS = 128
ON_A_KINK = "the point lies on a kink, or so near one that this precision does not tell"


class Pattern(NamedTuple):
    """One piece: for each kink an int8 mask (1: the first operand is larger, or this element wins; 2: either),
    and for each shift by a maximum a number near that maximum (any would do).
    """

    masks: tuple[np.ndarray, ...]
    shifts: tuple[np.ndarray, ...]

    @property
    def digest(self) -> str:
        """A hash of the masks: equal for points of one pattern."""
        return hashlib.sha256(b"".join(np.ascontiguousarray(mask).tobytes() for mask in self.masks)).hexdigest()


class Kink(NamedTuple):
    """An equation of the program that has two analytic sides (or more)."""

    index: int  # type: ignore[assignment]
    equation: Any
    mask_shape: tuple[int, ...]


class PiecewiseProgram:
    """A function ``R^dim -> R`` (or to a vector) as analytic pieces.

    Parameters
    ----------
    function
        A traceable function of one float64 array of shape ``(dim,)``.
    dim
        The number of parameters.
    exact_decimals
        Floats among the constants stand for the decimal numbers that they print as.

    Raises
    ------
    UnsupportedProgramError
        For operations that are no piecewise analytic formula (rounding, indices that depend on parameters, loops
        of unknown length), by name.
    """

    def __init__(self, function: Callable[..., Any], dim: int, exact_decimals: bool = False) -> None:
        self.dim, self.exact_decimals = dim, exact_decimals
        with float64():
            traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((dim,), np.float64))
            self.program: ClosedJaxpr = flattened(traced)
        self.ranges = interval.ranges(self.program, exact_decimals)
        self.dependent = interval.dependent(self.program)
        found = shifts(self.program)
        self.shift_indices = tuple(index for index in found.maxima if self.depends(self.program.jaxpr.eqns[index]))
        self.kinks: list[Kink] = []
        self.resolved: dict[int, Callable[[Sequence[Any]], Any]] = {}
        for index, equation in enumerate(self.program.jaxpr.eqns):
            if not self.depends(equation) or index in self.shift_indices:
                continue
            if equation.primitive.name == "stop_gradient" and index not in found.stopped:
                raise UnsupportedProgramError(
                    "the loss uses stop_gradient, so that training does not follow the gradient of the loss: "
                    "nothing is proved about such a map"
                )
            settled = self.settled(equation)
            if settled is not None:
                self.resolved[index] = settled
            elif not computes_with_reals(equation):
                continue
            elif equation.primitive.name in KINKS:
                self.kinks.append(Kink(index, equation, KINKS[equation.primitive.name].mask_shape(equation)))
            else:
                refuse_unknown(equation)
        for equation in self.program.jaxpr.eqns:
            refuse_narrow(equation)
        self.small_programs: dict[int, ClosedJaxpr] = {}
        self.assumed_rules = check_own_derivatives(traced, dim)
        self.conditions = self.limits_of_domain()

    def limits_of_domain(self) -> list[Any]:
        """What limits the domain of the loss and of the functions of the patterns.

        Of the loss: a comparison with a number that may be undefined has a third outcome. Of the patterns: ranges
        that hang on kinks help nothing there: ``sqrt(1 + |t|)`` is defined everywhere, but the function
        ``sqrt(1 + t)`` of one side is not.
        """
        found = interval.domain_conditions(self.program, self.ranges, self.exact_decimals)
        if not self.is_smooth:
            known = interval.ranges(self.value_program, self.exact_decimals)
            found = found + interval.domain_conditions(self.value_program, known, self.exact_decimals)
        return found

    @property
    def is_smooth(self) -> bool:
        """Whether there is one piece only, as far as kinks go."""
        return not self.kinks

    @property
    def is_analytic_everywhere(self) -> bool:
        """Whether the function of every pattern is analytic on all of ``R^dim``: nothing limits its domain."""
        return not self.conditions

    def depends(self, equation: Any) -> bool:
        """Whether an operand of an equation depends on the parameters."""
        return any(not isinstance(atom, Literal) and atom in self.dependent for atom in equation.invars)

    def range_of(self, atom: Any) -> Any:
        """The range of an operand over all parameters."""
        if isinstance(atom, Literal):
            return hull(constant_interval(atom.val, self.exact_decimals))
        return self.ranges[atom]

    def settled(self, equation: Any) -> Callable[[Sequence[Any]], Any] | None:
        """The result of what looks like a kink but is none, because the ranges decide it for all parameters."""
        name = equation.primitive.name
        shape = equation.outvars[0].aval.shape
        if name == "is_finite":
            return lambda operands: np.ones(shape, bool)
        if name == "abs":
            sign = definite_sign(self.range_of(equation.invars[0]))
            return None if sign is None else (lambda operands: operands[0] if sign > 0 else -operands[0])
        if name == "sign":
            (a,) = (self.range_of(atom) for atom in equation.invars)
            if strictly_above(a, ZERO) or strictly_above(ZERO, a):
                outcome = 1.0 if strictly_above(a, ZERO) else -1.0
                return lambda operands: np.full(shape, outcome)
            return None
        if name in ("max", "min"):
            a, b = (self.range_of(atom) for atom in equation.invars)
            if a.lower >= b.upper or b.lower >= a.upper:
                first = (a.lower >= b.upper) == (name == "max")
                return lambda operands: jnp.broadcast_to(operands[0 if first else 1], shape)
            return None
        if name in COMPARISONS:
            if equation.invars[0] is equation.invars[1]:
                value = name in ("ge", "le", "eq")
                return lambda operands: np.full(shape, value)
            a, b = (self.range_of(atom) for atom in equation.invars)
            if not strictly_above(a, b) and not strictly_above(b, a):
                return None
            value = {"eq": False, "ne": True}.get(name, strictly_above(a, b) == (name in ("gt", "ge")))
            return lambda operands: np.full(shape, value)
        return None

    # The analytic function of a pattern --------------------------------------------------------------------------

    def forced(
        self,
        theta: Any,
        masks: Sequence[Any],
        levels: Sequence[Any],
        watch: Callable[[Any, Sequence[Any]], None] | None = None,
    ) -> Any:
        """The function of a pattern, traceable in ``theta``; ``masks`` are booleans, ``levels`` the shifts.

        ``watch(equation, operands)`` is called at every equation.
        """
        numbers = {
            id(self.program.jaxpr.eqns[index]): level
            for index, level in zip(self.shift_indices, levels, strict=True)
        }
        sides = {id(kink.equation): mask for kink, mask in zip(self.kinks, masks, strict=True)}
        settled = {id(self.program.jaxpr.eqns[index]): result for index, result in self.resolved.items()}

        def rule(equation: Any, operands: Sequence[Any]) -> list[Any] | None:
            key = id(equation)
            if watch is not None:
                watch(equation, operands)
            if key in numbers:
                return [numbers[key]]
            if key in settled:
                return [settled[key](operands)]
            if key in sides:
                return [KINKS[equation.primitive.name].forced(equation, operands, sides[key])]
            if equation.primitive.name == "stop_gradient":
                return list(operands)
            exact = EXACT_DERIVATIVES.get(equation.primitive.name)
            return None if exact is None else [exact(*operands)]

        (result,) = replay(self.program.jaxpr, self.program.consts, [theta], rule)
        return result

    @functools.cached_property
    def aspects(self) -> tuple[list[Any], list[Any]]:
        """The shapes of masks and shifts, for tracing."""
        masks = [jax.ShapeDtypeStruct(kink.mask_shape, np.bool_) for kink in self.kinks]
        levels = [
            jax.ShapeDtypeStruct(self.program.jaxpr.eqns[index].outvars[0].aval.shape, np.float64)
            for index in self.shift_indices
        ]
        return masks, levels

    @functools.cached_property
    def value_program(self) -> ClosedJaxpr:
        """``(theta, masks, shifts) -> L`` as a flat program."""
        return self.traced(lambda theta, masks, levels: self.forced(theta, masks, levels))

    @functools.cached_property
    def gradient_program(self) -> ClosedJaxpr:
        """``(theta, masks, shifts) -> grad L`` as a flat program."""
        return self.traced(jax.grad(self.forced))

    @functools.cached_property
    def jacobian_program(self) -> ClosedJaxpr:
        """``(theta, directions, masks, shifts) -> D f . direction`` (rows) as a flat program."""
        return self.traced_along(self.forced)

    @functools.cached_property
    def hessian_program(self) -> ClosedJaxpr:
        """``(theta, directions, masks, shifts) -> H direction`` (rows) as a flat program."""
        return self.traced_along(jax.grad(self.forced))

    @property
    def n_directions(self) -> int:
        """How many directions go through a derivative program at once."""
        return min(self.dim, DIRECTIONS)

    def traced(self, function: Callable[..., Any], *more: Any) -> ClosedJaxpr:
        theta = jax.ShapeDtypeStruct((self.dim,), np.float64)
        masks, levels = self.aspects
        with float64():
            return flattened(jax.make_jaxpr(function)(theta, *more, masks, levels))

    def traced_along(self, function: Callable[..., Any]) -> ClosedJaxpr:
        def along(theta: Any, directions: Any, masks: Any, levels: Any) -> Any:
            def derivative(direction: Any) -> Any:
                return jax.jvp(lambda point: function(point, masks, levels), (theta,), (direction,))[1]

            return jax.vmap(derivative)(directions)

        return self.traced(along, jax.ShapeDtypeStruct((self.n_directions, self.dim), np.float64))

    # Enclosures --------------------------------------------------------------------------------------------------

    def pattern(self, theta: Any, arithmetic: Arithmetic) -> Pattern:
        """The pattern at ``theta`` (exact float64 numbers or a value of the arithmetic, which may be a box).

        Raises
        ------
        UndecidedError
            If ``theta`` lies on a kink, or so near that this precision does not tell.
        """
        tracked = Tracked(arithmetic)
        recorder = Recorder(self, tracked)
        with arithmetic.active():
            value = tracked.variable(as_value(theta, arithmetic))
            (result,) = Evaluator(self.program, tracked).run([value], recorder)
            checked(tracked, tracked.constant(result) if is_plain(result) else result)
        return Pattern(tuple(recorder.masks), tuple(recorder.levels))

    def every_pattern(self) -> Pattern:
        """All patterns at once: each kink on either side."""
        masks, levels = self.aspects
        return Pattern(
            tuple(np.full(mask.shape, EITHER, np.int8) for mask in masks),
            tuple(np.zeros(level.shape) for level in levels),
        )

    def value(self, theta: Any, pattern: Pattern, arithmetic: Arithmetic) -> Any:
        """An enclosure of the function of the pattern at ``theta``."""
        return self.single(self.value_program, theta, pattern, arithmetic)

    def gradient(self, theta: Any, pattern: Pattern, arithmetic: Arithmetic) -> Any:
        """An enclosure of its gradient, shape ``(dim,)``."""
        return self.single(self.gradient_program, theta, pattern, arithmetic)

    def jacobian(self, theta: Any, pattern: Pattern, arithmetic: Arithmetic) -> Any:
        """An enclosure of the Jacobian of a vector function, shape ``(n_outputs, dim)``."""
        rows = self.columns(self.jacobian_program, theta, pattern, arithmetic)
        return arithmetic.rearrange(lambda a: np.moveaxis(a, 0, -1), rows)

    def hessian(self, theta: Any, pattern: Pattern, arithmetic: Arithmetic, directions: Any = None) -> Any:
        """An enclosure of the Hessian of the function of the pattern at ``theta``, shape ``(dim, dim)``.

        With ``directions`` of shape ``(k, dim)`` (floats, or elements of the arithmetic) the products of the
        Hessian with them, shape ``(k, dim)``.
        """
        return self.columns(self.hessian_program, theta, pattern, arithmetic, directions)

    def single(self, program: ClosedJaxpr, theta: Any, pattern: Pattern, arithmetic: Arithmetic) -> Any:
        with arithmetic.active():
            inputs = [as_value(theta, arithmetic), *pattern.masks, *pattern.shifts]
            (result,) = Evaluator(program, arithmetic).run(inputs)
            return checked(arithmetic, as_value(result, arithmetic))

    def columns(
        self,
        program: ClosedJaxpr,
        theta: Any,
        pattern: Pattern,
        arithmetic: Arithmetic,
        directions: Any = None,
    ) -> Any:
        k = self.n_directions
        with arithmetic.active():
            theta = as_value(theta, arithmetic)
            evaluator = Evaluator(program, arithmetic, moving=[1])
            directions = as_value(np.eye(self.dim) if directions is None else directions, arithmetic)
            count = arithmetic.shape(directions)[0]
            rest = arithmetic.zeros((-count % k, self.dim))
            directions = arithmetic.rearrange(lambda *parts: np.concatenate(parts), directions, rest)
            evaluator.start([theta, None, *pattern.masks, *pattern.shifts])
            blocks = []
            for start in range(0, count, k):
                block = arithmetic.rearrange(lambda a, start=start: a[start : start + k], directions)
                (rows,) = evaluator.outputs([theta, block, *pattern.masks, *pattern.shifts])
                blocks.append(as_value(rows, arithmetic))
            matrix = arithmetic.rearrange(lambda *parts: np.concatenate(parts)[:count], *blocks)
            return checked(arithmetic, matrix)


def as_value(theta: Any, arithmetic: Arithmetic) -> Any:
    """``theta`` as a value of the arithmetic; plain numbers are exact."""
    return arithmetic.constant(theta) if is_plain(theta) else theta


def checked(arithmetic: Arithmetic, value: Any) -> Any:
    """``value``, or an error if it is not a bounded enclosure."""
    if not arithmetic.is_finite(value):
        raise UndecidedError(
            "the value is not finite: an overflow, or a logarithm, root or quotient of a number outside its domain"
        )
    return value


# Programs that cannot be pieces ----------------------------------------------------------------------------------


def computes_with_reals(equation: Any) -> bool:
    """Whether an equation takes or gives real numbers, not booleans and integers alone."""
    atoms = [*equation.invars, *equation.outvars]
    return any(jnp.issubdtype(atom.aval.dtype, np.floating) for atom in atoms)


def refuse_unknown(equation: Any) -> None:
    """Refuse an operation on the parameters that is no piecewise analytic formula, or has no rule."""
    name = equation.primitive.name
    if name == "convert_element_type":
        refuse_rounding(equation)
    elif name in ("argmax", "argmin", "sort", "top_k"):
        raise UnsupportedProgramError(
            f"the loss orders numbers that depend on the parameters ({name}), which is not supported"
        )
    elif name in ("floor", "ceil", "round", "rem", "nextafter", "reduce_precision"):
        raise UnsupportedProgramError(
            f"the loss rounds numbers that depend on the parameters ({name}): it jumps unseen by its gradient"
        )
    elif name not in RULES:
        raise UnsupportedProgramError(
            f"the loss uses the primitive '{name}', which has no rule in ball arithmetic"
        )


def check_own_derivatives(traced: ClosedJaxpr, dim: int) -> tuple[str, ...]:
    """Functions with an own derivative rule (``custom_jvp``) that is not shown to be the derivative of their
    formula.

    JAX's own rules are known. Others are compared with the formula at values that occur for a few random
    parameters: straight-through estimators and clipped gradients are refused; what agrees there remains an
    assumption, by name.
    """
    equations: list[Any] = []

    def operands_of_rules(theta: Any) -> list[Any]:
        equations.clear()
        found: dict[int, Sequence[Any]] = {}

        def rule(equation: Any, operands: Sequence[Any]) -> None:
            if (
                equation.primitive.name in CUSTOM_RULES
                and id(equation) not in found
                and not is_rule_of_jax(equation)
            ):
                equations.append(equation)
                found[id(equation)] = operands

        replay(traced.jaxpr, traced.consts, [theta], rule)
        return list(found.values())

    with float64():
        program = flattened(jax.make_jaxpr(operands_of_rules)(jax.ShapeDtypeStruct((dim,), np.float64)))
        if not equations:
            return ()
        pairs = [derivatives(equation) for equation in equations]
        rng = np.random.default_rng(0)
        arithmetic = MidRad()
        for scale in (0.3, 1.0, 3.0):
            try:
                with arithmetic.active():
                    values = Evaluator(program, arithmetic).run(
                        [arithmetic.constant(scale * rng.normal(size=dim))]
                    )
            except UndecidedError:
                continue
            remaining = iter(values)
            for equation, pair in zip(equations, pairs, strict=True):
                operands = [generic(next(remaining), arithmetic, rng) for _ in equation.invars]
                operands = [
                    np.asarray(o).astype(a.aval.dtype) for o, a in zip(operands, equation.invars, strict=True)
                ]
                weights = [rng.normal(size=variable.aval.shape) for variable in equation.outvars]
                for own, true in zip(*pair(operands, weights), strict=True):
                    refuse_difference(np.asarray(own), np.asarray(true))
    return tuple(sorted({name_of_rule(equation) for equation in equations}))


# Functions of JAX that come with an own derivative rule, which is right.
JAX_RULES: tuple[Callable[..., Any], ...] = (jax.nn.relu, jax.nn.relu6, jnp.logaddexp)


def is_rule_of_jax(equation: Any) -> bool:
    """Whether a function with its own rule is one of JAX's: the same formula and the same derivative, as
    traced."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    own = with_own_rule(equation)
    arguments = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in equation.invars]
    if any(argument.dtype != np.float64 for argument in arguments):
        return False
    traces = derivative_flow(lambda *operands: own(*operands)[0], arguments)
    for known in JAX_RULES:
        try:
            if derivative_flow(known, arguments) == traces:
                return True
        except TypeError:  # another number of arguments
            continue
    return False


def derivative_flow(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
    """The data flow of a function and of its derivative, rules applied, whatever the shapes."""
    formula = flattened(jax.make_jaxpr(function)(*arguments))
    derivative = flattened(
        jax.make_jaxpr(lambda points, directions: jax.jvp(function, tuple(points), tuple(directions)))(
            list(arguments), list(arguments)
        )
    )
    return flow_of(formula.jaxpr, formula.consts), flow_of(derivative.jaxpr, derivative.consts)


def name_of_rule(equation: Any) -> str:
    """The name of a function with its own derivative rule."""
    inner, _ = opened(equation.params[CUSTOM_RULES[equation.primitive.name]])
    return str(getattr(inner.debug_info, "func_name", "") or equation.primitive.name)


def with_own_rule(equation: Any) -> Callable[..., list[Any]]:
    """The function that an equation calls, its own derivative rule included."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)

    def own(*operands: Any) -> list[Any]:
        return list(equation.primitive.bind(*functions, *operands, **parameters))

    return own


def generic(value: Any, arithmetic: Arithmetic, rng: np.random.Generator) -> np.ndarray:
    """Floats near a value, off the kinks that it may lie on; integers as they are."""
    if is_plain(value) and not np.issubdtype(value.dtype, np.floating):
        return value
    middle = value if is_plain(value) else arithmetic.midpoint(value)
    return middle + 1e-3 * (1 + np.abs(middle)) * rng.normal(size=middle.shape)


def derivatives(equation: Any) -> Callable[..., Any]:
    """``(operands, weights) -> `` the gradients by a function's own rule, and by its formula."""
    inner, consts = opened(equation.params[CUSTOM_RULES[equation.primitive.name]])
    own = with_own_rule(equation)
    real = [index for index, atom in enumerate(equation.invars) if jnp.issubdtype(atom.aval.dtype, np.floating)]

    def gradients(function: Callable[..., Any], operands: Sequence[Any], weights: Sequence[Any]) -> Any:
        def weighted(*moving: Any) -> Any:
            arguments = list(operands)
            for index, value in zip(real, moving, strict=True):
                arguments[index] = value
            results = function(*arguments)
            return sum(
                jnp.sum(w * r)
                for w, r in zip(weights, results, strict=True)
                if jnp.issubdtype(r.dtype, np.floating)
            )

        return jax.grad(weighted, tuple(range(len(real))))(*(operands[index] for index in real))

    return jax.jit(
        lambda operands, weights: (
            gradients(own, operands, weights),
            gradients(lambda *arguments: replay(inner, consts, arguments), operands, weights),
        )
    )


def refuse_difference(own: np.ndarray, true: np.ndarray) -> None:
    """Refuse two gradients that differ by more than rounding where both are finite."""
    finite = np.isfinite(own) & np.isfinite(true)
    difference = np.abs(np.where(finite, own - true, 0.0))
    if np.any(difference > 1e-5 * (1e-3 + np.abs(np.where(finite, true, 0.0)).max(initial=0.0))):
        raise UnsupportedProgramError(
            "the loss uses a function whose own derivative rule (custom_jvp, custom_vjp) is not the derivative of "
            "its formula, as in straight-through estimators: training does not follow the gradient of the loss; "
            "nothing is proved about such a map"
        )


# Derivatives whose rule in JAX contains a rounded constant, with the exact one -----------------------------------


def half_density(x: Any) -> Any:
    """``exp(-x^2) / sqrt(pi)``."""
    return jnp.exp(-x * x) * jax.lax.rsqrt(4 * jax.lax.atan(jnp.ones((), x.dtype)))


@jax.custom_jvp
def exact_erf(x: Any) -> Any:
    """``erf`` with its exact derivative."""
    return jax.lax.erf(x)


@jax.custom_jvp
def exact_erfc(x: Any) -> Any:
    """``erfc`` with its exact derivative."""
    return jax.lax.erfc(x)


@jax.custom_jvp
def exact_cbrt(x: Any) -> Any:
    """The cube root with its exact derivative."""
    return jax.lax.cbrt(x)


exact_erf.defjvps(lambda tangent, result, x: 2 * half_density(x) * tangent)
exact_erfc.defjvps(lambda tangent, result, x: -2 * half_density(x) * tangent)
exact_cbrt.defjvps(lambda tangent, result, x: tangent / (3 * exact_cbrt(x) ** 2))
EXACT_DERIVATIVES: dict[str, Callable[..., Any]] = {"erf": exact_erf, "erfc": exact_erfc, "cbrt": exact_cbrt}

# Ranges ----------------------------------------------------------------------------------------------------------

ZERO = interval.Range(0.0, 0.0, True, True)


def strictly_above(a: Any, b: Any) -> bool:
    """Whether every number of one range is larger than every number of the other."""
    return a.lower > b.upper or (a.lower == b.upper and not (a.lower_attained and b.upper_attained))


def definite_sign(a: Any) -> int | None:
    """1 if no number of a range is negative, -1 if none is positive."""
    if a.lower >= 0:
        return 1
    return -1 if a.upper <= 0 else None


# Kinks -----------------------------------------------------------------------------------------------------------


class Recorder:
    """Decides the kinks while a program is evaluated, and remembers how."""

    def __init__(self, pieces: PiecewiseProgram, arithmetic: Tracked) -> None:
        self.arithmetic = arithmetic
        self.kinks = {kink.index: kink for kink in pieces.kinks}
        self.resolved = pieces.resolved
        self.shift_indices = pieces.shift_indices
        self.small_programs = pieces.small_programs
        self.masks: list[np.ndarray] = []
        self.levels: list[np.ndarray] = []

    def __call__(
        self, index: int, equation: Any, operands: Sequence[Any], evaluator: Evaluator
    ) -> list[Any] | None:
        if index in self.shift_indices:
            level = self.highest(equation, evaluator.number(operands[0]))
            self.levels.append(level)
            return [level]
        if index in self.resolved:
            # The ranges are those of defined numbers; a comparison with nan has an outcome of its own.
            if not all(is_plain(operand) or self.arithmetic.is_finite(operand) for operand in operands):
                raise UndecidedError("a comparison with a number that is not shown to be defined")
            return self.run(index, equation, operands, lambda *arrays: self.resolved[index](arrays), evaluator)
        kink = self.kinks.get(index)
        if kink is None:
            return None
        rule = KINKS[equation.primitive.name]
        mask = np.asarray(
            rule.decide(equation, [evaluator.number(operand) for operand in operands], self), np.int8
        )
        self.masks.append(mask)
        return self.run(
            index,
            equation,
            [*operands, mask],
            lambda *arrays: rule.forced(equation, arrays[:-1], arrays[-1]),
            evaluator,
        )

    def run(
        self,
        index: int,
        equation: Any,
        operands: Sequence[Any],
        function: Callable[..., Any],
        evaluator: Evaluator,
    ) -> list[Any]:
        """What stands for an equation: a traceable function of its operands (and a mask), evaluated."""
        program = self.small_programs.get(index)
        if program is None:
            shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in equation.invars]
            shapes += [jax.ShapeDtypeStruct(mask.shape, np.bool_) for mask in operands[len(shapes) :]]
            with float64():
                program = self.small_programs[index] = flattened(jax.make_jaxpr(function)(*shapes))
        return Evaluator(program, evaluator.arithmetic).run(list(operands))

    def highest(self, equation: Any, value: TrackedValue) -> np.ndarray:
        """A float near the maximum (minimum) that an equation takes; any float would do."""
        middle = self.arithmetic.midpoint(value)
        axes = tuple(int(axis) for axis in equation.params["axes"])
        return np.asarray(middle.max(axes) if equation.primitive.name == "reduce_max" else middle.min(axes))

    def signs(self, a: Any, b: Any) -> np.ndarray:
        """The sign of ``a - b``; 0 where both are the same constant on the piece (the zeros of dead units)."""
        signs = self.arithmetic.sign(self.arithmetic.sub(a, b))
        constant = ~self.arithmetic.depends(a) & ~self.arithmetic.depends(b)
        if np.any((signs == UNDECIDED) | ((signs == 0) & ~constant)):
            raise UndecidedError(ON_A_KINK)
        return signs

    def larger(self, a: Any, b: Any) -> np.ndarray:
        """Where ``a >= b``; equal numbers only where they are constants, so that the choice does not matter."""
        return (self.signs(a, b) >= 0).astype(np.int8)

    def winner(self, value: Any, allowed: np.ndarray | None = None) -> np.ndarray:
        """A one-hot mask of the largest of the ``allowed`` elements along the last axis."""
        middle = self.arithmetic.midpoint(value)
        if allowed is None:
            allowed = np.ones(middle.shape, bool)
        best = np.where(allowed, middle, -np.inf).argmax(-1)[..., None]
        top = self.arithmetic.rearrange(lambda a: np.broadcast_to(np.take_along_axis(a, best, -1), a.shape), value)
        mask = (np.arange(middle.shape[-1]) == best).astype(np.int8)
        signs = self.arithmetic.sign(self.arithmetic.sub(top, value))
        tie = (signs == 0) & ~self.arithmetic.depends(top) & ~self.arithmetic.depends(value)
        if np.any((signs != 1) & ~tie & (mask == 0) & allowed):
            raise UndecidedError(ON_A_KINK)
        return mask


class KinkRule(NamedTuple):
    """How a kind of kink is decided at a point, and what it is once decided."""

    mask_shape: Callable[[Any], tuple[int, ...]]
    decide: Callable[[Any, Sequence[Any], Recorder], np.ndarray]
    forced: Callable[[Any, Sequence[Any], Any], Any]


def result_shape(equation: Any) -> tuple[int, ...]:
    """The shape of the result of an equation."""
    return equation.outvars[0].aval.shape


def operand_shape(equation: Any) -> tuple[int, ...]:
    """The shape of the first operand of an equation."""
    return equation.invars[0].aval.shape


def spread(equation: Any, operands: Sequence[Any], recorder: Recorder) -> list[Any]:
    """The operands in the shape of the result."""
    shape = result_shape(equation)
    return [recorder.arithmetic.rearrange(lambda a: np.broadcast_to(a, shape), operand) for operand in operands]


def decide_pair(equation: Any, operands: Sequence[Any], recorder: Recorder) -> np.ndarray:
    """The mask of a kink between two operands."""
    return mask_of_signs(equation, recorder.signs(*spread(equation, operands, recorder)))


def decide_sign(equation: Any, operands: Sequence[Any], recorder: Recorder) -> np.ndarray:
    """The mask of a kink at zero."""
    return mask_of_signs(equation, recorder.signs(operands[0], recorder.arithmetic.zeros(operand_shape(equation))))


def mask_of_signs(equation: Any, signs: np.ndarray) -> np.ndarray:
    """The mask of a kink of one or two operands from the sign of its margin, ``a - b`` or ``a``.

    A sign 0 means that the margin is zero all over the piece.
    """
    name = equation.primitive.name
    if name == "sign":
        return np.stack([signs > 0, signs == 0]).astype(np.int8)
    if name in ("eq", "ne"):
        return (signs == 0).astype(np.int8)
    if name in ("gt", "le"):
        return (signs > 0).astype(np.int8)
    return (signs >= 0).astype(np.int8)


def forced_sign(equation: Any, operands: Sequence[Any], mask: Any) -> Any:
    """The sign, decided."""
    return choose(mask[1], 0.0, choose(mask[0], 1.0, -1.0))


def decide_clamp(equation: Any, operands: Sequence[Any], recorder: Recorder) -> np.ndarray:
    """Masks: above the lower bound, and then above the upper one."""
    low, a, high = spread(equation, operands, recorder)
    above = recorder.larger(a, low)
    return np.stack([above, recorder.larger(recorder.arithmetic.select(above, a, low), high)])


def to_last(array: Any, axes: Sequence[int]) -> Any:
    """The given axes moved to the end and made one."""
    axes = [int(axis) for axis in axes]
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    moved = array.transpose([*kept, *axes])
    return moved.reshape(*moved.shape[: len(kept)], -1)


def reduced_shape(equation: Any) -> tuple[int, ...]:
    """The shape of the mask of a maximum over axes."""
    axes = [int(axis) for axis in equation.params["axes"]]
    return (*result_shape(equation), int(np.prod([operand_shape(equation)[axis] for axis in axes], dtype=int)))


def decide_reduce(equation: Any, operands: Sequence[Any], recorder: Recorder) -> np.ndarray:
    """Which element is the largest (smallest) over axes."""
    value = recorder.arithmetic.rearrange(lambda a: to_last(a, equation.params["axes"]), operands[0])
    if equation.primitive.name == "reduce_min":
        value = recorder.arithmetic.neg(value)
    return recorder.winner(value)


def forced_reduce(equation: Any, operands: Sequence[Any], mask: Any) -> Any:
    """The element that was decided to be the largest."""
    value = to_last(operands[0], equation.params["axes"])
    return jnp.sum(jax.lax.select_n(mask, jnp.zeros_like(value), value), -1)


def window_positions(equation: Any) -> np.ndarray:
    """The positions in the windows of an equation."""
    return structure.windows(operand_shape(equation), equation.params)


def decide_window(equation: Any, operands: Sequence[Any], recorder: Recorder) -> np.ndarray:
    """Which element of each window is the largest."""
    positions = window_positions(equation)
    # Padding never wins: it is compared as a copy of a real element of its window.
    filled = structure.windows_without_padding(equation)
    return recorder.winner(recorder.arithmetic.take(operands[0], filled), positions >= 0)


def forced_window(equation: Any, operands: Sequence[Any], mask: Any) -> Any:
    """The element of each window that was decided to be the largest."""
    positions = window_positions(equation)
    values = operands[0].ravel()[np.maximum(positions, 0)]
    chosen = jax.lax.select_n(mask, jnp.zeros_like(values), values)
    return jnp.sum(jnp.where(positions >= 0, chosen, 0.0), -1)


def choose(mask: Any, if_true: Any, if_false: Any) -> Any:
    """A choice by a mask."""
    shape = mask.shape
    return jax.lax.select_n(mask, jnp.broadcast_to(if_false, shape), jnp.broadcast_to(if_true, shape))


def forced_clamp(equation: Any, operands: Sequence[Any], mask: Any) -> Any:
    """The clamped number, decided."""
    low, a, high = operands
    return choose(mask[1], high, choose(mask[0], a, low))


KINKS: dict[str, KinkRule] = {
    "max": KinkRule(result_shape, decide_pair, lambda e, operands, mask: choose(mask, *operands)),
    "min": KinkRule(result_shape, decide_pair, lambda e, operands, mask: choose(mask, *operands[::-1])),
    "abs": KinkRule(result_shape, decide_sign, lambda e, operands, mask: choose(mask, operands[0], -operands[0])),
    "sign": KinkRule(lambda e: (2, *result_shape(e)), decide_sign, forced_sign),
    "clamp": KinkRule(lambda e: (2, *result_shape(e)), decide_clamp, forced_clamp),
    "reduce_max": KinkRule(reduced_shape, decide_reduce, forced_reduce),
    "reduce_min": KinkRule(reduced_shape, decide_reduce, forced_reduce),
    "reduce_window_max": KinkRule(lambda e: window_positions(e).shape, decide_window, forced_window),
    "gt": KinkRule(result_shape, decide_pair, lambda e, operands, mask: mask),
    "ge": KinkRule(result_shape, decide_pair, lambda e, operands, mask: mask),
    "lt": KinkRule(result_shape, decide_pair, lambda e, operands, mask: jnp.logical_not(mask)),
    "le": KinkRule(result_shape, decide_pair, lambda e, operands, mask: jnp.logical_not(mask)),
    # 1: equal all over the piece (the zeros of dead units).
    "eq": KinkRule(result_shape, decide_pair, lambda e, operands, mask: mask),
    "ne": KinkRule(result_shape, decide_pair, lambda e, operands, mask: jnp.logical_not(mask)),
}

"""Intervals that hold every value of a flat program for all real inputs, and where it is analytic.

The program is read as a formula over the real numbers; end points are rounded outward. A variable on whose way
something undefined may happen (the logarithm of a negative number) has the interval of its values wherever it
is defined; `domain_conditions` lists what keeps the program from being defined and analytic everywhere.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from jax.extend.core import ClosedJaxpr, DropVar, Literal, Var

from gdmap.engines.balls import structure
from gdmap.engines.identities import MOVES, Identities, constant_value, contained, rearranged, shape_of, size_of
from gdmap.engines.intervals import (
    ANYTHING,
    FUNCTION_ERROR,
    REALS,
    TINY,
    UNIT,
    Interval,
    Range,
    added,
    bounded_to,
    collapsed,
    constant_interval,
    decreasing,
    down,
    exactly,
    hull,
    increasing,
    is_exact,
    is_real,
    magnitudes,
    may_be_zero,
    midpoint_radius,
    multiplied,
    negated,
    on_domain,
    powered,
    reciprocal,
    repeated,
    union,
    up,
    whole,
    without_overflow,
)
from gdmap.engines.precision import float64

__all__ = ["Interval", "Range", "dependent", "domain_conditions", "intervals", "ranges"]


def ranges(program: ClosedJaxpr, decimals: bool = False) -> dict[Var, Range]:
    """For every variable of a flat program an interval that holds each of its elements, for all real inputs.

    Integers and booleans count as numbers; arithmetic on integers is taken not to overflow. With ``decimals`` the
    floats among the constants stand for the decimal numbers that they print as.
    """
    return {variable: hull(interval) for variable, interval in intervals(program, decimals).items()}


def domain_conditions(
    program: ClosedJaxpr, known: dict[Var, Range], decimals: bool = False
) -> list[tuple[Any, int, str]]:
    """What must hold for the program to be defined and analytic (away from kinks), and is not shown by ``known``.

    Each entry is an equation, the index of an operand and the condition on it, such as ``'> 0'`` for a logarithm.
    Operands that do not depend on the inputs are not listed: whoever evaluates the program once checks them.
    An empty list: every operation is analytic at all real inputs, apart from kinks and jumps (``max``, ``abs``,
    comparisons, ``sign``, ``floor`` ...), which the caller deals with. This is about the program as it stands:
    where the choices of a kink are forced against the comparison it hangs on, ``sqrt(where(x > 0, x, 1))`` is no
    longer defined everywhere, so a piece needs the ranges of the program with its choices as inputs.
    """
    varying = dependent(program)
    makers = {variable: equation for equation in program.jaxpr.eqns for variable in equation.outvars}
    missing = []

    def range_of(atom: Any) -> Range:
        return hull(constant_interval(atom.val, decimals)) if isinstance(atom, Literal) else known[atom]

    for equation in program.jaxpr.eqns:
        name = equation.primitive.name
        if not any(isinstance(atom, Var) and atom in varying for atom in equation.invars):
            continue
        for index, condition in conditions_of(equation, varying):
            if not satisfies(range_of(equation.invars[index]), condition):
                missing.append((equation, index, condition))
        if name not in (*CHOICES, *COMPARISONS, *MOVES):
            for index, atom in enumerate(equation.invars):
                if np.issubdtype(atom.aval.dtype, np.floating) and not (
                    range_of(atom).is_real or (name == "exp" and range_of(atom).upper < math.inf)
                ):
                    missing.append((equation, index, "finite"))
    for atom in program.jaxpr.outvars:
        if isinstance(atom, Var) and atom in makers and atom in varying and not known[atom].is_real:
            missing.append((makers[atom], 0, "finite"))
    return missing


def satisfies(interval: Range, condition: str) -> bool:
    """Whether every value in a range meets ``'> a'``, ``'!= 0'``, ``'between -1 and 1'`` or ``'never'``."""
    if condition.startswith("> "):
        bound = float(condition[2:])
        return interval.lower > bound or (interval.lower == bound and not interval.lower_attained)
    if condition == "!= 0":
        return interval.is_nonzero
    if condition == "between -1 and 1":
        above = interval.lower > -1 or (interval.lower == -1 and not interval.lower_attained)
        return above and (interval.upper < 1 or (interval.upper == 1 and not interval.upper_attained))
    return False


def conditions_of(equation: Any, varying: set[Var]) -> list[tuple[int, str]]:
    """The conditions under which one primitive is analytic, on operands that vary."""
    name = equation.primitive.name
    found: list[tuple[int, str]] = []
    if name in ("log", "sqrt", "rsqrt", "lgamma", "digamma"):
        found = [(0, "> 0")]
    elif name == "log1p":
        found = [(0, "> -1")]
    elif name in ("atanh", "acos", "asin", "erf_inv"):
        found = [(0, "between -1 and 1")]
    elif name == "acosh":
        found = [(0, "> 1")]
    elif name in ("cbrt", "tan"):
        found = [(0, "!= 0" if name == "cbrt" else "never")]
    elif name == "div":
        found = [(1, "!= 0")]
    elif name == "integer_pow" and equation.params["y"] < 0:
        found = [(0, "!= 0")]
    elif name == "pow" and not is_natural(constant_value(equation.invars[1])):
        found = [(0, "> 0")]
    elif name == "convert_element_type" and not keeps_reals(equation):
        found = [(0, "never")]
    elif name == "atan2":
        found = [(1, "> 0")]
    elif name not in ANALYTIC and name not in PIECEWISE and name not in MOVES:
        found = [(index, "never") for index in range(len(equation.invars))]
    if name == "pow" and isinstance(equation.invars[1], Var) and equation.invars[1] in varying:
        return [(0, "> 0")]  # also a constant base
    return [(i, c) for i, c in found if isinstance(equation.invars[i], Var) and equation.invars[i] in varying]


def keeps_reals(equation: Any) -> bool:
    """Whether a change of dtype leaves real numbers as they are: doubles stay doubles, truth values become any."""
    source, target = (np.dtype(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0]))
    return source.kind != "f" or target == np.float64


def is_natural(value: Any) -> bool:
    """Whether a literal consists of integers from 0 on."""
    return value is not None and bool(np.all((value >= 0) & (value == np.floor(value)) & np.isfinite(value)))


# Operations that may leave an infinite or undefined operand out.
CHOICES = {
    "select_n",
    "max",
    "min",
    "clamp",
    "is_finite",
    "reduce_max",
    "reduce_min",
    "concatenate",
    "pad",
    "gather",
}
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
# Analytic wherever they are defined on the reals, with the conditions of `conditions_of`.
ANALYTIC = {
    *("add", "add_any", "sub", "mul", "neg", "div", "square", "integer_pow", "pow", "exp", "exp2", "expm1", "log"),
    *("log1p", "logistic", "tanh", "sinh", "cosh", "sin", "cos", "asinh", "atan", "erf", "erfc", "sqrt", "rsqrt"),
    *("reduce_sum", "cumsum", "dot_general", "conv_general_dilated", "reduce_window_sum", "convert_element_type"),
    *("concatenate", "pad", "gather", "scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter-mul"),
    *("dynamic_slice", "dynamic_update_slice", "reduce_prod", "cumprod", "cumlogsumexp", "real", "iota"),
    *("select_and_gather_add", "select_and_scatter_add", "bessel_i0e", "bessel_i1e"),
}
# Analytic on a part of the reals: `conditions_of`.
RESTRICTED = {"lgamma", "digamma", "atanh", "acos", "asin", "erf_inv", "acosh", "tan", "atan2"}
# Analytic but for kinks and jumps.
PIECEWISE = {
    *("max", "min", "abs", "sign", "floor", "ceil", "round", "clamp", "select_n", "is_finite", "nextafter"),
    *("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "argmax"),
    *("argmin", "and", "or", "not", "xor", "reduce_and", "reduce_or", "sort", "top_k", *COMPARISONS),
}


def dependent(program: ClosedJaxpr) -> set[Var]:
    """The variables that depend on the inputs of a flat program."""
    varying = set(program.jaxpr.invars)
    for equation in program.jaxpr.eqns:
        if any(isinstance(atom, Var) and atom in varying for atom in equation.invars):
            varying.update(equation.outvars)
    return varying


def intervals(program: ClosedJaxpr, decimals: bool = False) -> dict[Var, Interval]:
    """`ranges`, element by element where elements are told apart."""
    with float64(), np.errstate(all="ignore"):
        return Analysis(program, decimals).run()


class Relations(Identities):
    """What relations between operands say about results, beyond the operands' own intervals."""

    def intervals_from_relations(self, equation: Any, analysis: "Analysis") -> list[Interval]:
        """What relations between operands say about the result, beyond the operands' own intervals."""
        name, inputs = equation.primitive.name, equation.invars
        found: list[Interval] = []
        if name == "mul":
            if self.are_same(*inputs):
                found.append(powered(analysis.interval(inputs[0]), 2))
        elif name == "sub":
            if self.are_same(*inputs) and is_real(analysis.interval(inputs[0])):
                found.append(exactly(np.asarray(0.0)))
            elif self.shift(equation) is not None and is_real(analysis.interval(inputs[1])):
                found.append(whole(-np.inf, 0.0, True, True))
        elif name == "reduce_sum":
            sum_ = self.sum_of_shifted(equation, analysis)
            found += [] if sum_ is None else [sum_]
        elif name == "dot_general" and self.is_sum_of_squares(equation):
            found.append(whole(0.0, np.inf, True, False))
        if name == "div" and self.is_part_of_sum(equation, analysis):
            found.append(whole(0.0, 1.0, True, True))
        if name in ("div", "mul"):
            bound = self.normalised(equation, analysis)
            if bound is not None:
                found.append(whole(-bound, bound, True, True))
        return found

    def shift(self, equation: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """For ``x - max(x over axes)``: which elements ``x`` are, which maximum is subtracted, of which rows."""
        left, right = (self.indices(atom) for atom in equation.invars)
        if left is None or right is None:
            return None
        maker = self.makers.get(right[0])
        if maker is None or maker.primitive.name != "reduce_max":
            return None
        groups = self.group_rows(maker)
        if groups is None or groups[0] != left[0] or not groups[1].size:
            return None
        rows = np.sort(groups[1], axis=1)
        elements, group = np.broadcast_arrays(left[1], right[1])
        if not contained(elements, group, rows):
            return None
        return elements, group, rows

    def sum_of_shifted(self, equation: Any, analysis: "Analysis") -> Interval | None:
        """``sum(exp(x - max(x)))`` lies in ``[1, n]``: one of the terms is 1."""
        outer = self.indices(equation.invars[0])
        if outer is None:
            return None
        exponential = self.makers.get(outer[0])
        if exponential is None or exponential.primitive.name != "exp":
            return None
        inner = self.indices(exponential.invars[0])
        if inner is None:
            return None
        difference = self.makers.get(inner[0])
        if difference is None or difference.primitive.name != "sub":
            return None
        shift = self.shift(difference)
        if shift is None or not is_real(analysis.interval(difference.invars[1])):
            return None
        elements, group, rows = shift
        found = self.group_rows(equation)
        if found is None:
            return None
        terms = inner[1].ravel()[found[1]]
        groups = group.ravel()[terms]
        if not terms.size or np.any(groups != groups[:, :1]):
            return None
        summed = np.sort(elements.ravel()[terms], axis=1)
        needed = rows[groups[:, 0]]
        if summed.shape != needed.shape or not np.array_equal(summed, needed):
            return None
        return Interval(*np.broadcast_arrays(1.0, float(terms.shape[1]), True, True))

    def is_part_of_sum(self, equation: Any, analysis: "Analysis") -> bool:
        """Whether a quotient is one of several non-negative terms by their sum."""
        part, total_ = (self.indices(atom) for atom in equation.invars)
        if part is None or total_ is None:
            return False
        total = self.makers.get(total_[0])
        if total is None or total.primitive.name != "reduce_sum":
            return False
        found = self.group_rows(total)
        terms = analysis.interval(total.invars[0])
        if found is None or found[0] != part[0] or not np.all(terms.lower >= 0) or not is_real(terms):
            return False
        elements, groups = np.broadcast_arrays(part[1], total_[1])
        return contained(elements, groups, found[1])

    def is_sum_of_squares(self, equation: Any) -> bool:
        """Whether a contraction of two operands is that of an array with itself."""
        (left_axes, right_axes), (batch, _) = equation.params["dimension_numbers"]
        if batch or len(left_axes) != len(equation.invars[0].aval.shape):
            return False
        if len(right_axes) != len(equation.invars[1].aval.shape):
            return False
        left, right = (self.indices(atom) for atom in equation.invars)
        if left is None or right is None or left[0] != right[0]:
            return False
        return np.array_equal(np.transpose(left[1], left_axes), np.transpose(right[1], right_axes))

    def normalised(self, equation: Any, analysis: "Analysis") -> float | None:
        """A bound ``a^(-1/2)`` of ``|u / sqrt(w)|`` or ``|u rsqrt(w)|`` where ``w >= a u^2``."""
        name, (one, other) = equation.primitive.name, equation.invars
        pairs = [(one, other)] if name == "div" else [(one, other), (other, one)]
        for part, scale in pairs:
            found, root = self.indices(part), self.indices(scale)
            if found is None or root is None:
                continue
            maker = self.makers.get(root[0])
            if maker is None or maker.primitive.name != ("sqrt" if name == "div" else "rsqrt"):
                continue
            bound = self.dominated(maker.invars[0], analysis)
            if bound is None or bound[0] != found[0]:
                continue
            _, rows, owner, factor = bound
            elements, place = np.broadcast_arrays(found[1], root[1])
            if factor > 0 and contained(elements, owner.ravel()[place], rows):
                return float(np.sqrt(1 / factor) * (1 + FUNCTION_ERROR))
        return None

    def dominated(self, atom: Any, analysis: "Analysis") -> tuple[Var, np.ndarray, np.ndarray, float] | None:
        """For ``w >= a sum of u^2`` over groups: ``u``, the groups' elements, each ``w``'s group, ``a``."""
        found = self.indices(atom)
        if found is None:
            return None
        root, index = found
        shape = shape_of(root)
        equation = self.makers.get(root)
        if equation is None:
            return None
        name, inputs = equation.primitive.name, equation.invars
        inner: tuple[Var, np.ndarray, np.ndarray, float] | None = None
        if name == "reduce_sum":
            groups, squares = self.group_rows(equation), self.indices(inputs[0])
            maker = None if squares is None else self.makers.get(squares[0])
            if groups is None or maker is None or not groups[1].size:
                return None
            base = self.squared(maker)
            if base is not None:
                rows = base[1].ravel()[groups[1]]
                inner = (base[0], rows, np.arange(len(rows)).reshape(shape), 1.0)
        elif name in ("div", "mul"):
            for part, scale in [(inputs[0], inputs[1]), (inputs[1], inputs[0])][: 1 if name == "div" else 2]:
                factor = analysis.interval(scale)
                least = float(np.min(factor.lower)) if name == "mul" else float(np.max(factor.upper))
                if np.min(factor.lower) > 0 and math.isfinite(least) and part.aval.shape == shape:
                    inner = self.dominated(part, analysis)
                    if inner is not None:
                        change = least if name == "mul" else 1 / least
                        inner = (*inner[:3], inner[3] * change * (1 - FUNCTION_ERROR))
                        break
        elif name in ("add", "add_any"):
            for part, rest in (inputs, reversed(inputs)):
                if np.all(analysis.interval(rest).lower >= 0) and part.aval.shape == shape:
                    inner = self.dominated(part, analysis)
                    if inner is not None:
                        break
        elif name == "select_n":
            which = analysis.interval(inputs[0])
            if is_exact(which) and np.all(which.lower == np.min(which.lower)):
                inner = self.dominated(inputs[1 + int(np.min(which.lower))], analysis)
        if inner is None:
            return None
        base_root, rows, owner, factor_ = inner
        return base_root, rows, owner.ravel()[index], factor_

    def squared(self, equation: Any) -> tuple[Var, np.ndarray] | None:
        """What is squared, if that is what an equation does."""
        name, inputs = equation.primitive.name, equation.invars
        if name == "square" or (name == "integer_pow" and equation.params["y"] == 2):
            return self.indices(inputs[0])
        if name == "mul" and self.are_same(*inputs):
            return self.indices(inputs[0])
        return None


class Analysis:
    """One pass over a flat program."""

    def __init__(self, program: ClosedJaxpr, decimals: bool = False) -> None:
        self.program, self.decimals = program, decimals
        self.same = Relations(program)
        self.known: dict[Var, Interval] = {}

    def run(self) -> dict[Var, Interval]:
        jaxpr = self.program.jaxpr
        for variable, value in zip(jaxpr.constvars, self.program.consts, strict=True):
            self.known[variable] = constant_interval(value, self.decimals)
        for variable in jaxpr.invars:
            is_truth = variable.aval.dtype == bool
            self.known[variable] = whole(0.0, 1.0, True, True) if is_truth else REALS
        for equation in jaxpr.eqns:
            operands = [self.interval(atom) for atom in equation.invars]
            results = self.results(equation, operands)
            for variable, result in zip(equation.outvars, results, strict=True):
                if not isinstance(variable, DropVar):
                    finished = settled(result, operands, equation)
                    sharper = bounded_to(finished, self.same.intervals_from_relations(equation, self))
                    self.known[variable] = filled(sharper, shape_of(variable))
        return self.known

    def interval(self, atom: Any) -> Interval:
        """The interval of a variable or literal."""
        return constant_interval(atom.val, self.decimals) if isinstance(atom, Literal) else self.known[atom]

    def results(self, equation: Any, operands: list[Interval]) -> list[Interval]:
        """The intervals of the results of one equation."""
        name = equation.primitive.name
        outputs = len(equation.outvars)
        if name in MOVES:
            return moved_intervals(equation, operands[0])
        if name == "iota":
            return [constant_interval(structure.RULES[name](equation, [], structure.PlainMover())[0])]
        if all(is_exact(interval) for interval in operands) and name in EXACT:
            values = bound_values(equation, [interval.lower for interval in operands])
            if values is not None:
                return [constant_interval(value) for value in values]
        if name == "select_n":
            return [self.selected(equation, operands)]
        if name in COMPARISONS:
            return [self.compared(equation, operands)]
        rule = RULES.get(name)
        if rule is None:
            return [REALS if name in ANALYTIC or name in RESTRICTED else ANYTHING] * outputs
        result = rule(equation, *operands)
        return result if isinstance(result, list) else [result]

    def compared(self, equation: Any, operands: list[Interval]) -> Interval:
        """A comparison: decided where the intervals, or the identity of both sides, decide it."""
        a, b = operands
        name = equation.primitive.name
        real = is_real(a) and is_real(b)
        if real and self.same.are_same(*equation.invars):
            return exactly(np.asarray(float(name in ("le", "ge", "eq"))))
        if name in ("gt", "ge"):
            a, b, name = b, a, {"gt": "lt", "ge": "le"}[name]
        below = (a.upper < b.lower) | ((a.upper == b.lower) & ~(a.upper_in & b.lower_in))
        above = (b.upper < a.lower) | ((b.upper == a.lower) & ~(b.upper_in & a.lower_in))
        not_above = below | (a.upper <= b.lower)
        not_below = above | (b.upper <= a.lower)
        certain, never = {
            "lt": (below, not_below),
            "le": (not_above, above),
            "eq": (not_above & not_below, below | above),
            "ne": (below | above, not_above & not_below),
        }[name]
        defined = np.asarray(real)
        yes = np.ones(np.shape(certain), bool)
        return Interval(1.0 * (certain & defined), 1.0 - (never & defined), yes, yes)

    def selected(self, equation: Any, operands: list[Interval]) -> Interval:
        """Which branch an element comes from where that is decided, both branches elsewhere."""
        which, *branches = operands
        if len(branches) == 2:
            branches = [self.given_predicate(equation, index, branch) for index, branch in enumerate(branches)]
        lower, upper = which.lower, which.upper
        possible = [(lower <= index) & (index <= upper) for index in range(len(branches))]
        chosen = [branch for branch, may in zip(branches, possible, strict=True) if np.any(may)]
        if len(chosen) == 1:
            return chosen[0]
        if not np.ndim(lower):
            return functools.reduce(union, chosen)
        result: Interval | None = None
        for branch, may in zip(branches, possible, strict=True):
            wide = Interval(*(np.broadcast_to(end, np.shape(may)) for end in branch))
            if result is None:
                taken, result = may, wide
                continue
            both = union(result, wide)
            ends = zip(both, wide, result, strict=True)
            result = Interval(*(np.where(may & taken, j, np.where(may, w, r)) for j, w, r in ends))
            taken = taken | may
        assert result is not None
        return result

    def given_predicate(self, equation: Any, index: int, branch: Interval) -> Interval:
        """The interval of branch ``index`` of a choice, given that the comparison it hangs on chose it.

        ``where(x > 0, x, 1)`` is positive.
        """
        source = self.same.maker(equation.invars[0])
        if source is None or source.primitive.name not in COMPARISONS:
            return branch
        relation = COMPARISONS[source.primitive.name]
        taken = equation.invars[1 + index]
        sides = [self.same.are_same(taken, atom) for atom in source.invars]
        if not any(sides) or equation.invars[0].aval.shape != equation.outvars[0].aval.shape:
            return branch
        other = self.interval(source.invars[1 - sides.index(True)])
        if np.ndim(other.lower) and np.shape(other.lower) != equation.outvars[0].aval.shape:
            return branch
        if not sides[0]:
            relation = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(relation, relation)
        if index == 0:
            relation = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}[relation]
        no = np.asarray(False)
        if relation in ("<", "<="):
            limit = Interval(REALS.lower, other.upper, no, other.upper_in & (relation == "<="))
        elif relation in (">", ">="):
            limit = Interval(other.lower, REALS.upper, other.lower_in & (relation == ">="), no)
        elif relation == "==":
            limit = other
        else:
            return branch
        return bounded_to(branch, [limit])


def settled(result: Interval, operands: Sequence[Interval], equation: Any) -> Interval:
    """A result with nan replaced by no knowledge, and infinite ends open if nothing infinite came in."""
    lower, upper, lower_in, upper_in = np.broadcast_arrays(*result)
    undefined = np.isnan(lower) | np.isnan(upper)
    lower = np.where(undefined, -np.inf, lower)
    upper = np.where(undefined, np.inf, upper)
    result = Interval(lower, upper, lower_in | undefined, upper_in | undefined)
    if equation.primitive.name in TOTAL and not np.any(undefined):
        return without_overflow(result, *operands)
    return result


def filled(interval: Interval, shape: tuple[int, ...]) -> Interval:
    """Intervals of every element in the full shape; one for all elements stays what it is."""
    if np.shape(interval.lower) in ((), shape):
        return interval
    return Interval(*(np.broadcast_to(end, shape) for end in interval))


def moved_intervals(equation: Any, a: Interval) -> list[Interval]:
    """Moves of elements; one interval for all elements stays what it is."""
    outputs = len(equation.outvars)
    if not np.ndim(a.lower):
        return [a] * outputs
    return [Interval(*ends) for ends in zip(*(rearranged(equation, end) for end in a), strict=True)]


def bound_values(equation: Any, values: Sequence[np.ndarray]) -> list[Any] | None:
    """The results of a primitive on concrete values, or None if it does not take them."""
    operands = [
        np.broadcast_to(value, atom.aval.shape).astype(atom.aval.dtype)
        for value, atom in zip(values, equation.invars, strict=True)
    ]
    try:
        with jax.ensure_compile_time_eval():
            results = equation.primitive.bind(*map(jax.numpy.asarray, operands), **equation.params)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return [np.asarray(x) for x in (results if equation.primitive.multiple_results else [results])]


def on_elements(equation: Any, operands: Sequence[Interval], fixed: Sequence[int]) -> Interval | None:
    """A primitive that takes elements from its operands (or zero), applied to each end; ``fixed`` are indices."""
    ends = []
    for part in range(4):
        values = [
            operand.lower if index in fixed else np.asarray(operand[part], float)
            for index, operand in enumerate(operands)
        ]
        result = bound_values(equation, values)
        if result is None:
            return None
        ends.append(result[0])
    lower, upper, lower_in, upper_in = ends
    return Interval(lower, upper, lower_in > 0.5, upper_in > 0.5)


def concatenated(equation: Any, *operands: Interval) -> Interval:
    """Elements of several arrays."""
    if all(not np.ndim(a.lower) for a in operands):
        same = all(all(np.array_equal(x, y) for x, y in zip(a, operands[0], strict=True)) for a in operands)
        if same:
            return operands[0]
    axis = equation.params["dimension"]
    shapes = [atom.aval.shape for atom in equation.invars]
    return Interval(
        *(
            np.concatenate([np.broadcast_to(a[part], s) for a, s in zip(operands, shapes, strict=True)], axis)
            for part in range(4)
        )
    )


def padded(equation: Any, a: Interval, value: Interval) -> Interval:
    """Elements of an array and a padding value."""
    if np.ndim(a.lower):
        result = on_elements(equation, (a, value), ())
        if result is not None:
            return result
    return union(collapsed(a), collapsed(value))


def gathered(equation: Any, a: Interval, indices: Interval) -> Interval:
    """Elements at indices, and what is put in for indices out of bounds."""
    mode = str(equation.params.get("mode"))
    if is_exact(indices):
        zeros = bound_values(equation, [np.zeros(()), indices.lower])
        if zeros is not None and not np.any(zeros[0]):  # nothing is filled in (nan counts as True)
            if np.ndim(a.lower):
                result = on_elements(equation, (a, indices), (1,))
                if result is not None:
                    return result
            return collapsed(a)
        return ANYTHING
    return collapsed(a) if "CLIP" in mode or "PROMISE" in mode else ANYTHING


def scattered(equation: Any, a: Interval, indices: Interval, updates: Interval) -> Interval:
    """Some elements replaced by, or added to, updates."""
    hulls = collapsed(a), collapsed(updates)
    if equation.primitive.name == "scatter":
        return union(*hulls)
    most = size_of(equation.invars[2])
    if is_exact(indices):
        hits = bound_values(equation, [np.zeros(()), indices.lower, np.ones(())])
        if hits is not None:
            most = int(np.max(hits[0], initial=0))
    return added(hulls[0], union(exactly(np.asarray(0.0)), repeated(hulls[1], 0, most)))


def taken(equation: Any, a: Interval, *rest: Interval) -> Interval:
    """Some elements of the first operand."""
    return collapsed(a)


def updated(equation: Any, a: Interval, b: Interval, *rest: Interval) -> Interval:
    """Elements of the first operand and of the second."""
    return union(collapsed(a), collapsed(b))


def summed(equation: Any, a: Interval) -> Interval:
    """A sum over axes."""
    axes = tuple(equation.params["axes"])
    count = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
    if not np.ndim(a.lower) or count == 0:
        return repeated(a, count, count)

    def end(values: np.ndarray, turn: Callable[[Any, Any], np.ndarray]) -> np.ndarray:
        total = values.sum(axis=axes)
        scale = np.abs(values).sum(axis=axes)
        error = np.where(np.isfinite(scale), (scale + TINY * (scale > 0)) * (2 * count + 4) * UNIT, 0.0)
        if count == 1:
            error = np.zeros_like(error)
        result = turn(total, error)
        result = np.where(np.all(values >= 0, axis=axes), np.maximum(result, 0.0), result)
        return np.where(np.all(values <= 0, axis=axes), np.minimum(result, 0.0), result)

    return Interval(
        end(a.lower, down), end(a.upper, up), np.all(a.lower_in, axis=axes), np.all(a.upper_in, axis=axes)
    )


def accumulated(equation: Any, a: Interval) -> Interval:
    """Running sums."""
    return repeated(collapsed(a), 1, equation.invars[0].aval.shape[equation.params["axis"]])


def dotted(equation: Any, a: Interval, b: Interval) -> Interval:
    """Sums of products."""
    (axes, _), _ = equation.params["dimension_numbers"]
    count = math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
    whole = repeated(multiplied(collapsed(a), collapsed(b)), count, count)
    ends = (*a[:2], *b[:2])
    if count and (np.ndim(a.lower) or np.ndim(b.lower)) and all(np.all(np.isfinite(end)) for end in ends):
        sharper = centred_product(equation, a, b, count)
        if sharper is not None:
            return bounded_to(whole, [sharper])
    return whole


def centred_product(equation: Any, a: Interval, b: Interval, count: int) -> Interval | None:
    """A contraction of intervals as midpoint and radius (dot products in any order, but none faster than that)."""
    if any(np.dtype(atom.aval.dtype) != np.float64 for atom in (*equation.invars, *equation.outvars)):
        return None
    (p, r), (q, s) = (midpoint_radius(x) for x in (a, b))
    middle = bound_values(equation, [p, q])
    first = bound_values(equation, [np.abs(p) + r, s])
    second = bound_values(equation, [r, np.abs(q)])
    size = bound_values(equation, [np.abs(p), np.abs(q)])
    if middle is None or first is None or second is None or size is None:
        return None
    error = (first[0] + second[0] + (count + 4) * 2 * UNIT * size[0]) * (1 + (4 * count + 64) * UNIT)
    error = error + np.where(size[0] + error > 0, (count + 1) * TINY, 0.0)
    return Interval(down(middle[0], error), up(middle[0], error), *np.ones((2, *np.shape(middle[0])), bool))


def convolved(equation: Any, a: Interval, kernel: Interval) -> Interval:
    """Sums of products over a window that may hang over the edge."""
    spec = equation.params["dimension_numbers"].rhs_spec
    shape = equation.invars[1].aval.shape
    count = math.prod(size for axis, size in enumerate(shape) if axis != spec[0])
    overhangs = any(pad != (0, 0) for pad in map(tuple, equation.params["padding"]))
    overhangs = overhangs or any(step != 1 for step in equation.params["lhs_dilation"])
    return repeated(multiplied(collapsed(a), collapsed(kernel)), 0 if overhangs else count, count)


def window_sum(equation: Any, a: Interval) -> Interval:
    """Sums over windows that may hang over the edge."""
    count = math.prod(equation.params["window_dimensions"])
    overhangs = any(pad != (0, 0) for pad in map(tuple, equation.params["padding"]))
    overhangs = overhangs or any(step != 1 for step in equation.params["base_dilation"])
    return repeated(collapsed(a), 0 if overhangs else count, count)


def window_extreme(equation: Any, a: Interval) -> Interval:
    """Maxima over windows; a window without an element is infinite."""
    empty = bound_values(equation, [np.zeros(())])
    return collapsed(a) if empty is not None and np.all(np.isfinite(empty[0])) else ANYTHING


def maximum(_: Any, a: Interval, b: Interval) -> Interval:
    """The larger of two."""
    lower, upper = np.maximum(a.lower, b.lower), np.maximum(a.upper, b.upper)
    return Interval(
        lower,
        upper,
        (a.lower_in | (a.lower < lower)) & (b.lower_in | (b.lower < lower)),
        (a.upper_in & (a.upper == upper)) | (b.upper_in & (b.upper == upper)),
    )


def minimum(equation: Any, a: Interval, b: Interval) -> Interval:
    """The smaller of two."""
    return negated(maximum(equation, negated(a), negated(b)))


def clamped(equation: Any, low: Interval, a: Interval, high: Interval) -> Interval:
    """``min(max(a, low), high)``."""
    return minimum(equation, maximum(equation, a, low), high)


def largest(equation: Any, a: Interval) -> Interval:
    """The maximum over axes."""
    axes = tuple(equation.params["axes"])
    if not np.ndim(a.lower):
        return a
    lower, upper = a.lower.max(axis=axes), a.upper.max(axis=axes)
    at_lower = a.lower == np.expand_dims(lower, axes)
    at_upper = a.upper == np.expand_dims(upper, axes)
    return Interval(
        lower, upper, np.all(~at_lower | a.lower_in, axis=axes), np.any(at_upper & a.upper_in, axis=axes)
    )


def smallest(equation: Any, a: Interval) -> Interval:
    """The minimum over axes."""
    return negated(largest(equation, negated(a)))


def multiplied_up(equation: Any, a: Interval) -> Interval:
    """A product over axes."""
    count = math.prod(equation.invars[0].aval.shape[axis] for axis in equation.params["axes"])
    whole = collapsed(a)
    return powered(whole, count) if whole.lower >= 0 else REALS


def any_power(equation: Any, a: Interval, exponent: Interval) -> Interval:
    """``a**b`` wherever it is defined over the reals."""
    constant = constant_value(equation.invars[1])
    if constant is not None and constant.size == 1 and float(constant).is_integer() and abs(constant) < 1e6:
        return powered(a, int(constant))
    positive = np.asarray(a.lower >= 0)
    return Interval(
        np.where(positive, 0.0, -np.inf),
        np.broadcast_to(np.inf, positive.shape),
        positive & may_be_zero(a),
        np.zeros(positive.shape, bool),
    )


def converted(equation: Any, a: Interval) -> Interval:
    """A change of dtype; to integers the fraction is dropped."""
    source, target = (np.dtype(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0]))
    if target.kind == "b":
        return bool_interval(a)
    if source.kind == "f" and target.kind in "iu":
        return Interval(np.trunc(a.lower), np.trunc(a.upper), *np.ones((2, *np.shape(a.lower)), bool))
    if source.kind == "f" and target.itemsize < source.itemsize:
        scale = {4: 2.0**-23, 2: 2.0**-7}.get(target.itemsize, 1.0)
        error = np.maximum(np.abs(a.lower), np.abs(a.upper)) * scale + 1e-30
        return Interval(down(a.lower, error), up(a.upper, error), a.lower_in, a.upper_in)
    return a


def bool_interval(a: Interval) -> Interval:
    """0 or 1 where that is known."""
    zero = (a.lower == 0) & (a.upper == 0)
    yes = np.ones(np.shape(zero), bool)
    return Interval(1.0 * ~(may_be_zero(a) | zero), 1.0 - zero, yes, yes)


def between(low: float, high: float) -> Callable[..., Interval]:
    """A rule whose values lie in [low, high] whatever the operand."""
    return lambda *_: Interval(*(np.asarray(x) for x in (low, high, True, True)))


def signs(_: Any, a: Interval) -> Interval:
    """The sign."""
    yes = np.ones(np.shape(a.lower), bool)
    low = np.where((a.lower > 0) | ((a.lower == 0) & ~a.lower_in), 1.0, np.where(a.lower >= 0, 0.0, -1.0))
    high = np.where((a.upper < 0) | ((a.upper == 0) & ~a.upper_in), -1.0, np.where(a.upper <= 0, 0.0, 1.0))
    return Interval(low, high, yes, yes)


def stepped(function: Callable[..., Any]) -> Callable[..., Interval]:
    """A rule for floor, ceil, round."""
    return lambda _, a: Interval(function(a.lower), function(a.upper), *np.ones((2, *np.shape(a.lower)), bool))


def finite(_: Any, a: Interval) -> Interval:
    """Whether a value is finite: over the reals always."""
    low = (a.lower_in & np.isinf(a.lower)) | (a.upper_in & np.isinf(a.upper))
    yes = np.ones(np.shape(low), bool)
    return Interval(1.0 - low, 1.0 * yes, yes, yes)


def hyperbolic_cosine(_: Any, a: Interval) -> Interval:
    """``cosh``: increasing in the modulus."""
    size = magnitudes(a)
    return bounded_to(
        increasing(np.cosh, -np.inf, np.inf, 0.0)(None, size),
        [whole(1.0, np.inf, True, True)],
    )


square_root = on_domain(increasing(np.sqrt, -np.inf, np.inf, 0.0), 0.0)

RULES: dict[str, Callable[..., Any]] = {
    "add": lambda _, a, b: added(a, b),
    "add_any": lambda _, a, b: added(a, b),
    "sub": lambda _, a, b: added(a, negated(b)),
    "mul": lambda _, a, b: multiplied(a, b),
    "div": lambda _, a, b: multiplied(a, reciprocal(b)),
    "neg": lambda _, a: negated(a),
    "abs": lambda _, a: magnitudes(a),
    "square": lambda _, a: powered(a, 2),
    "integer_pow": lambda equation, a: powered(a, equation.params["y"]),
    "pow": any_power,
    "exp": increasing(np.exp, 0.0, np.inf, 0.0),
    "exp2": increasing(np.exp2, 0.0, np.inf, 0.0),
    "expm1": increasing(np.expm1, -1.0, np.inf, 0.0),
    "log": on_domain(increasing(np.log, -np.inf, np.inf, 1.0), 0.0),
    "log1p": on_domain(increasing(np.log1p, -np.inf, np.inf, 0.0), -1.0),
    "tanh": increasing(np.tanh, -1.0, 1.0, 0.0),
    "logistic": increasing(scipy.special.expit, 0.0, 1.0, 0.0),
    "erf": increasing(scipy.special.erf, -1.0, 1.0, 0.0),
    "erfc": decreasing(scipy.special.erfc, 0.0, 2.0),
    "sinh": increasing(np.sinh, -np.inf, np.inf, 0.0),
    "cosh": hyperbolic_cosine,
    "asinh": increasing(np.arcsinh, -np.inf, np.inf, 0.0),
    "atan": increasing(np.arctan, -np.pi / 2 - 4 * UNIT, np.pi / 2 + 4 * UNIT, 0.0),
    "cbrt": increasing(np.cbrt, -np.inf, np.inf, 0.0),
    "sqrt": square_root,
    "rsqrt": lambda equation, a: reciprocal(square_root(equation, a)),
    "sin": between(-1.0, 1.0),
    "cos": between(-1.0, 1.0),
    "sign": signs,
    "floor": stepped(np.floor),
    "ceil": stepped(np.ceil),
    "round": lambda _, a: Interval(np.floor(a.lower), np.ceil(a.upper), *np.ones((2, *np.shape(a.lower)), bool)),
    "max": maximum,
    "min": minimum,
    "clamp": clamped,
    "reduce_max": largest,
    "reduce_min": smallest,
    "reduce_sum": summed,
    "reduce_prod": multiplied_up,
    "cumsum": accumulated,
    "cummax": taken,
    "cummin": taken,
    "dot_general": dotted,
    "conv_general_dilated": convolved,
    "reduce_window_sum": window_sum,
    "reduce_window_max": window_extreme,
    "reduce_window_min": window_extreme,
    "concatenate": concatenated,
    "pad": padded,
    "gather": gathered,
    "scatter": scattered,
    "scatter-add": scattered,
    "scatter_add": scattered,
    "dynamic_slice": taken,
    "dynamic_update_slice": updated,
    "convert_element_type": converted,
    "is_finite": finite,
    "sort": lambda equation, *operands: [collapsed(a) for a in operands],
    "argmax": lambda equation, a: between(0.0, float(size_of(equation.invars[0])))(),
    "argmin": lambda equation, a: between(0.0, float(size_of(equation.invars[0])))(),
    **{name: between(0.0, 1.0) for name in ("reduce_and", "reduce_or")},
    **{name: lambda *_: REALS for name in ("select_and_gather_add", "select_and_scatter_add", "real")},
}
# What JAX itself is asked for on exact operands: there is no rounding in it.
EXACT = {
    *("pad", "gather", "scatter", "dynamic_slice", "dynamic_update_slice", "argmax", "argmin", "and", "or", "not"),
    *("xor", "reduce_and", "reduce_or", "sort", "round"),
}
# Operations whose results are real numbers wherever they are defined, on real operands.
TOTAL = set(RULES) | MOVES | {"select_n"}
TOTAL -= {"gather", "reduce_window_max", "reduce_window_min", "pad"}

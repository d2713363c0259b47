"""How fast a loss can grow: ``L(theta) <= a0 + a1 r + (c/2) r^2`` with ``r = ||theta||_2``, read from its program.

Every element ``v`` of a variable gets an upper bound

    v <= a + b . |theta| + sum_i w_i (u_i + U_i . |theta|)^2,        b, w, u, U >= 0,

with ``|theta|`` the moduli of the parameters, so that the coordinates an element depends on stay told apart and a
sum of squares of distinct parameters is at most ``r^2``, not a multiple of it. Bounded values (ranges) are
constants, log-sum-exp and its kin grow as fast as what they are taken of.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jax.extend.core import ClosedJaxpr, Literal

from gdmap.engines.balls import structure
from gdmap.engines.identities import Identities, shape_of, size_of
from gdmap.engines.intervals import Interval, constant_interval, hull, is_exact, is_real
from gdmap.engines.ranges import dependent, intervals

# Rounding: a sum or product of k non-negative floats is off by less than (k + 1) * ULP, relatively.
ULP = 2.0**-52
# The power method stops when the bound improves by less than this share in a step.
SETTLED = 1e-3
# Bounds with more terms than this are not set up.
MOST_TERMS = 30_000_000
LOG_2 = math.nextafter(math.log(2), 1)


class Growth(NamedTuple):
    """An upper bound ``L(theta) <= a0 + a1 ||theta|| + (curvature/2) ||theta||^2`` for all real ``theta``.

    ``curvature`` is 0 if the loss grows slower than a square, and infinite if nothing is shown; all numbers are
    rounded upward. ``bounded``: the loss lies between two constants (it then also has ``curvature`` 0).
    ``steps`` say where the bound comes from.

    Where ``L`` is analytic on all of ``R^n``, gradient descent is non-singular for every step size
    ``eta < 1/curvature``: with ``curvature < c' < 1/eta`` the function ``L - (c'/2) ||theta||^2`` tends to minus
    infinity, so it has a largest value; there its Hessian is negative semidefinite, ``H <= c' I``, and
    ``det(I - eta H) > 0``. (arXiv:2402.13108, Proposition 18, has the case of bounded losses.)
    """

    curvature: float
    a1: float
    a0: float
    bounded: bool
    steps: tuple[str, ...]

    def at(self, radius: Any) -> Any:
        """The bound at a distance from the origin."""
        quadratic = 0.0 if self.curvature == 0 else 0.5 * self.curvature * np.square(radius)
        return self.a0 + self.a1 * np.asarray(radius) + quadratic


NOTHING_SHOWN = (math.inf, math.inf, math.inf)


def growth(program: ClosedJaxpr) -> Growth:
    """The slowest growth of a scalar loss that its flat program shows; see `Growth`.

    Raises
    ------
    ValueError
        If the program has more than one input or its output is no scalar.
    """
    jaxpr = program.jaxpr
    if len(jaxpr.invars) != 1 or len(jaxpr.outvars) != 1 or size_of(jaxpr.outvars[0]) != 1:
        raise ValueError("growth is defined for a program with one input, a vector, and one output, a number")
    output = jaxpr.outvars[0]
    with np.errstate(all="ignore"):
        return GrowthAnalysis(program).growth(output)


class Form(NamedTuple):
    """Upper bounds of the elements of a variable, flattened: see the module. Not finite: ``constant`` is inf.

    ``constant`` (elements,), ``linear`` (elements, n), ``weights`` (elements, squares), ``offsets`` (squares,),
    ``slopes`` (squares, n).
    """

    constant: np.ndarray
    linear: sp.csr_array
    weights: sp.csr_array
    offsets: np.ndarray
    slopes: sp.csr_array

    @property
    def is_finite(self) -> bool:
        """Whether there is a bound for every element."""
        return bool(np.all(self.constant < np.inf))

    @property
    def is_linear(self) -> bool:
        """Whether there is no square in it."""
        return self.weights.nnz == 0


class MissingError(Exception):
    """Another bound is needed first."""

    def __init__(self, key: Any) -> None:
        self.key = key


class GrowthAnalysis:
    """Bounds of the variables of one program, computed when asked for."""

    def __init__(self, program: ClosedJaxpr) -> None:
        self.program = program
        self.n = size_of(program.jaxpr.invars[0])
        self.same = Identities(program)
        self.ranges = intervals(program)
        self.varying = dependent(program)
        self.forms: dict[Any, Form] = {}
        self.steps: dict[str, None] = {}

    # The result -----------------------------------------------------------------------------------

    def growth(self, output: Any) -> Growth:
        """The growth of the output."""
        whole = hull(self.interval(output))
        bounded = whole.is_bounded and whole.is_real
        if bounded or (whole.upper < math.inf and whole.is_real):
            ends = f"between {whole.lower:.6g} and {whole.upper:.6g}" if bounded else f"at most {whole.upper:.6g}"
            return Growth(0.0, 0.0, whole.upper, bounded, (f"the loss lies {ends} for all parameters",))
        form = self.resolved((output, 1))
        if not form.is_finite:
            return Growth(*NOTHING_SHOWN, False, (*self.steps, "no bound by a square is shown"))
        root = np.sqrt(form.weights.toarray().ravel()) * (1 + 2 * ULP)
        offsets, slopes = root * form.offsets, scaled_rows(form.slopes, root)
        curvature = 2 * largest_eigenvalue(slopes)
        slope = form.linear.toarray().ravel() + 2 * (slopes.T @ offsets)
        terms = slopes.shape[0] + self.n + 8
        a1 = float(np.linalg.norm(slope)) * (1 + terms * ULP)
        a0 = float(form.constant[0] + offsets @ offsets * (1 + terms * ULP))
        a0 += abs(a0) * 4 * ULP
        steps = [*self.steps, f"L <= {a0:.6g} + {a1:.6g} r + {curvature / 2:.6g} r^2"]
        return Growth(curvature, a1, a0, False, tuple(steps))

    def resolved(self, key: Any) -> Form:
        """The form of a key, after those it needs (without recursion: programs are long)."""
        stack = [key]
        while stack:
            top = stack[-1]
            if top not in self.forms:
                try:
                    self.forms[top] = self.computed(top)
                except MissingError as missing:
                    stack.append(missing.key)
                    continue
            stack.pop()
        return self.forms[key]

    def note(self, text: str) -> None:
        """Add a step of the derivation, once."""
        self.steps.setdefault(text)

    # Access ---------------------------------------------------------------------------------------

    def interval(self, atom: Any) -> Interval:
        """The range of an operand, element by element where known."""
        return constant_interval(atom.val) if isinstance(atom, Literal) else self.ranges[atom]

    def ends(self, atom: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the range of every element, flattened."""
        interval = self.interval(atom)
        shape = shape_of(atom)
        return np.broadcast_to(interval.lower, shape).ravel(), np.broadcast_to(interval.upper, shape).ravel()

    def magnitude(self, atom: Any) -> np.ndarray:
        """The largest modulus of every element by its range, flattened."""
        lower, upper = self.ends(atom)
        return np.maximum(np.abs(lower), np.abs(upper))

    def form(self, atom: Any, sign: int) -> Form:
        """An upper bound of ``sign * atom``; ``sign = 0``: of its modulus."""
        if isinstance(atom, Literal) or atom not in self.varying:
            lower, upper = self.ends(atom)
            return self.constants({1: upper, -1: -lower, 0: self.magnitude(atom)}[sign])
        key = (self.same.canonical.get(atom, atom), sign)
        if key not in self.forms:
            raise MissingError(key)
        return self.forms[key]

    def log_form(self, atom: Any, sign: int) -> Form:
        """An upper bound of ``sign * log(atom)``, of an operand that is positive."""
        key = ("log", self.same.canonical.get(atom, atom), sign)
        if key not in self.forms:
            raise MissingError(key)
        return self.forms[key]

    def constants(self, values: np.ndarray) -> Form:
        """Bounds by constants."""
        m = len(values)
        return Form(np.asarray(values, float), none(m, self.n), none(m, 0), np.zeros(0), none(0, self.n))

    def unbounded(self, count: int) -> Form:
        """No bounds."""
        return self.constants(np.full(count, np.inf))

    # The rules ------------------------------------------------------------------------------------

    def computed(self, key: Any) -> Form:
        """The form of one key from those of the operands."""
        if key[0] == "log":
            return self.log_of(key[1], key[2])
        variable, sign = key
        known = self.known(variable, sign)
        if np.all(known < np.inf):
            return self.constants(known)
        if sign == 0:
            return self.modulus(variable, known)
        if variable is self.program.jaxpr.invars[0]:
            return Form(
                np.zeros(self.n), sp.eye_array(self.n, format="csr"), *self.constants(np.zeros(self.n))[2:]
            )
        equation = self.same.makers[variable]
        rule = RULES.get(equation.primitive.name)
        if equation.primitive.name in structure.RULES:
            position = next(i for i, v in enumerate(equation.outvars) if v is variable)
            form = self.moved(equation, sign, position)
        elif rule is None:
            self.note(f"{equation.primitive.name}: no bound")
            return self.unbounded(size_of(variable))
        else:
            form = rule(self, equation, sign)
        return sharpened(form, known)

    def modulus(self, variable: Any, known: np.ndarray) -> Form:
        """A bound of the modulus: the larger of both signs, or, so that squares count once, a rule of its own."""
        equation = self.same.makers.get(variable)
        name = "" if equation is None else equation.primitive.name
        if name not in PRODUCTS:
            both = joined(self.form(variable, 1), self.form(variable, -1))
            if both.is_linear or (name not in MODULI and name not in structure.RULES):
                return both
        assert equation is not None
        if name in structure.RULES:
            position = next(i for i, v in enumerate(equation.outvars) if v is variable)
            return sharpened(self.moved(equation, 0, position), known)
        return sharpened(RULES[name](self, equation, 0), known)

    def known(self, variable: Any, sign: int) -> np.ndarray:
        """The bound that the range gives."""
        lower, upper = self.ends(variable)
        if not is_real(self.interval(variable)):
            return np.full(len(lower), np.inf)
        return {1: upper, -1: -lower, 0: np.maximum(np.abs(lower), np.abs(upper))}[sign]

    def moved(self, equation: Any, sign: int, position: int) -> Form:
        """A primitive that moves elements: rows are moved."""
        name = equation.primitive.name
        n_arrays = {"concatenate": len(equation.invars), "pad": 2, "dynamic_update_slice": 2}.get(name, 1)
        forms = [self.form(atom, sign) for atom in equation.invars[:n_arrays]]
        starts = np.cumsum([0, *(len(form.constant) for form in forms)])
        places = [
            (start + np.arange(size_of(atom))).reshape(shape_of(atom))
            for start, atom in zip(starts[:-1], equation.invars[:n_arrays], strict=True)
        ]
        indices = [self.ends(atom)[0].reshape(shape_of(atom)) for atom in equation.invars[n_arrays:]]
        if any(not isinstance(a, Literal) and a in self.varying for a in equation.invars[n_arrays:]):
            return self.unbounded(size_of(equation.outvars[position]))
        integers = [
            np.asarray(x, np.dtype(atom.aval.dtype))
            for x, atom in zip(indices, equation.invars[n_arrays:], strict=True)
        ]
        try:
            found = structure.RULES[name](equation, [*places, *integers], structure.PlainMover())[position]
        except TypeError:  # an index out of bounds
            return self.unbounded(size_of(equation.outvars[position]))
        return picked(stacked(forms), np.asarray(found).ravel())

    def log_of(self, variable: Any, sign: int) -> Form:
        """``sign * log`` of a positive variable, by how it is made."""
        lower, upper = self.ends(variable)
        if is_real(self.interval(variable)):
            bound = np.log(upper) if sign > 0 else -np.log(lower)
            if np.all(bound < np.inf):
                return self.constants(bound + np.abs(bound) * 1e-14 + 1e-300)
        equation = self.same.makers.get(variable)
        count = size_of(variable)
        if equation is None:
            return self.unbounded(count)
        name, inputs = equation.primitive.name, equation.invars
        if name == "exp":
            return self.form(inputs[0], sign)
        if name in ("abs", "stop_gradient", "copy"):
            return self.log_form(inputs[0], sign)
        if name in ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "slice", "gather"):
            if any(not isinstance(a, Literal) and a in self.varying for a in inputs[1:]):
                return self.unbounded(count)
            place = np.arange(size_of(inputs[0])).reshape(shape_of(inputs[0]))
            others = [np.asarray(self.ends(a)[0].reshape(shape_of(a)), np.dtype(a.aval.dtype)) for a in inputs[1:]]
            moved = structure.RULES[name](equation, [place, *others], structure.PlainMover())[0]
            return picked(self.log_form(inputs[0], sign), np.asarray(moved).ravel())
        if name == "logistic":
            self.note("log(sigmoid(z)) grows like |z|")
            return added(self.constants(np.full(count, LOG_2)), positive(self.form(inputs[0], -1)))
        if name == "sub" and sign < 0 and self.is_complement(equation):
            self.note("log(1 - sigmoid(z)) grows like |z|")
            inner = self.same.maker(inputs[1]).invars[0]
            return added(self.constants(np.full(count, LOG_2)), positive(self.form(inner, 1)))
        if name in ("mul", "div") and all(self.is_positive(atom) for atom in inputs):
            other = sign if name == "mul" else -sign
            parts = [self.log_form_of(atom, s) for atom, s in zip(inputs, (sign, other), strict=True)]
            shape = shape_of(variable)
            return added(*(spread(part, shape_of(atom), shape) for part, atom in zip(parts, inputs, strict=True)))
        if name == "reduce_sum" and self.is_positive(inputs[0]):
            self.note("log of a sum of n terms is at most log n more than the largest log")
            rows = rows_of(equation)
            if sign < 0:  # the sum is at least its first term
                return picked(self.log_form(inputs[0], -1), rows[:, 0])
            most = math.log(rows.shape[1]) * (1 + 1e-14)
            largest = largest_in(self.log_form(inputs[0], 1), rows)
            return added(self.constants(np.full(count, most)), largest)
        if name == "reduce_max" and self.is_positive(inputs[0]) and sign > 0:
            return largest_in(self.log_form(inputs[0], 1), rows_of(equation))
        if sign > 0:
            self.note("log v <= 2 log(1 + u) <= 2 u if v <= (1 + u)^2")
            return scaled(below_root(self.form(variable, 1)), np.full(count, 2.0))
        self.note(f"the logarithm of {name} may tend to minus infinity at an unknown rate")
        return self.unbounded(count)

    def log_form_of(self, atom: Any, sign: int) -> Form:
        """`log_form`, also of constants."""
        if isinstance(atom, Literal) or atom not in self.varying:
            lower, upper = self.ends(atom)
            bound = np.log(upper) if sign > 0 else -np.log(lower)
            return self.constants(bound + np.abs(bound) * 1e-14 + 1e-300)
        return self.log_form(atom, sign)

    def is_positive(self, atom: Any) -> bool:
        """Whether every element is positive."""
        return hull(self.interval(atom)).is_positive

    def is_complement(self, equation: Any) -> bool:
        """Whether an equation is ``1 - sigmoid(z)``."""
        one, other = equation.invars
        maker = self.same.maker(other)
        lower, upper = self.ends(one)
        is_one = bool(np.all(lower == 1) and np.all(upper == 1))
        return is_one and maker is not None and maker.primitive.name == "logistic"

    def linear_modulus(self, atom: Any) -> Form | None:
        """A bound of the modulus without squares, or None."""
        form = self.form(atom, 0)
        return form if form.is_linear else None

    def scale_of(self, atom: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The moduli of a factor by its range, spread to a shape and flattened."""
        return np.broadcast_to(self.magnitude(atom).reshape(shape_of(atom)), shape).ravel()

    def product(self, equation: Any, sign: int) -> Form:
        """``x * y``: a constant or bounded factor, a square, or a mixed product of two linear bounds."""
        shape, (one, other) = shape_of(equation.outvars[0]), equation.invars
        count = size_of(equation.outvars[0])
        for factor, part in ((one, other), (other, one)):
            if is_exact(self.interval(factor)):
                return self.scaled_by(part, self.exact_value(factor, shape), sign, shape)
        if self.same.are_same(one, other):
            return self.squared(one, sign)
        for factor, part in ((one, other), (other, one)):
            size = self.scale_of(factor, shape)
            if np.all(size < np.inf):
                lower = self.ends(factor)[0]
                signed = sign if np.all(lower >= 0) else 0
                form = spread(self.form(part, signed), shape_of(part), shape)
                return scaled(positive(form), size)
        left, right = self.linear_modulus(one), self.linear_modulus(other)
        if left is None or right is None:
            self.note("a product of more than two parameters: faster than a square")
            return self.unbounded(count)
        self.note("|x y| <= (t|x| + |y|/t)^2 / 4")
        return mixed_products(spread(left, shape_of(one), shape), spread(right, shape_of(other), shape))

    def exact_value(self, atom: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The value of an exact operand in a shape, flattened."""
        return np.broadcast_to(np.broadcast_to(self.interval(atom).lower, shape_of(atom)), shape).ravel()

    def scaled_by(self, part: Any, factor: np.ndarray, sign: int, shape: tuple[int, ...]) -> Form:
        """A product with exact constants."""
        up = scaled(spread(self.form(part, sign), shape_of(part), shape), np.maximum(factor, 0))
        if np.all(factor >= 0):
            return up
        down = scaled(spread(self.form(part, -sign), shape_of(part), shape), np.maximum(-factor, 0))
        return added(up, down)

    def squared(self, atom: Any, sign: int) -> Form:
        """A square."""
        count = size_of(atom)
        if sign < 0:
            return self.constants(np.zeros(count))
        modulus = self.linear_modulus(atom)
        if modulus is None or not modulus.is_finite:
            self.note("a square of something that grows faster than linearly")
            return self.unbounded(count)
        return Form(
            np.zeros(count),
            none(count, self.n),
            sp.eye_array(count, format="csr"),
            modulus.constant,
            modulus.linear,
        )

    def contraction(self, equation: Any) -> Form:
        """Sums of products: of a bounded factor and a linear bound, or of two linear bounds."""
        left, right = equation.invars
        count = size_of(equation.outvars[0])
        terms = pairs(equation)
        if terms is None:
            self.note(f"{equation.primitive.name}: too many terms to follow")
            return self.unbounded(count)
        rows, p, q = terms
        for factor, part, i, j in ((left, right, p, q), (right, left, q, p)):
            size = self.magnitude(factor)
            if np.all(size < np.inf):
                matrix = sp.csr_array((size[i], (rows, j)), shape=(count, size_of(part)))
                form = self.form(part, 0)
                if not isinstance(factor, Literal) and factor in self.varying:
                    self.note("a sum of bounded values times parameters grows linearly")
                return combined(matrix, form)
        one, other = self.linear_modulus(left), self.linear_modulus(right)
        if one is None or other is None or not one.is_finite or not other.is_finite:
            self.note("a product of more than two parameters: faster than a square")
            return self.unbounded(count)
        per_term = (one.linear.nnz + other.linear.nnz) / max(len(one.constant) + len(other.constant), 1)
        if len(rows) * max(per_term, 1) > MOST_TERMS:
            self.note("a product of parameters with too many terms to follow")
            return self.unbounded(count)
        if self.same.are_same(left, right) and np.array_equal(p, q):
            products = Form(
                np.zeros(len(p)), none(len(p), self.n), sp.eye_array(len(p), format="csr"), *picked(one, p)[:2]
            )
        else:
            self.note("|x y| <= (t|x| + |y|/t)^2 / 4")
            products = mixed_products(picked(one, p), picked(other, q))
        matrix = sp.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(count, len(rows)))
        return combined(matrix, products)


# Forms -------------------------------------------------------------------------------------------


def none(rows: int, columns: int) -> sp.csr_array:
    """A matrix of zeros."""
    return sp.csr_array((rows, columns))


def scaled_rows(matrix: sp.csr_array, factors: np.ndarray) -> sp.csr_array:
    """Each row times its factor."""
    return sp.csr_array(sp.diags_array(factors, format="csr") @ matrix)


def times(factor: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A product in which nothing times infinity is nothing, rounded upward."""
    product = np.where(factor == 0, 0.0, factor * value)
    exact = (factor == 1) | (product == 0)
    return np.where(exact, product, product + np.abs(product) * 2 * ULP)


def scaled(form: Form, factors: np.ndarray) -> Form:
    """Non-negative multiples."""
    inflated = np.where((factors == 1) | (factors == 0), factors, factors * (1 + 2 * ULP))
    return form._replace(
        constant=times(factors, form.constant),
        linear=scaled_rows(form.linear, inflated),
        weights=scaled_rows(form.weights, inflated),
    )


def block(one: sp.csr_array, other: sp.csr_array) -> sp.csr_array:
    """Matrices side by side."""
    return sp.csr_array(sp.hstack([one, other], format="csr"))


def added(one: Form, other: Form) -> Form:
    """The sum of two forms."""
    constant = one.constant + other.constant
    linear = one.linear + other.linear
    if linear.nnz < one.linear.nnz + other.linear.nnz:
        linear = linear * (1 + 2 * ULP)
    return Form(
        np.where((one.constant == 0) | (other.constant == 0), constant, constant + np.abs(constant) * 2 * ULP),
        sp.csr_array(linear),
        block(one.weights, other.weights),
        np.concatenate([one.offsets, other.offsets]),
        sp.csr_array(sp.vstack([one.slopes, other.slopes], format="csr")),
    )


def joined(one: Form, other: Form) -> Form:
    """A bound of both (the larger of two)."""
    both = added(one, other)
    return both._replace(
        constant=np.maximum(one.constant, other.constant), linear=sp.csr_array(one.linear.maximum(other.linear))
    )


def positive(form: Form) -> Form:
    """A bound of the positive part."""
    return form._replace(constant=np.maximum(form.constant, 0.0))


def sharpened(form: Form, known: np.ndarray) -> Form:
    """Constant bounds in place of others, where they are known."""
    better = known < np.inf
    if not np.any(better):
        return form
    keep = np.where(better, 0.0, 1.0)
    return form._replace(
        constant=np.where(better, known, form.constant),
        linear=scaled_rows(form.linear, keep),
        weights=scaled_rows(form.weights, keep),
    )


def picked(form: Form, index: np.ndarray) -> Form:
    """Some rows."""
    return form._replace(
        constant=form.constant[index],
        linear=sp.csr_array(form.linear[index]),
        weights=sp.csr_array(form.weights[index]),
    )


def spread(form: Form, shape: tuple[int, ...], target: tuple[int, ...]) -> Form:
    """The form of a variable of one shape for one that it is broadcast to."""
    if shape == target:
        return form
    index = np.arange(math.prod(shape)).reshape(shape)
    return picked(form, np.broadcast_to(index, target).ravel())


def stacked(forms: Sequence[Form]) -> Form:
    """The rows of several forms, one after the other."""
    if len(forms) == 1:
        return forms[0]
    return Form(
        np.concatenate([form.constant for form in forms]),
        sp.csr_array(sp.vstack([form.linear for form in forms], format="csr")),
        sp.csr_array(sp.block_diag([form.weights for form in forms], format="csr")),
        np.concatenate([form.offsets for form in forms]),
        sp.csr_array(sp.vstack([form.slopes for form in forms], format="csr")),
    )


def summed_rows(matrix: sp.csr_array, rows: sp.csr_array) -> sp.csr_array:
    """A product of non-negative matrices, rounded upward (exact if entries of 1 pick single entries)."""
    result = sp.csr_array(matrix @ rows)
    exact = np.all(matrix.data == 1) and result.nnz == int(np.sum(np.diff(rows.indptr)[matrix.indices]))
    if exact or not result.nnz:
        return result
    return sp.csr_array(result * (1 + (int(np.max(np.diff(matrix.indptr))) + 2) * ULP))


def combined(matrix: sp.csr_array, form: Form) -> Form:
    """Sums of the rows of a form with non-negative weights."""
    infinite = np.isinf(form.constant)
    safe = np.where(infinite, 0.0, form.constant)
    constant = matrix @ safe
    size = matrix @ np.abs(safe)
    longest = int(np.max(np.diff(matrix.indptr), initial=0))
    constant = constant + size * (longest + 2) * ULP
    if np.any(infinite):
        constant = np.where(matrix @ infinite.astype(float) > 0, np.inf, constant)
    return form._replace(
        constant=constant, linear=summed_rows(matrix, form.linear), weights=summed_rows(matrix, form.weights)
    )


def largest_in(form: Form, rows: np.ndarray) -> Form:
    """A bound of the largest of the elements in each row of indices."""
    linear = functools.reduce(lambda a, b: sp.csr_array(a.maximum(b)), (form.linear[column] for column in rows.T))
    squares = functools.reduce(
        lambda a, b: sp.csr_array(a.maximum(b)), (form.weights[column] for column in rows.T)
    )
    return form._replace(
        constant=form.constant[rows].max(axis=1), linear=sp.csr_array(linear), weights=sp.csr_array(squares)
    )


def mixed_products(one: Form, other: Form) -> Form:
    """``|x y| <= (t |x| + |y| / t)^2 / 4``, row by row, with ``t`` that balances the slopes."""
    count = len(one.constant)
    a, b = (np.sqrt(np.asarray(form.linear.multiply(form.linear).sum(axis=1)).ravel()) for form in (one, other))
    ratio = np.where((a > 0) & (b > 0), b / np.where(a > 0, a, 1.0), 1.0)
    t = 2.0 ** np.round(np.log2(np.sqrt(ratio)))  # powers of two: exact
    bad = np.isinf(one.constant) | np.isinf(other.constant)
    left, right = scaled(positive(one), t), scaled(positive(other), 1 / t)
    total = added(left, right)
    return Form(
        np.where(bad, np.inf, 0.0),
        none(count, one.linear.shape[1]),
        sp.csr_array(sp.eye_array(count, format="csr") / 4),
        np.where(bad, 0.0, total.constant),
        total.linear,
    )


def below_root(form: Form) -> Form:
    """``u >= 0`` with ``v <= (1 + u)^2`` where ``v`` is at most the form: a linear one."""
    root = form.weights.copy()
    root.data = np.sqrt(root.data) * (1 + 2 * ULP)
    inner = Form(form.offsets, form.slopes, none(len(form.offsets), 0), np.zeros(0), none(0, form.slopes.shape[1]))
    squares = combined(root, inner)
    rest = Form(np.maximum(form.constant, 0.0), form.linear, *squares[2:])
    return added(rest, squares)


def largest_eigenvalue(slopes: sp.csr_array) -> float:
    """An upper bound of the largest eigenvalue of ``S' S`` for a non-negative matrix ``S``.

    For every positive vector ``z`` it is at most ``max_i (S' S z)_i / z_i`` (Collatz and Wielandt); ``z`` comes
    from the power method, block by block of what is connected, and rounding is upward.
    """
    slopes = sp.csr_array(slopes)
    slopes.eliminate_zeros()
    if slopes.nnz == 0:
        return 0.0
    bipartite = sp.block_array([[None, slopes], [slopes.T, None]], format="csr")
    _, label = sp.csgraph.connected_components(bipartite, directed=False)
    part = label[slopes.shape[0] :]
    transposed = sp.csr_array(slopes.T)
    active = np.diff(transposed.indptr) > 0
    z = np.ones(slopes.shape[1])
    best = np.full(int(label.max()) + 1, np.inf)
    longest = int(np.max(np.diff(slopes.indptr))) + int(np.max(np.diff(transposed.indptr)))
    last = math.inf
    for step in range(60):
        product = transposed @ (slopes @ z)
        quotient = np.where(active, product / z, 0.0) * (1 + (longest + 4) * ULP)
        worst = np.zeros(len(best))
        np.maximum.at(worst, part, quotient)
        best = np.minimum(best, worst)
        now = float(np.max(best[part[active]]))
        if step > 2 and last - now <= SETTLED * now:
            break
        last = now
        peak = np.zeros(len(best))
        np.maximum.at(peak, part, product)
        z = np.where(active, product / np.where(peak > 0, peak, 1.0)[part], 1.0)
        z = np.maximum(z, 1e-6)
    return math.nextafter(max(float(np.max(best[part[active]])), 1e-280), math.inf)


def rows_of(equation: Any) -> np.ndarray:
    """The flat indices of the elements that a reduction takes together, one row per result."""
    shape = shape_of(equation.invars[0])
    axes = tuple(equation.params["axes"])
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    index = np.arange(math.prod(shape)).reshape(shape)
    count = math.prod(shape[axis] for axis in axes)
    return np.transpose(index, (*rest, *axes)).reshape(math.prod(shape[axis] for axis in rest), count)


def pairs(equation: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The terms of sums of products: which result, which element of either operand (flat indices)."""
    count = size_of(equation.outvars[0])
    left, right = (np.arange(size_of(atom)).reshape(shape_of(atom)) for atom in equation.invars)
    if equation.primitive.name == "dot_general":
        (left_axes, right_axes), (left_batch, right_batch) = equation.params["dimension_numbers"]
        length = math.prod(left.shape[axis] for axis in left_axes)
        if count * length > MOST_TERMS:
            return None
        batch = math.prod(left.shape[axis] for axis in left_batch)

        def arranged(index: np.ndarray, contracted: Any, shared: Any) -> np.ndarray:
            free = [axis for axis in range(index.ndim) if axis not in contracted and axis not in shared]
            return np.transpose(index, (*shared, *free, *contracted)).reshape(batch, -1, length)

        p, q = arranged(left, left_axes, left_batch), arranged(right, right_axes, right_batch)
        p, q = np.broadcast_arrays(p[:, :, None, :], q[:, None, :, :])
        rows = np.broadcast_to(np.arange(count)[:, None], (count, length))
        return rows.ravel(), p.ravel(), q.ravel()
    patches, weights, space, order = structure.convolution(equation)
    groups, outputs, window = weights.shape
    if count * window > MOST_TERMS:
        return None
    image = np.moveaxis(patches, -2, 0)[..., None, :]  # (groups, batch, *space, 1, window)
    kernel = weights.reshape(groups, *([1] * len(space)), outputs, window)
    image, kernel = np.broadcast_arrays(image, kernel)
    order_ = [*order, len(order)]
    image, kernel = (np.transpose(x, order_).reshape(count, window) for x in (image, kernel))
    rows = np.broadcast_to(np.arange(count)[:, None], image.shape)
    inside = (image >= 0).ravel()
    return rows.ravel()[inside], image.ravel()[inside], kernel.ravel()[inside]


# Rules -------------------------------------------------------------------------------------------

Rule = Callable[[GrowthAnalysis, Any, int], Form]


def operand(analysis: GrowthAnalysis, equation: Any, atom: Any, sign: int) -> Form:
    """The form of an operand, spread to the shape of the result."""
    return spread(analysis.form(atom, sign), shape_of(atom), shape_of(equation.outvars[0]))


def add_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A sum."""
    left, right = equation.invars
    return added(operand(analysis, equation, left, sign), operand(analysis, equation, right, sign))


def sub_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A difference."""
    left, right = equation.invars
    return added(operand(analysis, equation, left, sign), operand(analysis, equation, right, -sign))


def div_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A quotient: by a constant, or by something bounded away from zero."""
    shape, (one, other) = shape_of(equation.outvars[0]), equation.invars
    count = size_of(equation.outvars[0])
    lower, upper = (np.broadcast_to(x.reshape(shape_of(other)), shape).ravel() for x in analysis.ends(other))
    least = np.where(lower > 0, lower, np.where(upper < 0, -upper, 0.0))
    size = np.where(least > 0, 1 / np.where(least > 0, least, 1.0) * (1 + 2 * ULP), np.inf)
    if not np.all(size < np.inf):
        return analysis.unbounded(count)
    if np.all(lower == upper) and np.all(1 / least * least == 1) and np.all(np.log2(least) % 1 == 0):
        size = 1 / least  # powers of two are exact
    if np.all(lower > 0) and np.all(lower == upper):
        return scaled_division(operand(analysis, equation, one, sign), size, least)
    signed = sign if np.all(lower > 0) else -sign if np.all(upper < 0) else 0
    return scaled(positive(operand(analysis, equation, one, signed)), size)


def scaled_division(form: Form, size: np.ndarray, divisor: np.ndarray) -> Form:
    """A form over positive constants."""
    result = scaled(form, size)
    quotient = form.constant / divisor
    return result._replace(constant=np.where(form.constant == 0, 0.0, quotient + np.abs(quotient) * 2 * ULP))


def maximum_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``max``: a bound of both; of the negative: of the first that has one."""
    forms = [operand(analysis, equation, atom, sign) for atom in equation.invars]
    if (equation.primitive.name == "max") == (sign > 0):
        return joined(*forms)
    return min(forms, key=lambda form: (not form.is_finite, not form.is_linear, form.linear.nnz))


def reduction_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A maximum or minimum over axes."""
    rows, form = rows_of(equation), analysis.form(equation.invars[0], sign)
    if (equation.primitive.name == "reduce_max") == (sign > 0):
        return largest_in(form, rows)
    return picked(form, rows[:, 0])


def sum_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A sum over axes."""
    rows = rows_of(equation)
    owner = np.repeat(np.arange(len(rows)), rows.shape[1])
    matrix = sp.csr_array((np.ones(rows.size), (owner, rows.ravel())), shape=(len(rows), rows.size))
    return combined(matrix, analysis.form(equation.invars[0], sign))


def cumulative_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """Running sums."""
    shape, axis = shape_of(equation.invars[0]), equation.params["axis"]
    index = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1).reshape(-1, shape[axis])
    index = index[:, ::-1] if equation.params["reverse"] else index
    earlier = np.tril(np.ones((shape[axis], shape[axis]), bool))
    place, source = np.nonzero(earlier)
    matrix = sp.csr_array(
        (np.ones(len(index) * len(place)), (index[:, place].ravel(), index[:, source].ravel())),
        shape=(math.prod(shape),) * 2,
    )
    return combined(matrix, analysis.form(equation.invars[0], sign))


def window_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """Sums over windows."""
    index = structure.windows(shape_of(equation.invars[0]), equation.params).reshape(
        size_of(equation.outvars[0]), -1
    )
    owner = np.repeat(np.arange(len(index)), index.shape[1])
    inside = index.ravel() >= 0
    matrix = sp.csr_array(
        (np.ones(int(inside.sum())), (owner[inside], index.ravel()[inside])),
        shape=(len(index), size_of(equation.invars[0])),
    )
    return combined(matrix, analysis.form(equation.invars[0], sign))


def power_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """Integer powers: squares, and what is no power at all."""
    exponent = 2 if equation.primitive.name == "square" else equation.params["y"]
    if exponent == 2:
        return analysis.squared(equation.invars[0], sign)
    if exponent == 1:
        return analysis.form(equation.invars[0], sign)
    analysis.note(f"a power {exponent} grows faster than a square")
    return analysis.unbounded(size_of(equation.outvars[0]))


def any_power_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``x^p`` with a constant ``p``: at most ``1 + x`` up to 1, a square at 2."""
    count, (base, exponent) = size_of(equation.outvars[0]), equation.invars
    lower, upper = analysis.ends(exponent)
    if sign > 0 and np.all(lower == upper) and np.all(lower >= 0) and np.all(upper <= 1):
        return added(analysis.constants(np.ones(count)), positive(operand(analysis, equation, base, 1)))
    if sign > 0 and np.all(lower == 2) and np.all(upper == 2):
        return analysis.squared(base, sign)
    return analysis.unbounded(count)


def root_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``sqrt(v) <= 1 + u`` if ``v <= (1 + u)^2``."""
    count = size_of(equation.outvars[0])
    if sign < 0:
        return analysis.constants(np.zeros(count))
    return added(analysis.constants(np.ones(count)), below_root(analysis.form(equation.invars[0], 1)))


def log_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``log``."""
    if not analysis.is_positive(equation.invars[0]):
        analysis.note("a logarithm of something not shown to be positive")
        return analysis.unbounded(size_of(equation.outvars[0]))
    return analysis.log_form(equation.invars[0], sign)


def log1p_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``log(1 + v)``: of an exponential, at most ``log 2`` plus the exponent."""
    count, (inner,) = size_of(equation.outvars[0]), equation.invars
    if sign < 0:
        return analysis.unbounded(count)
    maker = analysis.same.maker(inner)
    if maker is not None and maker.primitive.name == "exp":
        analysis.note("log(1 + exp(z)) grows like |z|")
        return added(analysis.constants(np.full(count, LOG_2)), positive(analysis.form(maker.invars[0], 1)))
    analysis.note("log(1 + v) <= log 2 + 2 u if v <= (1 + u)^2")
    slow = scaled(below_root(analysis.form(inner, 1)), np.full(count, 2.0))
    return added(analysis.constants(np.full(count, LOG_2)), slow)


def abs_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """The modulus."""
    if sign < 0:
        return analysis.constants(np.zeros(size_of(equation.outvars[0])))
    return analysis.form(equation.invars[0], 0)


def neg_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """The negative."""
    return analysis.form(equation.invars[0], -sign)


def same_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """What leaves its operand as it is."""
    return analysis.form(equation.invars[0], sign)


def shrinking_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """Functions with ``|f(v)| <= |v|`` of the same sign."""
    return positive(analysis.form(equation.invars[0], sign))


def expm1_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """Exponentials of what is not bounded above grow faster than any square."""
    analysis.note(f"{equation.primitive.name} of something not shown to be bounded above")
    return analysis.unbounded(size_of(equation.outvars[0]))


def select_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """A choice: the branch, where it is decided, a bound of every branch elsewhere."""
    which, *branches = equation.invars
    shape = shape_of(equation.outvars[0])
    lower, upper = (np.broadcast_to(x.reshape(shape_of(which)), shape).ravel() for x in analysis.ends(which))
    result: Form | None = None
    for index, branch in enumerate(branches):
        possible = (lower <= index) & (index <= upper)
        if not np.any(possible):
            continue
        form = analysis.form(branch, sign)
        if not np.all(possible):
            form = scaled(form, possible.astype(float))
            form = form._replace(constant=np.where(possible, form.constant, -np.inf))
        result = form if result is None else joined(result, form)
    assert result is not None
    return result


def scatter_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``scatter-add`` at constant indices."""
    target, indices, updates = equation.invars
    if not isinstance(indices, Literal) and indices in analysis.varying:
        return analysis.unbounded(size_of(equation.outvars[0]))
    index = np.asarray(analysis.ends(indices)[0].reshape(shape_of(indices)), np.dtype(indices.aval.dtype))
    targets = structure.scatter_targets(equation, index).ravel()
    kept = np.flatnonzero(targets >= 0)
    matrix = sp.csr_array((np.ones(len(kept)), (targets[kept], kept)), shape=(size_of(target), size_of(updates)))
    return added(analysis.form(target, sign), combined(matrix, analysis.form(updates, sign)))


def clamp_rule(analysis: GrowthAnalysis, equation: Any, sign: int) -> Form:
    """``clamp``: at most the larger of its lower end and the operand."""
    low, middle, high = (operand(analysis, equation, atom, sign) for atom in equation.invars)
    return joined(joined(low, high), middle)


RULES: dict[str, Rule] = {
    "add": add_rule,
    "add_any": add_rule,
    "sub": sub_rule,
    "mul": lambda analysis, equation, sign: analysis.product(equation, sign),
    "div": div_rule,
    "neg": neg_rule,
    "abs": abs_rule,
    "max": maximum_rule,
    "min": maximum_rule,
    "clamp": clamp_rule,
    "reduce_max": reduction_rule,
    "reduce_min": reduction_rule,
    "reduce_sum": sum_rule,
    "reduce_window_sum": window_rule,
    "cumsum": cumulative_rule,
    "dot_general": lambda analysis, equation, _: analysis.contraction(equation),
    "conv_general_dilated": lambda analysis, equation, _: analysis.contraction(equation),
    "square": power_rule,
    "integer_pow": power_rule,
    "pow": any_power_rule,
    "sqrt": root_rule,
    "log": log_rule,
    "log1p": log1p_rule,
    "exp": expm1_rule,
    "expm1": expm1_rule,
    "select_n": select_rule,
    "scatter-add": scatter_rule,
    "scatter_add": scatter_rule,
    "stop_gradient": same_rule,
    "copy": same_rule,
    "copy_p": same_rule,
    "optimization_barrier": same_rule,
    "convert_element_type": lambda analysis, equation, sign: (
        analysis.form(equation.invars[0], sign)
        if {str(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0])} == {"float64"}
        else analysis.unbounded(size_of(equation.outvars[0]))
    ),
    "asinh": shrinking_rule,
    "atan": shrinking_rule,
}
# Rules that hold for a sign 0, a bound of the modulus, as well.
PRODUCTS = {"dot_general", "conv_general_dilated"}
MODULI = {"add", "add_any", "sub", "neg", "mul", "div", "reduce_sum", "cumsum", "reduce_window_sum"}

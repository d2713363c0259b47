"""An optax update as a function of flat arrays: what its state consists of, and its derivative where it has one.

The update is traced once. From the trace one reads off which parts of the optimiser's state count steps and
whether they matter, holds fields of the state at given values, and differentiates where the chain rule meets
``0 * inf`` (``sqrt`` at zero) although the update as a whole is differentiable.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, Var, jaxpr_as_fun
from jax.interpreters import partial_eval

from gdmap.engines.precision import is_traced

# Two numbers of updates that stand for infinitely many; no small period divides both, nor their difference.
LIMIT_TIMES = (2**30 - 35, 2**29 + 10007, 2**29 + 10008)
# Primitives that are not differentiable where their argument is zero.
SINGULAR_AT_ZERO = ("sqrt", "sign", "abs")
CALLS = ("jit", "pjit", "closed_call", "core_closed_call")
# One-sided derivatives agree if they do up to this share.
SLOPES_AGREE = 1e-9
PROBED_UPDATES = 8
PROBED_KEYWORD = 0.5


class Leaf(NamedTuple):
    """One array of the optimiser's state.

    ``kind`` is ``'float'`` (part of the map's state), ``'frozen'`` (held at a given value), ``'count'``
    (``initial`` + the number of updates made), ``'switch'`` (``initial`` before the first update, ``later``
    after it) or ``'idle'`` (never enters the update of the floating arrays).
    """

    kind: str
    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    initial: int = 0
    later: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=int))


class Layout(NamedTuple):
    """How the optimiser's state is laid out; hashable."""

    structure: Any
    leaves: tuple[Leaf, ...]
    depends_on_time: bool

    def of_kind(self, *kinds: str) -> list[int]:
        """The positions of the leaves of some kinds."""
        return [position for position, leaf in enumerate(self.leaves) if leaf.kind in kinds]


class Program(NamedTuple):
    """A traced update ``(keywords, parameters, gradient, leaves) -> (parameters, leaves)`` on flat lists.

    ``held`` maps the variables of frozen leaves after the update to the positions of their inputs; the first
    ``keywords`` inputs are keywords.
    """

    trace: ClosedJaxpr
    held: dict[Var, int]
    keywords: int


def traced_update(
    make: Callable[[Any], Any], layout: Layout, keywords: Any, theta: Any, gradient: Any, leaves: Sequence[Any]
) -> tuple[Program, list[Any]]:
    """The `Program` of the transformation ``make(keywords)`` for these arguments, and the flat arguments."""

    def update(keywords: Any, theta: Any, gradient: Any, leaves: Sequence[Any]) -> tuple[Any, list[Any]]:
        state = jax.tree.unflatten(layout.structure, leaves)
        updates, new_state = make(keywords).update(gradient, state, theta)
        if jax.tree.structure(new_state) != layout.structure:
            raise ValueError("the update returns an optimiser state of another structure")
        return theta + updates, jax.tree.leaves(new_state)

    arguments = (keywords, theta, gradient, list(leaves))
    trace = jax.make_jaxpr(update)(*arguments)
    first = len(jax.tree.leaves((keywords, theta, gradient)))
    held = {
        trace.jaxpr.outvars[1 + position]: first + position
        for position in layout.of_kind("frozen")
        if isinstance(trace.jaxpr.outvars[1 + position], Var)
    }
    return Program(trace, held, len(jax.tree.leaves(keywords))), jax.tree.leaves(arguments)


def evaluate(program: Program, arguments: Sequence[Any], at_zero: Iterator[float] | None = None) -> list[Any]:
    """The outputs of a program.

    With ``at_zero`` the primitives that are singular at zero take the next of these constants there
    (``sqrt(0)``, for instance), so that nothing differentiates them.
    """
    held = {variable: arguments[position] for variable, position in program.held.items()}
    return _run(program.trace.jaxpr, program.trace.consts, arguments, held, at_zero)


def _run(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    held: dict[Var, Any],
    at_zero: Iterator[float] | None,
) -> list[Any]:
    values: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in CALLS:
            inner = equation.params["jaxpr"]
            results = _run(inner.jaxpr, inner.consts, operands, {}, at_zero)
        elif name in SINGULAR_AT_ZERO and at_zero is not None:
            (x,) = operands
            zero = x == 0
            regular = _bind(jaxpr, equation, [jnp.where(zero, jnp.ones_like(x), x)])[0]
            results = [jnp.where(zero, jnp.full_like(regular, next(at_zero)), regular)]
        else:
            results = _bind(jaxpr, equation, operands)
        for variable, result in zip(equation.outvars, results, strict=True):
            values[variable] = held.get(variable, result)
    return [read(atom) for atom in jaxpr.outvars]


def _bind(jaxpr: Jaxpr, equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation of ``jaxpr``: those of a program that consists of it alone."""
    inputs = {atom: operand for atom, operand in zip(equation.invars, operands, strict=True) if is_variable(atom)}
    wanted = [not isinstance(variable, DropVar) for variable in equation.outvars]
    outputs = [variable for variable, want in zip(equation.outvars, wanted, strict=True) if want]
    program = Jaxpr((), list(inputs), outputs, [equation], equation.effects, jaxpr.debug_info)
    results = iter(jaxpr_as_fun(ClosedJaxpr(program, ()))(*inputs.values()))
    return [next(results) if want else None for want in wanted]


def is_variable(atom: Any) -> bool:
    """Whether an operand is a variable and not a literal."""
    return not isinstance(atom, Literal)


def is_singular_somewhere(jaxpr: Jaxpr) -> bool:
    """Whether a program contains a primitive that is not differentiable at zero."""
    return any(
        equation.primitive.name in SINGULAR_AT_ZERO
        or (equation.primitive.name in CALLS and is_singular_somewhere(equation.params["jaxpr"].jaxpr))
        for equation in jaxpr.eqns
    )


def differentiable_update(program: Program, arguments: Sequence[Any], outputs: Sequence[int]) -> list[Any]:
    """Some outputs of a program, with its true derivative also at zeros of ``sqrt``, and NaN where there is none.

    Write the update as ``F(x, s)`` with ``s`` in place of the square roots that vanish at ``x0``. If ``F(x0, s)``
    does not depend on ``s``, then ``f(x0 + h) - f(x0) = F(x0 + h, s) - F(x0, s)``, and the derivative is that of
    ``F`` in ``x`` as ``s -> 0``: for Adam at a minimum ``mu / eps``, since ``mu = 0``. Otherwise, or if that limit
    depends on the way ``s -> 0`` (quotients of norms), the update has no derivative at ``x0``, and the result is
    NaN.
    """
    if not is_singular_somewhere(program.trace.jaxpr):
        results = evaluate(program, arguments)
        return [results[position] for position in outputs]

    def chosen(arguments: Sequence[Any], *at_zero: float) -> list[Any]:
        results = evaluate(program, arguments, itertools.cycle(at_zero) if at_zero else None)
        return [results[position] for position in outputs]

    @jax.custom_jvp
    def update(*arguments: Any) -> list[Any]:
        return chosen(arguments)

    @update.defjvp
    def _(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        values, moved = chosen(primals), chosen(primals, 1.0)
        limits = jnp.finfo(values[0].dtype)
        near, nearer, nearest = (float(limits.tiny) ** power for power in (0.2, 0.3, 0.4))

        def slope_along(tangents: Sequence[Any], *at_zero: float) -> list[Any]:
            return list(jax.jvp(lambda *x: chosen(x, *at_zero), primals, tangents)[1])

        defined = [value == other for value, other in zip(values, moved, strict=True)]
        if limits.bits == 64:
            direction = probe_direction(primals, program.keywords)
            one, other = slope_along(direction, nearest), slope_along(direction, near, nearer, nearest)
            defined = [
                ok & (jnp.abs(x - y) <= SLOPES_AGREE * jnp.abs(x))
                for ok, x, y in zip(defined, one, other, strict=True)
            ]
        slopes = slope_along(tangents, nearest)
        return values, [
            slope * jnp.where(ok, 1.0, jnp.nan).astype(slope.dtype)
            for slope, ok in zip(slopes, defined, strict=True)
        ]

    return list(update(*arguments))


def probe_direction(primals: Sequence[Any], keywords: int) -> tuple[Any, ...]:
    """A generic tangent of everything but the keywords, the same every time."""
    rng = np.random.default_rng(0)
    direction: list[Any] = []
    for position, primal in enumerate(primals):
        if not jnp.issubdtype(jnp.result_type(primal), jnp.floating):
            direction.append(np.zeros(jnp.shape(primal), jax.dtypes.float0))
            continue
        values = rng.standard_normal(jnp.shape(primal)) * (position >= keywords)
        direction.append(jnp.asarray(values, jnp.result_type(primal)))
    return tuple(direction)


class UnusableTransformationError(ValueError):
    """An optax transformation whose update is not a map of parameters and floating optimiser state."""


def analysed(
    make: Callable[[Any], Any], keywords: dict[str, Any], dim: int, frozen: Sequence[str], describe: str
) -> Layout:
    """The `Layout` of the optimiser ``make(keywords)`` on ``dim`` parameters (``keywords``: shapes or arrays).

    Runs inside a float64 context. Errors of the factory itself pass through.

    Raises
    ------
    UnusableTransformationError
        If the update draws random numbers, or its integers are something other than step counts.
    """
    vector = jax.ShapeDtypeStruct((dim,), np.float64)
    abstract = jax.tree.map(lambda array: jax.ShapeDtypeStruct(np.shape(array), np.float64), keywords)
    shapes = jax.eval_shape(lambda keywords, theta: make(keywords).init(theta), abstract, vector)
    paths, structure = jax.tree.flatten_with_path(shapes)
    leaves = []
    for path, leaf in paths:
        is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise UnusableTransformationError(
                f"{describe} draws random numbers (its state holds a PRNG key), so it is not one deterministic map"
            )
        name = field_name(path)
        kind = "idle" if not is_floating else "frozen" if name in frozen else "float"
        leaves.append(Leaf(kind, name, jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)))
    layout = Layout(structure, tuple(leaves), False)
    check_frozen(layout, frozen, describe)
    state = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    program, _ = traced_update(make, layout, abstract, vector, vector, state)
    integers = influential_integers(program, layout)
    return with_integers(make, layout, program, keywords, dim, integers, describe)


def field_name(path: Any) -> str:
    """The innermost named field on the way to a leaf of the optimiser's state."""
    for key in reversed(path):
        if isinstance(key, jax.tree_util.GetAttrKey):
            return key.name
        if isinstance(key, jax.tree_util.DictKey):
            return str(key.key)
    return jax.tree_util.keystr(path)


def check_frozen(layout: Layout, frozen: Sequence[str], describe: str) -> None:
    """Refuse names in ``frozen`` that are not one floating field of the state."""
    fields = [leaf.name for leaf in layout.leaves if np.issubdtype(leaf.dtype, np.floating)]
    for name in frozen:
        if fields.count(name) != 1:
            problem = "has several fields" if name in fields else "has no floating field"
            raise ValueError(
                f"the state of {describe} {problem} {name!r} to freeze; it has "
                f"{', '.join(map(repr, dict.fromkeys(fields))) or 'none at all'}"
            )


def influential_integers(program: Program, layout: Layout) -> set[int]:
    """Which integer and boolean leaves enter the update of the parameters and floating leaves, in the long run."""
    jaxpr = program.trace.jaxpr
    first = len(jaxpr.invars) - len(layout.leaves)
    wanted = {0, *(1 + position for position in layout.of_kind("float"))}
    integers = layout.of_kind("idle")
    # A frozen leaf's own update is not used.
    while True:
        _, used = partial_eval.dce_jaxpr(jaxpr, [output in wanted for output in range(len(jaxpr.outvars))])
        found = {position for position in integers if used[first + position]}
        if found <= {output - 1 for output in wanted}:
            return found
        wanted |= {1 + position for position in found}


def with_integers(
    make: Callable[[Any], Any],
    layout: Layout,
    program: Program,
    keywords: dict[str, Any],
    dim: int,
    integers: set[int],
    describe: str,
) -> Layout:
    """``layout`` with the influential integers recognised as counts or switches."""
    paths = ", ".join(layout.leaves[position].path for position in sorted(integers))
    for position in integers:
        leaf = layout.leaves[position]
        if leaf.shape != ():
            raise UnusableTransformationError(
                f"{describe} keeps integers in {leaf.path} ({leaf.dtype}{list(leaf.shape)}) that are no step count"
                + (": a PRNG key? Random updates are not one deterministic map" if "uint" in leaf.dtype else "")
            )
    if not only_integers_enter(program, layout, integers):
        raise UnusableTransformationError(
            f"{describe} keeps integers ({paths}) that depend on gradients or parameters, so its state is not "
            "parameters and floating arrays alone"
        )
    others = {position for position in layout.of_kind("idle") if layout.leaves[position].shape == ()} - integers
    others = {position for position in others if only_integers_enter(program, layout, {position})}
    history = integer_history(make, layout, keywords, dim, sorted(integers | others))
    leaves = list(layout.leaves)
    for position, (initial, *later) in history.items():
        leaf = leaves[position]
        if [value - initial for value in later] == [*range(1, PROBED_UPDATES), 1000]:
            leaves[position] = leaf._replace(kind="count", initial=initial)
        elif len(set(later)) == 1:
            leaves[position] = leaf._replace(kind="switch", initial=initial, later=later[0])
        elif position in integers:
            raise UnusableTransformationError(
                f"{describe} keeps an integer in {leaf.path} that is neither a step count nor constant after "
                "the first step (a cycle, or a count of events), so its state is not parameters and floating "
                "arrays alone"
            )
    return layout._replace(leaves=tuple(leaves), depends_on_time=bool(integers))


def only_integers_enter(program: Program, layout: Layout, integers: set[int]) -> bool:
    """Whether the next values of these leaves depend on nothing but their present ones."""
    wanted = [False, *(position in integers for position in range(len(layout.leaves)))]
    _, used = partial_eval.dce_jaxpr(program.trace.jaxpr, wanted)
    first = len(used) - len(layout.leaves)
    return all(position - first in integers for position, uses in enumerate(used) if uses)


def integer_history(
    make: Callable[[Any], Any], layout: Layout, keywords: dict[str, Any], dim: int, integers: list[int]
) -> dict[int, list[int]]:
    """Integers after 0, 1, ..., and 1000 updates; those of step counts if they cannot be computed (schedules that
    close over traced values).
    """
    histories: dict[int, list[int]] = {position: [] for position in integers}
    assumed = {position: [0, *range(1, PROBED_UPDATES), 1000] for position in integers}
    if not integers:
        return {}
    with jax.ensure_compile_time_eval():
        concrete, theta, gradient = made_up(keywords, dim)
        leaves = jax.tree.leaves(make(concrete).init(theta))
        if is_traced(leaves):
            return assumed
        program, arguments = traced_update(make, layout, concrete, theta, gradient, leaves)
        others = arguments[: len(arguments) - len(leaves)]
        for update in range(PROBED_UPDATES + 1):
            if update == PROBED_UPDATES:
                for position in integers:
                    first, *_, last = histories[position]
                    if last - first == PROBED_UPDATES - 1:
                        leaves[position] = jnp.asarray(first + 999, leaves[position].dtype)
                leaves = evaluate(program, [*others, *leaves])[1:]
            if is_traced(leaves):
                return assumed
            for position in integers:
                histories[position].append(int(leaves[position]))
            leaves = evaluate(program, [*others, *leaves])[1:]
    return histories


def made_up(keywords: dict[str, Any], dim: int) -> tuple[dict[str, Any], Any, Any]:
    """Keywords (those being traced at `PROBED_KEYWORD`), parameters and a gradient to try an update on."""
    concrete = {
        name: jnp.full(np.shape(value), PROBED_KEYWORD) if is_traced(value) else jnp.asarray(value)
        for name, value in keywords.items()
    }
    theta, gradient = np.random.default_rng(0).standard_normal((2, dim))
    return concrete, jnp.asarray(theta), jnp.asarray(gradient)

"""The compiler of traced functions to vector kernels, against XLA: primitives, known programs, random ones."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import gdmap
from gdmap.engines import choice
from gdmap.engines.precision import float64
from gdmap.engines.simd.flatten import Unsupported
from gdmap.engines.simd.kernel import Kernel, Layout
from gdmap.engines.simd.primitives import ELEMENTWISE
from gdmap.engines.simd.vector_math import FUNCTIONS

SMALL, LOOPS = Layout(64, 8, True), Layout(8, 1, False)
WIDE = {"straight": SMALL, "loops": LOOPS}
# Straight-line code on fewer lanes is compiled in a quarter of the time.
LAYOUTS = {"straight": Layout(16, 2, True), "loops": LOOPS}
# Two blocks of straight-line code, the second not full.
LANES = 70


# --- running a function both ways -----------------------------------------------------------------------------


def native(functions, inputs, layout):
    """The outputs of functions of the inputs, lane by lane, all in one kernel; per function a list of arrays."""
    count = len(inputs[0])
    examples = [np.zeros(values.shape[1:], values.dtype) for values in inputs]
    with float64():
        shapes = [jax.tree.leaves(jax.eval_shape(function, *examples)) for function in functions]
    outputs = [np.zeros(leaf.shape, leaf.dtype) for leaves in shapes for leaf in leaves]

    def run(stop, *values):
        given = values[: len(examples)]
        found = [leaf for function in functions for leaf in jax.tree.leaves(function(*given))]
        return (stop, *given, *found)

    kernel = Kernel(run, (np.int32(0), *examples, *outputs), 0, layout)
    rows = [
        np.zeros((count, 1), np.int32),
        *inputs,
        *(np.zeros((count, *out.shape), out.dtype) for out in outputs),
    ]
    blocks = [layout.packed(row) for row in rows]
    kernel(blocks, 1)
    found = iter(
        layout.unpacked(block, count).reshape(count, *out.shape).astype(out.dtype)
        for block, out in zip(blocks[1 + len(inputs) :], outputs, strict=True)
    )
    return [[next(found) for _ in leaves] for leaves in shapes]


def by_xla(functions, inputs, fast=False):
    """The same from ``jit(vmap(function))``."""
    with float64():
        options = {"xla_backend_optimization_level": 0} if fast else {}
        together = jax.jit(
            jax.vmap(lambda *values: [jax.tree.leaves(f(*values)) for f in functions]), compiler_options=options
        )
        return [[np.asarray(leaf) for leaf in leaves] for leaves in together(*inputs)]


def assert_agrees(found, expected, tolerance, name, by_element=False):
    """Equal integers and infinities; floats equal relative to the largest of their lane (or each to itself)."""
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    if found.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected, name)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.where(finite, 0, found), np.where(finite, 0, expected), name)
    size = np.abs(np.where(finite, expected, 0))
    if not by_element and size.ndim > 1:
        size = np.broadcast_to(size.max(axis=tuple(range(1, size.ndim)), initial=0, keepdims=True), size.shape)
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.where(finite, found - expected, 0))
    worst = np.max(difference / np.maximum(size, 1e-290), initial=0)
    assert worst <= tolerance, f"{name}: {worst:.1e}"


def check(functions, *inputs, tolerance=1e-13, by_element=False, layouts=LAYOUTS):
    """Functions (by name) agree with XLA in both kinds of code."""
    expected = by_xla(functions.values(), inputs)
    for kind, layout in layouts.items():
        found = native(functions.values(), inputs, layout)
        for name, ours, theirs in zip(functions, found, expected, strict=True):
            for ours_, theirs_ in zip(ours, theirs, strict=True):
                assert_agrees(ours_, theirs_, tolerance, f"{name} ({kind})", by_element)


def numbers(*shape, seed=0, count=LANES):
    return np.random.default_rng(seed).normal(size=(count, *shape))


def with_special(values, seed=1):
    """Some numbers replaced by zeros of both signs, infinities, nan, large and small ones."""
    rng = np.random.default_rng(seed)
    special = rng.choice([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e8, -1e-8, 3.0, -2.5, 0.5], values.shape)
    return np.where(rng.random(values.shape) < 0.4, special, values)


def integers(*shape, seed=2, dtype=np.int64, low=-9, high=10, count=LANES):
    return np.random.default_rng(seed).integers(low, high, (count, *shape)).astype(dtype)


# --- every elementwise primitive ------------------------------------------------------------------------------

# Maps into the domain of a function (of acosh and atanh to where XLA's own version is accurate).
DOMAINS = {
    "acos": jnp.sin,
    "asin": jnp.sin,
    "atanh": lambda x: 0.9 * jnp.sin(x),
    "acosh": lambda x: 1.5 + jnp.abs(x),
    "log": lambda x: 1.5 + jnp.abs(x),
    "pow": jnp.abs,
    "sqrt": jnp.abs,
    "rsqrt": jnp.abs,
    "log1p": lambda x: jnp.abs(x) - 0.5,
}
OF_TRUTH = ("and", "or", "xor", "not")
OF_INTEGERS = (*OF_TRUTH, "shift_left", "shift_right_arithmetic", "shift_right_logical")
SIGNED = (
    "add",
    "sub",
    "mul",
    "div",
    "rem",
    "neg",
    "max",
    "min",
    "abs",
    "sign",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
UNARY = ("neg", "abs", "sign", "floor", "ceil", "sqrt", "is_finite", "not")


def bound(name):
    """A primitive as a function of arrays."""
    if name == "add_any":
        return lambda x, y: jax.vjp(lambda z: (z, z), x)[1]((x, y))[0]
    return getattr(
        lax, {"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not"}.get(name, name)
    )


def is_unary(name):
    return name in UNARY or FUNCTIONS.get(name) == 1


def test_elementwise_primitives_on_floats():
    x, y = with_special(numbers(3, 5, seed=5)), with_special(numbers(3, 5, seed=6), 7)
    functions = {}
    for name in ELEMENTWISE:
        if name in OF_INTEGERS:
            continue
        function, domain = bound(name), DOMAINS.get(name)
        if is_unary(name):
            functions[name] = lambda x, y, f=function: f(x)
            if domain:
                functions[f"{name} inside"] = lambda x, y, f=function, d=domain: f(d(x))
        else:
            functions[name] = lambda x, y, f=function: f(x, y)
            if domain:
                functions[f"{name} inside"] = lambda x, y, f=function, d=domain: f(d(x), y)
    # Powers of large numbers and zeros of large sines are as far off as XLA's own.
    check(functions, x, y, tolerance=4e-14, by_element=True, layouts=WIDE)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, bool])
def test_elementwise_primitives_on_integers(dtype):
    low = 0 if dtype in (bool, np.uint8) else -9
    x = integers(3, 5, dtype=dtype, low=low, high=2 if dtype is bool else 120)
    y = integers(3, 5, dtype=dtype, low=low, high=2 if dtype is bool else 10, seed=3)
    if dtype in (np.int64, np.int32):
        x[:3], y[:2] = np.iinfo(dtype).min, -1
        y[-3:] *= 30
    names = [*OF_TRUTH, "eq", "ne", "max", "min"] if dtype is bool else [*OF_INTEGERS, *SIGNED]
    if dtype is np.uint8:
        names.remove("abs")
    functions = {}
    for name in names:
        function = bound(name)
        functions[name] = (lambda x, y, f=function: f(x)) if is_unary(name) else lambda x, y, f=function: f(x, y)
    for name in ("add", "mul", "max", "min") if dtype is not bool else ("max", "min", "logical_or", "logical_and"):
        fold = {"add": jnp.sum, "mul": jnp.prod, "max": jnp.max, "min": jnp.min}.get(name)
        fold = fold or {"logical_or": jnp.any, "logical_and": jnp.all}[name]
        functions[f"fold {name}"] = lambda x, y, fold=fold: (fold(x, axis=0), fold(x), fold(x[:, :1], axis=1))
    functions["reduce and"] = lambda x, y: lax.reduce(x, np.full((), -1).astype(dtype), lax.bitwise_and, (0,))
    functions["product"] = lambda x, y: (x @ y.T, jnp.einsum("ij,ij->i", x, y))
    functions["conversions"] = lambda x, y: [
        x.astype(t) for t in (bool, "int8", "uint8", "int32", "int64", "float64")
    ]
    if dtype is not bool:
        functions["powers"] = lambda x, y: (x**2, x**3, x**0, (x * 1.5) ** (y % 5))
    check(functions, x, y)


def test_conversions_of_numbers_beyond_the_range():
    x = with_special(numbers(4, 5) * 1e3)
    check({"to": lambda x: [x.astype(t) for t in (bool, "int8", "uint8", "int32", "uint32", "int64")]}, x)


def test_extrema_and_rounding():
    x, y = with_special(numbers(4, 5, seed=5)), with_special(numbers(4, 5, seed=6), 7)
    functions = {
        "with constants": lambda x, y: (jnp.maximum(x, 0.5), jnp.minimum(1.0, x), jnp.maximum(np.nan, x)),
        "clip": lambda x, y: (jnp.clip(x, -1, 2), lax.clamp(x[0, 0], y, x[1, 1]), lax.clamp(0.0, x, y)),
        "reduced": lambda x, y: (x.max(0), x.min(1), jnp.max(x), jnp.nanmax(x, axis=0)),
        "rounded": lambda x, y: (
            jnp.round(x * 3),
            lax.round(x * 4, lax.RoundingMethod.AWAY_FROM_ZERO),
            jnp.trunc(x),
        ),
        "remainders": lambda x, y: (jnp.mod(x, y), jnp.fmod(x, y)),
        "choices": lambda x, y: (jnp.where(x > y, x, 2 * y), jnp.where(jnp.isnan(x), 0.0, x), jnp.nan_to_num(x)),
        "sign": lambda x, y: (jnp.sign(x), jnp.heaviside(x, y), jnp.isinf(x), jnp.isfinite(y)),
    }
    check(functions, x, y, by_element=True)


# --- shapes ---------------------------------------------------------------------------------------------------

SHAPES = [(), (1,), (3,), (5, 7), (2, 3, 4), (0,), (2, 0, 3), (1, 4, 1)]


def test_shapes_and_broadcasting():
    arrays = [numbers(*shape, seed=seed) for seed, shape in enumerate(SHAPES) if 0 not in shape]
    shapes = [shape for shape in SHAPES if 0 not in shape]

    def all_of(make):
        return lambda *arrays: [make(a) for a in arrays]

    functions = {
        "scaled": all_of(lambda a: a * 2 + 1),
        "turned": all_of(lambda a: jnp.exp(a).T),
        "flat": all_of(lambda a: jnp.tanh(a).reshape(-1)[::-1]),
        "sums": all_of(lambda a: (a.sum(), jnp.sum(a, keepdims=True), (a.T * 2).max())),
        "wider": all_of(lambda a: jnp.broadcast_to(a[..., None] if a.ndim else a, (*a.shape, 3)) * np.arange(3.0)),
        "empty": all_of(lambda a: a.reshape(-1)[:0].sum() + a.reshape(-1)[1:1].prod()),
        "empty product": all_of(lambda a: jnp.zeros((a.size, 0)) @ jnp.sin(a.reshape(-1)[:0]) + a.reshape(-1)),
        "empty pieces": all_of(lambda a: jnp.sin(jnp.concatenate([a.reshape(-1)[:0]] * 2) + 1).sum() + a),
    }
    assert shapes[0] == ()
    # The sums of a few dozen numbers of both signs may be small beside them.
    check(functions, *arrays, tolerance=1e-12)


def broadcast_axes(x):
    return (
        lax.add_p.bind(x[:, :1], x),
        lax.sub_p.bind(x[:1], jnp.tanh(x) @ np.eye(7)),
        lax.max_p.bind(x[:1, :1], x),
    )


def test_views_pads_and_pieces():
    x = numbers(5, 7)
    c = np.random.default_rng(0).normal(size=(7, 3))
    functions = {
        "slices": lambda x: (x[-1], x[::2], x[::-2, 1:5:3], x[1:4, 6:2:-2], lax.slice(x, (1, 0), (5, 7), (2, 3))),
        "slices of sums": lambda x: (
            (x @ c)[::2],
            jnp.flip(x @ c, 0),
            (x @ c).T[1:],
            (x @ c).reshape(3, 5)[1:, ::2],
        ),
        "reshapes": lambda x: (
            x.T.reshape(5, 7),
            x[:4, :6].reshape(3, 8),
            (x[::2, ::3] * 2).reshape(9),
            x.reshape(7, 5).T,
        ),
        "unstacked": lambda x: [a * 2 for a in jnp.unstack(jnp.tanh(x), axis=1)],
        "named": lambda x: jax.checkpoint(lambda a: jnp.sin(checkpoint_name(a, "a")))(x),
        "roll": lambda x: (jnp.roll(x, 2), jnp.roll(x, -3, 1), jnp.roll(x @ c, 1, 0)),
        "joined": lambda x: jnp.concatenate([x[:2], jnp.sin(x[3:]), (x @ c @ c.T)[:1], x[:0]]) * 2 + x[0],
        "stack": lambda x: (jnp.stack([x, x @ c @ c.T, 2 * x], 1), jnp.tile(x, (2, 1)), jnp.repeat(x, 2, axis=1)),
        "split": lambda x: [a * 2 for a in jnp.split(x @ c @ c.T, [1, 4], axis=1)],
        "pad": lambda x: [jnp.pad(x, ((1, 2), (0, 3)), mode=m) for m in ("constant", "edge", "reflect", "wrap")],
        "cut": lambda x: (
            lax.pad(x @ c, 1.5, ((-1, 2, 0), (-1, -1, 0))) + lax.pad(x @ c, 0.0, ((1, 0, 0), (0, -2, 0)))
        ),
        "spread": lambda x: lax.pad(x, 0.0, ((1, 2, 1), (-1, 3, 2))),
        "spread with": lambda x: (
            lax.pad(x, 1.0, ((1, 2, 1), (-1, 3, 2))) + lax.pad(x, x[0, 0], ((1, 2, 1), (-1, 3, 2)))
        ),
        "spread and cut": lambda x: lax.pad(x, 0.0, ((-2, -3, 2), (-1, -1, 1))),
        "pad and sum reshaped": lambda x: jnp.pad(x[:3, :4], ((0, 0), (0, 1))) + (x @ c).reshape(3, 5),
        "two pads": lambda x: jnp.pad(x[1:], ((1, 0), (0, 0))) * jnp.pad(x[:, 2:], ((0, 0), (1, 1))) + x,
        "update": lambda x: lax.dynamic_update_slice(jnp.tanh(x @ c), x[:2, :2], (3, 5)),
        "update of a sum": lambda x: lax.dynamic_update_slice((x @ c).reshape(3, 5) * 2, x[:2, :2], (0, 1)),
        "set": lambda x: (
            x.at[2].set(x[0]),
            x.at[1:3, ::2].set(7.0),
            x.at[np.array([0, 3]), np.array([6, 1])].set(0.0),
        ),
        "add at": lambda x: (
            x.at[np.array([3, 0, 0])].add(x[:3] * 2),
            x.at[:, 2].add(x[:, 0]),
            x.at[-1].add(jnp.exp(x[0])),
        ),
        "gather": lambda x: (
            x[np.array([0, 1, 1]), np.array([2, 3, -1])],
            x[:, np.array([1, 1])],
            (x @ c)[np.array([4, 0])],
        ),
        "take": lambda x: (
            jnp.take_along_axis(x, np.array([[0], [3], [6], [1], [2]]), 1),
            jnp.take(x, np.array([9, 1]), axis=0, mode="clip"),
        ),
        "broadcast axes": broadcast_axes,
        "diagonal": lambda x: (jnp.diag(x[:5, :5]), jnp.trace(x), jnp.tril(x), jnp.diag(x[0])),
    }
    check(functions, x)


# --- products, sums -------------------------------------------------------------------------------------------


def test_products():
    w, x = numbers(2, 3, 4, seed=4), numbers(4, 6, seed=3)
    functions = {
        "plain": lambda w, x: (w @ x, x.T @ x, x[0] @ x.T, w[0] @ x[:, 0]),
        "batch": lambda w, x: jnp.einsum("bij,bkj->bik", w, w),
        "several": lambda w, x: (
            jnp.einsum("bij,cij->bc", w, w),
            jnp.einsum("bij,bij->", w, w),
            jnp.tensordot(w, w, 3),
        ),
        "outer": lambda w, x: (jnp.einsum("i,j->ij", x[0], w[0, 0]), jnp.einsum("bij,k->kjib", w, x[0])),
        "turned": lambda w, x: jnp.einsum("bij,jk,lik->bl", w, x, w[:, :, :1] + x[0]),
        "takes": lambda w, x: x[np.array([3, 0, 0, 2])].T @ x[:, np.array([1, 1, 5])],
        "of sums": lambda w, x: (jnp.tanh(w.sum(0)) @ jnp.exp(-(x**2)), (w.sum(0) @ x).max(1) @ w[1]),
        "mixed": lambda w, x: lax.dot_general(
            (w * 9).astype(jnp.int32)[0], x, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float64
        ),
        "matrices": lambda w, x: (
            jnp.kron(w[0], x[:2, :2]),
            jnp.linalg.norm(x),
            jnp.linalg.norm(w, axis=2),
            jnp.vdot(x, x),
        ),
        "mapped": lambda w, x: jax.vmap(lambda a: jnp.sin(a).T @ a, in_axes=1, out_axes=2)(w),
    }
    check(functions, w, x)


def test_long_sums():
    """Rolled loops with several partial sums and what is left over."""
    x = numbers(203, count=9)
    big = np.random.default_rng(1).normal(size=(40, 40))

    def matrix(x):
        return jnp.outer(jnp.tanh(x[:40]), x[50:90]) + big

    functions = {
        "sums": lambda x: [fold(x[:n]) for fold in (jnp.sum, jnp.max, jnp.min) for n in (203, 197, 64)],
        "product": lambda x: jnp.prod(1 + 0.01 * x),
        "of functions": lambda x: jnp.sum(jnp.tanh(x[:151]) * x[52:] ** 2),
        "matrix": lambda x: (matrix(x) @ x[:40], matrix(x).T @ x[:40], jnp.sum(matrix(x), 0), matrix(x).max(1)),
        "two axes": lambda x: (matrix(x).sum(), jnp.einsum("ij,ij->", matrix(x), big), jnp.sum(matrix(x) ** 2)),
        "matrix product": lambda x: (matrix(x) @ matrix(x))[:, ::3],
        "softmax": lambda x: (jax.nn.logsumexp(x), jax.nn.softmax(x[:101]), jax.nn.logsumexp(matrix(x), axis=0)),
    }
    check(functions, x, tolerance=4e-13, layouts={"loops": LOOPS})
    short = {name: functions[name] for name in ("sums", "product", "of functions")}
    check(short, x, tolerance=4e-13, layouts={"straight": SMALL})


# --- functions of users, gradients, loops ---------------------------------------------------------------------


def functions_of_users():
    idx = np.array([3, 0, 0, 4, 2])
    c = np.random.default_rng(5).normal(size=(6, 6))
    return {
        "logsumexp": lambda v: jax.nn.logsumexp(c @ v),
        "softmax": lambda v: jnp.sum(jax.nn.softmax(v) * c[0]) + jax.nn.log_softmax(v)[2],
        "softplus": lambda v: jnp.sum(jax.nn.softplus(c @ v) + jax.nn.silu(v)),
        "gelu": lambda v: jnp.sum(jax.nn.gelu(v) + jax.nn.gelu(v, approximate=False)),
        "elu": lambda v: jnp.sum(jax.nn.elu(v) + jax.nn.leaky_relu(v) + jax.nn.relu6(v) + jax.nn.soft_sign(v)),
        "norm": lambda v: jnp.linalg.norm(v) + jnp.linalg.norm(c @ v, ord=1) + jnp.var(v) + jnp.std(v),
        "clip": lambda v: jnp.sum(jnp.clip(v, -0.5, 0.7) * v + jnp.abs(v) ** 1.5),
        "gather": lambda v: jnp.sum(v[idx] ** 2 * v[:5] + jnp.roll(v, 1)[::2].sum()),
        "scatter": lambda v: jnp.sum(v.at[idx].add(v[:5] ** 2) ** 3 + v.at[2].set(v[0] * v[1])),
        "extrema": lambda v: jnp.max(v * c) * jnp.min(v + c[0]) + jnp.prod(v[:3]),
        "scan": lambda v: lax.scan(lambda a, b: (jnp.tanh(0.3 * a * b + 0.1 * v[idx].sum()), a), v[0], v)[1].sum(),
        "network": lambda v: jnp.sum(jnp.tanh(c[:, :3] @ jnp.tanh(v.reshape(3, 2) @ c[:2])) ** 2),
        "switch": lambda v: lax.switch(jnp.int32(v[0] > 0) + 1, [jnp.sum, lambda u: jnp.sum(u**3), jnp.prod], v),
        "trigonometry": lambda v: jnp.sum(jnp.sin(v) * jnp.arctan2(v, v[::-1]) + jnp.cosh(v) ** -1 + v**-3),
        "random": lambda v: jnp.sum(v * jax.random.normal(jax.random.key(1), (6,))) ** 2,
        "solved": lambda v: jnp.sum(lax.fori_loop(0, 7, lambda i, a: a - 0.1 * (c @ a - v), v * 0) ** 2),
        "counted": lambda v: jnp.sum(
            lax.fori_loop(0, 5, lambda i, a: jnp.where(i % 2 == 0, a * v, jnp.sin(a) / (i + 1)), v)
        ),
    }


def test_functions_of_users():
    check(functions_of_users(), numbers(6, seed=11), tolerance=4e-13, layouts=WIDE)


def test_their_gradients():
    gradients = {name: jax.grad(function) for name, function in functions_of_users().items()}
    check(gradients, numbers(6, seed=12), tolerance=4e-12)


def test_products_with_their_hessians():
    def product(function):
        return lambda v: jax.jvp(jax.grad(function), (v,), (jnp.cos(3 * v),))[1]

    names = ("softmax", "norm", "gather", "scatter", "scan", "network", "solved")
    products = {name: product(functions_of_users()[name]) for name in names}
    check(products, numbers(6, seed=13), tolerance=4e-12)


def test_loops():
    v, x = numbers(6, seed=3), numbers(5, 6, seed=4) * 0.4
    idx = np.array([3, 0, 0, 4, 2])

    def repeated(length, reverse=False):
        def body(carry, row):
            a, b, kept = carry
            return (b, jnp.tanh(a * row) + kept.sum(), kept), (a.sum(), b[::-1])

        return lambda v, x: lax.scan(body, (v, 2 * v, jnp.sin(v)), x[:length], reverse=reverse)

    functions = {f"{n} turns": repeated(n) for n in range(1, 6)} | {
        "reversed": repeated(4, True),
        "r1": repeated(1, True),
    }
    functions |= {
        "no turns": lambda v, x: repeated(0)(v, x)[0],
        "swapped": lambda v, x: lax.fori_loop(0, 3, lambda i, s: (s[1], s[0]), (v, x[0])),
        "nested": lambda v, x: lax.scan(
            lambda a, row: (lax.fori_loop(0, 3, lambda i, b: jnp.tanh(b + row * i), a), a.max()), v, x
        ),
        "turned rows": lambda v, x: lax.scan(lambda a, col: (a + col.sum() * col[0], a), v, x.T),
        "constant rows": lambda v, x: lax.scan(
            lambda a, n: (a * n[0] + n[1], None), v, np.arange(8.0).reshape(4, 2)
        ),
        "gathered": lambda v, x: lax.scan(lambda a, _: (jnp.tanh(x[idx].sum(0) * a), a[idx]), v, None, length=3),
        "gathered before": lambda v, x: (
            lambda t: lax.scan(
                lambda a, _: (jnp.tanh(t @ a)[np.array([0, 0, 1, 4, 3])], None), v[:5], None, length=3
            )
        )(x[idx, :][:, idx]),
        "gathered rows": lambda v, x: lax.scan(lambda a, row: (jnp.tanh(a * row), a.sum()), v, x[idx]),
        "cumulative": lambda v, x: lax.scan(lambda a, b: (a + b, a + b), 0.0, v)[1],
        "mapped": lambda v, x: lax.map(lambda row: jnp.sin(row) @ v, x),
    }
    check(functions, v, x, tolerance=4e-13)


def test_equal_loops_over_different_constants_stay_apart():
    def loop(matrix):
        inner = jax.jit(lambda z: z @ matrix)
        return lambda v: lax.scan(lambda a, _: (jnp.tanh(inner(a)), None), v, None, length=3)[0]

    one, two = np.random.default_rng(0).normal(size=(2, 6, 6))
    check({"both": lambda v: (loop(one)(v), loop(two)(v), loop(one)(2 * v))}, numbers(6))


def test_branches_keep_what_is_used_after_them():
    def program(v):
        kept = [jnp.sin(jnp.exp(v) * k) * jnp.tanh(v) for k in range(1, 4)]
        found = [
            lax.switch(
                jnp.int32(k) + (v[0] > 0), [lambda u: u, lambda u: jnp.tanh(u + 1) * jnp.exp(u + 1), jnp.sin], a
            )
            for k, a in zip((-1, 0, 1, 5), (*kept, v), strict=True)
        ]
        return [a * b + a for a, b in zip((*found, v), (*kept, v, v), strict=True)]

    functions = {
        "branches": program,
        "pieces": lambda v: lax.cond(
            v[0] > 0, lambda u: jnp.pad(u, 1), lambda u: jnp.concatenate([u[::-1], u[:2]]), v
        ),
        "select": lambda v: lax.select_n(jnp.clip((v * 2).astype(jnp.int32), 0, 2), v, v * 2, jnp.pad(v[:4], 1)),
    }
    check(functions, numbers(6, seed=8))


def test_long_branches_are_computed_for_the_lanes_that_take_them():
    matrix = np.random.default_rng(5).normal(size=(12, 12))

    def shrunk(v):
        return lax.fori_loop(0, 5, lambda _, u: jnp.tanh(matrix @ u) / 2, v)

    def spread(v):
        return jnp.sum(jnp.exp(-((v[:, None] - v[None, :]) ** 2)), axis=1)

    def chosen(v):
        return lax.switch(v[0].astype(jnp.int32), [shrunk, jnp.negative, spread], v) * v[1]

    functions = {
        "switch": chosen,
        "cond": lambda v: lax.cond(v[0] > 2, spread, shrunk, v) + lax.cond(v[1] > 99, shrunk, jnp.abs, v),
        "inner": lambda v: lax.cond(v[0] > 0, lambda u: lax.cond(u[0] > 1, spread, shrunk, u), spread, v),
    }
    mixed, one = numbers(12, seed=6), numbers(12, seed=7)
    # Numbers of branches beyond the first and the last count as these.
    mixed[:, 0] = np.arange(LANES) % 7 - 2 + 0.5
    one[:, 0] = 3.5
    check(functions, mixed)
    check(functions, one)


def test_factors_that_cancel_are_left_out_and_no_others():
    x = numbers(6, seed=9)
    x[:8, 0] = 0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -3e-320, 1e308
    functions = {
        f"{a} * ({b} * x)": functools.partial(lambda v, a, b: a * (b * v), a=a, b=b)
        for a, b in ((0.5, 2.0), (0.25, -2.0), (2.0, 0.5), (4.0, 0.25), (0.5, 3.0), (3.0, 2.0), (2.0**-1000, 2.0))
    }
    for kind, layout in LAYOUTS.items():
        for name, ours in zip(functions, native(functions.values(), [x], layout), strict=True):
            with np.errstate(over="ignore", under="ignore"):
                theirs = functions[name](x)
            overflows = np.isinf(theirs) & np.isfinite(x)
            np.testing.assert_array_equal(ours[0][~overflows], theirs[~overflows], f"{name} ({kind})")
    kernels = [
        Kernel(lambda stop, v, f=f: (stop, jax.grad(f)(v)), (np.int32(0), np.zeros(3)), 0, SMALL).text.count(
            "fmul"
        )
        for f in (lambda v: jnp.sum(v**2) / 2, lambda v: jnp.sum(v**2) / 3)
    ]
    assert kernels[0] == 0 < kernels[1]


def test_long_chains():
    check(
        {"chain": lambda v: functools.reduce(lambda a, _: jnp.where(a > 0, a * 0.999, a) + 1e-3, range(500), v)},
        numbers(3),
    )


# --- random expressions ---------------------------------------------------------------------------------------


def random_loss(rng):
    """A scalar function of a vector of 1 to 6 numbers, made of random operations; and the number of numbers."""
    dim = int(rng.integers(1, 7))

    def constant(*shape):
        return rng.normal(size=shape)

    def grown(depth, size):
        """A function from the vector to ``size`` numbers."""
        kinds = ["leaf"] if depth == 0 else KINDS
        kind = kinds[rng.integers(len(kinds))]
        if kind == "leaf":
            numbers_ = rng.integers(0, dim, size)
            weight = constant(size)
            if rng.random() < 0.2:
                return lambda w: weight + 0 * w[0]
            if size == dim and rng.random() < 0.5:
                return lambda w: w
            return lambda w: w[numbers_] * weight
        if kind == "matrix":
            inner, matrix = int(rng.integers(1, 7)), None
            matrix = constant(size, inner)
            a = grown(depth - 1, inner)
            return lambda w: matrix @ a(w)
        if kind == "outer":
            inner = int(rng.integers(1, 5))
            a, b = grown(depth - 1, size * inner), grown(depth - 1, inner)
            if rng.random() < 0.5:
                return lambda w: a(w).reshape(size, inner) @ b(w)
            return lambda w: a(w).reshape(inner, size).T @ b(w)
        if kind == "shape":
            way = rng.integers(5)
            if way == 0:
                a = grown(depth - 1, 2 * size)
                return lambda w: a(w)[::2]
            if way == 1:
                a = grown(depth - 1, size)
                return lambda w: jnp.roll(a(w)[::-1], 1)
            if way == 2:
                a, b = grown(depth - 1, size), grown(depth - 1, size)
                return lambda w: jnp.concatenate([a(w), b(w)])[size // 2 : size // 2 + size]
            if way == 3:
                a = grown(depth - 1, 3 * size)
                axis = int(rng.integers(2))
                shape = (3, size) if axis == 0 else (size, 3)
                return lambda w: a(w).reshape(shape).sum(axis)
            a = grown(depth - 1, size)
            return lambda w: jnp.pad(a(w), (1, 2))[:size] + a(w)
        a = grown(depth - 1, size)
        if kind in ONE:
            return lambda w: ONE[kind](a(w))
        b = grown(depth - 1, size)
        return lambda w: TWO[kind](a(w), b(w))

    inside = grown(int(rng.integers(2, 5)), int(rng.integers(1, 7)))
    return (lambda w: jnp.sum(inside(w) ** 2) / 2), dim


ONE = {
    "tanh": jnp.tanh,
    "exp": lambda x: jnp.exp(jnp.minimum(x, 2.0)),
    "sin": jnp.sin,
    "log1p": lambda x: jnp.log1p(x * x),
    "root": lambda x: jnp.sqrt(1 + x * x),
    "cube": lambda x: 0.1 * x**3,
    "logistic": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}
TWO = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": lambda x, y: x / (1 + y * y),
    "max": jnp.maximum,
    "where": lambda x, y: jnp.where(x > 2 * y, x, y * x),
}
KINDS = [*ONE, *TWO, "matrix", "outer", "shape"]


def gradient_step(loss):
    return lambda w: w - 0.1 * jax.grad(loss)(w)


def with_rounding(function, starts, seed):
    """The function, lane by lane, with every intermediate number off by a random relative error of up to 4 ulp."""
    rng = np.random.default_rng(seed)

    def evaluated(jaxpr, consts, arguments):
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(atom):
            return atom.val if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
            if inner is not None:
                results = evaluated(inner.jaxpr, inner.consts, operands)
            else:
                found = equation.primitive.bind(*operands, **equation.params)
                results = found if equation.primitive.multiple_results else [found]
            for var, value in zip(equation.outvars, results, strict=True):
                value = np.asarray(value)
                if value.dtype == np.float64:
                    value = value * (1 + rng.uniform(-4, 4, value.shape) * 2.0**-53)
                known[var] = value
        return [read(atom) for atom in jaxpr.outvars]

    with float64():
        closed = jax.make_jaxpr(jax.vmap(function))(starts)
        return np.asarray(evaluated(closed.jaxpr, closed.consts, [starts])[0])


def fuzz(seed, count, layouts):
    """Random gradient steps agree with XLA to 1e-12 of the state; how many are amplified roundings beyond that."""
    rng = np.random.default_rng(seed)
    losses = [random_loss(rng) for _ in range(count)]
    starts = numbers(6, seed=seed, count=16)
    steps = [(gradient_step(loss), dim) for loss, dim in losses]
    functions = [lambda w, step=step, dim=dim: step(w[:dim]) for step, dim in steps]
    expected = by_xla(functions, [starts], fast=True)
    ill_conditioned = 0
    for kind, layout in layouts.items():
        found = native(functions, [starts], layout)
        for number, ((ours,), (theirs,)) in enumerate(zip(found, expected, strict=True)):
            finite = np.isfinite(theirs).all(axis=1)
            np.testing.assert_array_equal(np.isfinite(ours).all(axis=1), finite)
            scale = np.abs(theirs).max(axis=1)
            difference = np.abs(ours - theirs).max(axis=1)
            if not (difference <= 1e-12 * scale)[finite].all():
                # Is rounding amplified as much as this? The largest effect of small errors everywhere says so.
                ill_conditioned += 1
                spread = [
                    np.abs(with_rounding(functions[number], starts, s) - theirs).max(axis=1) for s in range(4)
                ]
                allowed = 1e-12 * scale + 4 * np.max(spread, axis=0)
                worst = np.max((difference / allowed)[finite])
                assert worst <= 1, (
                    f"seed {seed}, expression {number} ({kind}): {worst:.1e} of what rounding explains"
                )
    return ill_conditioned


@pytest.mark.parametrize("seed", range(2))
def test_random_expressions(seed):
    assert fuzz(seed, 25, LAYOUTS) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 20))
def test_more_random_expressions(seed):
    assert fuzz(seed, 25, WIDE) <= 2


# --- what is not supported ------------------------------------------------------------------------------------

UNSUPPORTED = {
    "eigh": lambda v: jnp.linalg.eigvalsh(jnp.outer(v, v) + jnp.eye(v.size)),
    "sort": jnp.sort,
    "while": lambda v: lax.while_loop(lambda u: u.sum() < 10, lambda u: u + 1, v),
    "dynamic_slice": lambda v: v[jnp.int32(v[0])],
    "gather": lambda v: v[jnp.clip(v, 0, 1).astype(jnp.int32)],
    "cumsum": jnp.cumsum,
    "key<fry>": lambda v: jax.random.normal(jax.random.fold_in(jax.random.key(0), jnp.int32(v[0])), v.shape),
    "float32": lambda v: v.astype(jnp.float32).astype(jnp.float64) * v,
    "reduce_precision": lambda v: lax.reduce_precision(v, 5, 10),
    "debug_callback": lambda v: (jax.debug.callback(lambda a: None, v), v)[1],
}


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_unknown_primitives_are_named(name, layout):
    with pytest.raises(Unsupported, match=name):
        native([UNSUPPORTED[name]], [numbers(4, count=3)], layout)


@pytest.mark.parametrize("layout", WIDE.values(), ids=WIDE)
def test_programs_too_large_for_the_cache(layout):
    with pytest.raises(Unsupported, match="bytes"):
        native([lambda v: (jnp.tanh(jnp.outer(v, v)) @ jnp.outer(v, v)).sum()], [numbers(400, count=3)], layout)


@pytest.fixture
def sorted_map():
    return gdmap.GradientDescent(gdmap.Function(lambda w: jnp.sum(jnp.cumsum(w) ** 2) / 2 + w[0] ** 4, 2), 0.05)


def test_ensembles_of_unknown_primitives_fall_back_with_one_line(sorted_map, caplog, monkeypatch):
    monkeypatch.setattr(choice, "_told", set())
    starts = numbers(2, count=5) * 0.3
    with caplog.at_level(logging.WARNING, "gdmap"):
        first = gdmap.ensemble(sorted_map, starts, max_steps=2000)
        second = gdmap.ensemble(sorted_map, starts, max_steps=2000)
    assert first.attrs["engine"] == second.attrs["engine"] == "xla-cpu"
    lines = [record.getMessage() for record in caplog.records if record.name == "gdmap"]
    assert len(lines) == 1
    assert "cumsum" in lines[0]


@pytest.mark.filterwarnings("ignore:the starts are float32")
def test_an_engine_that_was_asked_for_and_does_not_apply(sorted_map, two_factors):
    starts = numbers(2, count=5) * 0.3
    with pytest.raises(ValueError, match=r"simd.*cumsum"):
        gdmap.ensemble(sorted_map, starts, max_steps=200, engine="simd")
    known = gdmap.GradientDescent(two_factors, 0.05)
    with pytest.raises(ValueError, match="nonsense"):
        gdmap.ensemble(known, starts, max_steps=200, engine="nonsense")
    with pytest.raises(ValueError, match="float32"):
        gdmap.ensemble(known, starts.astype(np.float32), max_steps=200, engine="simd")
    assert gdmap.ensemble(known, starts.astype(np.float32), max_steps=200).attrs["engine"] == "xla-cpu"


# --- neighbours -----------------------------------------------------------------------------------------------


def program_with_everything(v):
    c = np.random.default_rng(5).normal(size=(6, 6))
    a = jnp.sin(v) + jnp.cos(c @ v) * jnp.tan(v)
    b = (
        jnp.exp(v)
        - jnp.log1p(v * v)
        + jnp.power(jnp.abs(v), 1.5)
        + jnp.tanh(v)
        + lax.erf(v)
        + lax.rem(v, 1.0 + a * a)
    )
    found = lax.scan(lambda s, row: (jnp.tanh(c @ s + row), s.max()), v, c)
    return a, b, found, lax.cond(v[0] > 0, jnp.sum, jnp.prod, v), v.astype(jnp.int64)


@pytest.mark.parametrize("layout", WIDE.values(), ids=WIDE)
def test_neighbours_leave_a_trajectory_alone(layout):
    """The same bits alone, at any place, and beside infinities, nan and arguments beyond all bounds."""
    v = numbers(6, seed=21, count=2 * layout.lanes + 3)
    (alone,) = native([program_with_everything], [v], layout)
    shuffled = np.random.default_rng(0).permutation(len(v))
    (moved,) = native([program_with_everything], [v[shuffled]], layout)
    wild = v.copy()
    strange = np.arange(0, len(v), 3)
    wild[strange] = np.resize([np.inf, -np.inf, np.nan, 1e300, -1e18, 5e-310, 0.0, -0.0, 1e6], (len(strange), 6))
    (beside,) = native([program_with_everything], [wild], layout)
    others = np.setdiff1d(np.arange(len(v)), strange)
    (single,) = native([program_with_everything], [v[5:6]], layout)
    for a, b, c, d in zip(alone, moved, beside, single, strict=True):
        assert np.isfinite(a).all()
        assert (a[shuffled].tobytes(), a[others].tobytes(), a[5:6].tobytes()) == (
            b.tobytes(),
            c[others].tobytes(),
            d.tobytes(),
        )

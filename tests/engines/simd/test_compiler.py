"""The compiler of traced functions to vector kernels against XLA: every primitive, programs of many kinds, random ones."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import gdmap
from gdmap.engines import choice
from gdmap.engines.precision import float64
from gdmap.engines.simd.flatten import Unsupported
from gdmap.engines.simd.kernel import Kernel, Layout
from gdmap.engines.simd.primitives import ELEMENTWISE

SMALL, LOOPS = Layout(64, 8, True), Layout(8, 1, False)
LAYOUTS = {"straight": SMALL, "loops": LOOPS}
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
    rows = [np.zeros((count, 1), np.int32), *inputs, *(np.zeros((count, *out.shape), out.dtype) for out in outputs)]
    blocks = [layout.packed(row) for row in rows]
    kernel(blocks, 1)
    found = iter(
        layout.unpacked(block, count).reshape(count, *out.shape).astype(out.dtype)
        for block, out in zip(blocks[1 + len(inputs) :], outputs, strict=True)
    )
    return [[next(found) for _ in leaves] for leaves in shapes]


def by_xla(functions, inputs):
    """The same from ``jit(vmap(function))``."""
    with float64():
        together = jax.jit(jax.vmap(lambda *values: [jax.tree.leaves(f(*values)) for f in functions]))
        return [[np.asarray(leaf) for leaf in leaves] for leaves in together(*inputs)]


def assert_agrees(found, expected, tolerance, name, by_element=False):
    """Equal integers and infinities, and floats equal relative to the largest of their lane (or each to itself)."""
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

"""The vector functions against mpmath, jax.lax and C's special values; the table of their coefficients."""

import ctypes
import functools
import math

import jax
import llvmlite.binding as llvm
import mpmath as mp
import numpy as np
import pytest

from gdmap.engines.precision import float64
from gdmap.engines.simd import vector_math
from gdmap.engines.simd.vector_math import COEFFICIENTS, FUNCTIONS

ROOT2 = math.sqrt(2.0)


# --- the table of coefficients, computed again ---------------------------------------------------------------


def least_squares(function, low, high, count, weight):
    """The polynomial nearest to the function on [low, high], weighted, on 4 count Chebyshev points."""
    middle, radius, points = (low + high) / 2, (high - low) / 2, 4 * count
    rows, right = mp.matrix(points, count), mp.matrix(points, 1)
    for i in range(points):
        x = middle + radius * mp.cos(mp.pi * (2 * i + 1) / (2 * points))
        rows[i, 0] = weight(x)
        right[i] = weight(x) * function(x)
        for j in range(1, count):
            rows[i, j] = rows[i, j - 1] * x
    return tuple(float(c) for c in mp.lu_solve(rows.T * rows, rows.T * right))


def scaled_erfc(t):
    x = 3.75 * (1 + t) / (1 - t)
    return (1 + 2 * x) * mp.exp(x * x) * mp.erfc(x)


def fits():
    """For every polynomial: what it approximates, where, how many coefficients, and the weight of its error."""
    root, log, one = mp.sqrt, mp.log, lambda z: mp.mpf(1)
    small = (mp.sqrt(2) - 1) ** 2
    slope = 2 / mp.sqrt(mp.pi)
    return {
        # e^r = 1 + r + r^2 p(r)
        "exp": (lambda r: (mp.exp(r) - 1 - r) / r**2, -log(2) / 2, log(2) / 2, 11, lambda r: r),
        # 2 artanh(s) = 2 s + s z p(z), z = s^2
        "log": (lambda z: (2 * mp.atanh(root(z)) / root(z) - 2) / z, mp.mpf(0), small**2, 7, lambda z: z),
        # 2 artanh(s) = 2 s + s z (2/3 + z p(z))
        "pow": (
            lambda z: ((2 * mp.atanh(root(z)) / root(z) - 2) / z - mp.mpf(2) / 3) / z,
            mp.mpf(0),
            small**2,
            8,
            lambda z: z**2,
        ),
        # sin r = r + r z p(z), z = r^2
        "sin": (lambda z: (mp.sin(root(z)) / root(z) - 1) / z, mp.mpf(0), (mp.pi / 4) ** 2, 6, lambda z: z),
        # cos r = 1 - z/2 + z^2 p(z)
        "cos": (
            lambda z: (mp.cos(root(z)) - 1 + z / 2) / z**2,
            mp.mpf(0),
            (mp.pi / 4) ** 2,
            6,
            lambda z: z**2,
        ),
        # arctan t = t + t z p(z), z = t^2
        "atan": (lambda z: (mp.atan(root(z)) / root(z) - 1) / z, mp.mpf(0), small, 11, lambda z: z),
        # arcsin s = s + s z p(z), z = s^2
        "asin": (lambda z: (mp.asin(root(z)) / root(z) - 1) / z, mp.mpf(0), mp.mpf("0.25"), 13, lambda z: z),
        # -log erfc(x) = 2 x/sqrt(pi) + x^2 p(x)
        "erf": (
            lambda x: (-log(mp.erfc(x)) / x - slope) / x,
            mp.mpf(0),
            mp.mpf(6),
            24,
            lambda x: x**2 * mp.erfc(x) / mp.erf(x),
        ),
        # erfc x = e^(-x^2) p(t)/(1 + 2x), t = (x - 3.75)/(x + 3.75)
        "erfc": (scaled_erfc, mp.mpf(-1), mp.mpf(28 - 3.75) / mp.mpf(28 + 3.75), 23, one),
        # erf x = x p(z), z = x^2, for the erfc of small arguments
        "erf_near": (lambda z: mp.erf(root(z)) / root(z), mp.mpf(0), mp.mpf("0.25"), 9, root),
        # a first guess of the cube root, to be improved
        "cbrt": (mp.cbrt, mp.mpf("0.35"), mp.mpf("2.83"), 6, lambda y: 1 / mp.cbrt(y)),
    }


def test_the_table_of_coefficients_is_what_the_fits_give():
    with mp.workdps(80):
        computed = {name: least_squares(*fit) for name, fit in fits().items()}
    assert computed == COEFFICIENTS


@pytest.mark.parametrize(
    ("exact", "parts"),
    [
        (lambda: mp.log(2), ("LN2_HIGH", "LN2_LOW")),
        (lambda: mp.log(2), ("LN2_SHORT", "LN2_SHORT_LOW")),
        (lambda: mp.pi / 2, ("HALF_PI_HIGH", "HALF_PI_MIDDLE", "HALF_PI_LOW")),
        (lambda: 2 / mp.sqrt(mp.pi), ("ERF_SLOPE_HIGH", "ERF_SLOPE_LOW")),
        (lambda: mp.mpf(2) / 3, ("TWO_THIRDS_HIGH", "TWO_THIRDS_LOW")),
    ],
)
def test_the_split_constants_add_up(exact, parts):
    with mp.workprec(300):
        rest = exact()
        for name in parts:
            part = getattr(vector_math, name)
            rest -= part
            assert abs(rest) <= abs(part) * 2.0 ** (-41 if name == "LN2_SHORT" else -53)


def test_a_power_of_two_times_the_short_logarithm_is_exact():
    for exponent in (1023, 1075):
        assert mp.mpf(vector_math.LN2_SHORT * exponent) == mp.mpf(vector_math.LN2_SHORT) * exponent


# --- running the code ----------------------------------------------------------------------------------------


def driver(name, lanes):
    """A loop over arrays, ``lanes`` elements at a time, as IR text."""
    vector, pointers = vector_math.vector_type("double", lanes), ["%x", "%y"][: FUNCTIONS[name]]
    signature = ", ".join(f"ptr {p}" for p in ["%out", *pointers])
    loads = "\n".join(
        f"{p}.at = getelementptr double, ptr {p}, i64 %i\n{p}.value = load {vector}, ptr {p}.at, align 8"
        for p in pointers
    )
    values = ", ".join(f"{vector} {p}.value" for p in pointers)
    return f"""define void @run.{name}({signature}, i64 %count) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  {loads}
  %result = call {vector} {vector_math.symbol(name, lanes)}({values})
  %out.at = getelementptr double, ptr %out, i64 %i
  store {vector} %result, ptr %out.at, align 8
  %next = add i64 %i, {lanes}
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


class Compiled:
    """All functions for one number of lanes, callable on arrays."""

    def __init__(self, lanes):
        self.lanes = lanes
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        parts = vector_math.module_of(FUNCTIONS, lanes)
        drivers = (driver(name, lanes) for name in FUNCTIONS)
        module = llvm.parse_assembly("\n".join([*sorted(parts.declarations), parts.definitions, *drivers]))
        module.verify()
        self.machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
        )
        builder = llvm.create_pass_builder(self.machine, llvm.create_pipeline_tuning_options(speed_level=0))
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        passes.add_instruction_combine_pass()
        passes.run(module, builder)
        self.engine = llvm.create_mcjit_compiler(module, self.machine)
        self.engine.finalize_object()

    def __call__(self, name, *arguments):
        arguments = np.broadcast_arrays(*(np.asarray(a, np.float64).ravel() for a in arguments))
        count = arguments[0].size
        padded = -(-count // self.lanes) * self.lanes
        arrays = [np.concatenate([a, np.full(padded - count, 0.5)]) for a in arguments]
        out = np.empty(padded)
        kinds = [ctypes.c_void_p] * (1 + len(arrays))
        run = ctypes.CFUNCTYPE(None, *kinds, ctypes.c_int64)(self.engine.get_function_address(f"run.{name}"))
        run(out.ctypes.data, *(a.ctypes.data for a in arrays), padded)
        return out[:count]


@functools.cache
def compiled(lanes):
    return Compiled(lanes)


@pytest.fixture(params=[8, 64], ids="lanes={}".format)
def run(request):
    return compiled(request.param)


# --- accuracy ------------------------------------------------------------------------------------------------

EXACT = {
    "exp2": lambda x: mp.mpf(2) ** x,
    "logistic": lambda x: 1 / (1 + mp.exp(-x)),
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)),
    "pow": lambda x, y: x**y,
}
# Where the functions are finite and not constant, and a bound of the error in units in the last place.
RANGES = {
    "acos": (-1.0, 1.0, 2.0),
    "acosh": (1.0, 1e308, 2.5),
    "asin": (-1.0, 1.0, 2.0),
    "asinh": (-1e308, 1e308, 2.5),
    "atan": (-1e308, 1e308, 2.5),
    "atanh": (-1.0 + 2.0**-53, 1.0 - 2.0**-53, 2.5),
    "cbrt": (-1e308, 1e308, 1.0),
    "cos": (-(2.0**30), 2.0**30, 1.0),
    "cosh": (-710.4, 710.4, 2.0),
    "erf": (-6.5, 6.5, 2.0),
    "erfc": (-6.5, 27.2, 5.5),
    "exp": (-745.2, 709.78, 1.0),
    "exp2": (-1075.0, 1023.99, 1.25),
    "expm1": (-50.0, 709.78, 2.0),
    "log": (5e-324, 1e308, 1.0),
    "log1p": (-1.0 + 2.0**-53, 1e308, 2.0),
    "logistic": (-745.0, 745.0, 2.5),
    "rsqrt": (5e-324, 1e308, 1.5),
    "sin": (-(2.0**30), 2.0**30, 1.0),
    "sinh": (-710.4, 710.4, 2.5),
    "tan": (-(2.0**30), 2.0**30, 2.5),
    "tanh": (-25.0, 25.0, 3.0),
}


def sample(low, high, count, rng):
    """Uniform, of every magnitude, normally distributed, close to 1 and to multiples of pi/2; between the ends."""
    largest = max(abs(low), abs(high))
    anywhere = np.exp(rng.uniform(math.log(5e-324), math.log(largest), count))
    parts = [
        rng.uniform(max(low, -1e6), min(high, 1e6), count),
        rng.uniform(low / 2, high / 2, count) * 2.0,
        np.where(rng.random(count) < 0.5, anywhere, -anywhere),
        rng.normal(size=count) * 2.0,
        1.0 + np.where(rng.random(count) < 0.5, 1.0, -1.0) * 2.0 ** rng.uniform(-53.0, 0.0, count),
        np.round(np.exp(rng.uniform(0.0, 20.0, count // 2))) * (math.pi / 2),
        [low, high],
    ]
    points = np.concatenate(parts)
    return points[(points >= low) & (points <= high) & (points != 0.0)]


def precision_for(name, x):
    """Bits so that cancellation in the exact formulas does not show: near 0 and near multiples of pi/2."""
    small = {"expm1", "log1p", "asinh", "acosh", "atanh", "sinh", "tanh", "atan", "asin", "erf"}
    return 160 + (max(0, -math.frexp(x)[1]) if name in small else 0)


def errors(name, values, *arguments):
    """|value - exact| in units in the last place of the exact value, at least the smallest subnormal."""
    function = EXACT.get(name, getattr(mp, name, None))
    result = []
    for value, *point in zip(values, *arguments, strict=True):
        with mp.workprec(precision_for(name, point[0])):
            exact = function(*(mp.mpf(float(p)) for p in point))
            place = mp.ldexp(1, max(mp.frexp(exact)[1] - 53, -1074))
            result.append(float(abs(mp.mpf(float(value)) - exact) / place))
    return np.array(result)


@pytest.mark.parametrize("name", RANGES)
def test_errors_in_units_in_the_last_place(name, run):
    low, high, bound = RANGES[name]
    x = sample(low, high, 400, np.random.default_rng(run.lanes))
    found = errors(name, run(name, x), x)
    assert found.max() <= bound, f"{found.max()} at {x[found.argmax()]!r}"


def test_errors_of_the_power(run):
    rng = np.random.default_rng(run.lanes)
    x = np.concatenate([sample(5e-324, 1e308, 150, rng), rng.uniform(0.6, 1.6, 500)])
    # results of every magnitude, small integers as exponents, and ordinary ones
    y = rng.uniform(-744.0, 709.0, x.size) / np.log(np.where(x == 1.0, 2.0, x))
    y = np.where(rng.random(x.size) < 0.3, np.round(np.clip(y, -9.0, 9.0)), y)
    with np.errstate(over="ignore", under="ignore"):
        representable = np.abs(y * np.log(x)) < 708.0
    found = errors("pow", run("pow", x, y)[representable], x[representable], y[representable])
    assert found.size > 800
    assert found.max() <= 1.5


def test_errors_of_the_angle(run):
    rng = np.random.default_rng(run.lanes)
    y, x = rng.normal(size=(2, 800))
    x[:300] *= 2.0 ** rng.integers(-500, 500, 300)
    assert errors("atan2", run("atan2", y, x), y, x).max() <= 2.0


def test_sines_beyond_the_reduction_come_from_the_c_library_lane_by_lane(run):
    # one far argument among near ones, which must not be touched by it
    x = np.linspace(-3.0, 3.0, 2 * run.lanes)
    mixed = x.copy()
    mixed[[3, run.lanes + 5]] = [1e22, -1.7e308]
    for name, function in (("sin", math.sin), ("cos", math.cos), ("tan", math.tan)):
        expected = run(name, x)
        expected[[3, run.lanes + 5]] = [function(1e22), function(-1.7e308)]
        np.testing.assert_array_equal(run(name, mixed), expected)


def test_the_reduction_keeps_its_digits_next_to_multiples_of_half_pi(run):
    # the double below 2^30 that is nearest to a multiple of pi/2 among many candidates: integer relations
    # from the continued fraction of pi/2 scaled to significands of 53 bits
    candidates = []
    with mp.workprec(400):
        for exponent in range(-52, -22):
            value, before, now = mp.pi / 2 / mp.ldexp(1, exponent), (0, 1), (1, 0)
            while True:
                whole = int(mp.floor(value))
                before, now = now, (whole * now[0] + before[0], whole * now[1] + before[1])
                if now[0] >= 2**53:
                    break
                candidates.append(math.ldexp(now[0], exponent))
                value = 1 / (value - whole)
    x = np.array([c for c in candidates if 1e-3 < c < 2.0**30])
    assert np.abs(np.cos(x)).min() < 2.0**-58 or np.abs(np.sin(x)).min() < 2.0**-58
    for name in ("sin", "cos", "tan"):
        assert errors(name, run(name, x), x).max() <= 2.5


# --- special values, symmetry, and the same values as JAX -----------------------------------------------------

INF, NAN = math.inf, math.nan
SPECIAL = {
    "acos": [(1.0, 0.0), (0.0, math.pi / 2), (-1.0, math.pi), (1.1, NAN), (INF, NAN)],
    "acosh": [(1.0, 0.0), (INF, INF), (0.99, NAN), (-3.0, NAN), (-INF, NAN)],
    "asin": [(1.0, math.pi / 2), (0.0, 0.0), (1.0000001, NAN), (INF, NAN)],
    "asinh": [(0.0, 0.0), (5e-324, 5e-324), (INF, INF)],
    "atan": [(0.0, 0.0), (5e-324, 5e-324), (INF, math.pi / 2)],
    "atanh": [(0.0, 0.0), (5e-324, 5e-324), (1.0, INF), (1.1, NAN), (INF, NAN)],
    "cbrt": [(0.0, 0.0), (27.0, 3.0), (5e-324, 2.0**-358), (INF, INF)],
    "cos": [(0.0, 1.0), (5e-324, 1.0), (INF, NAN), (-INF, NAN)],
    "cosh": [(0.0, 1.0), (711.0, INF), (-711.0, INF), (INF, INF), (-INF, INF)],
    "erf": [(0.0, 0.0), (6.0, 1.0), (1e300, 1.0), (INF, 1.0)],
    "erfc": [(0.0, 1.0), (-7.0, 2.0), (28.0, 0.0), (INF, 0.0), (-INF, 2.0)],
    "exp": [(0.0, 1.0), (709.79, INF), (INF, INF), (1e300, INF), (-745.0, 5e-324), (-746.0, 0.0), (-INF, 0.0)],
    "exp2": [(10.0, 1024.0), (1024.0, INF), (1023.0, 2.0**1023), (-1074.0, 5e-324), (-1076.0, 0.0), (-INF, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (5e-324, 5e-324), (710.0, INF), (INF, INF), (-50.0, -1.0), (-INF, -1.0)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (-INF, NAN), (INF, INF), (-5e-324, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (5e-324, 5e-324), (-1.0, -INF), (-1.1, NAN), (-INF, NAN), (INF, INF)],
    "logistic": [(0.0, 0.5), (40.0, 1.0), (INF, 1.0), (-INF, 0.0), (-1e300, 0.0)],
    "rsqrt": [(4.0, 0.5), (0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, NAN)],
    "sin": [(0.0, 0.0), (5e-324, 5e-324), (INF, NAN)],
    "sinh": [(0.0, 0.0), (5e-324, 5e-324), (711.0, INF), (INF, INF)],
    "tan": [(0.0, 0.0), (5e-324, 5e-324), (INF, NAN)],
    "tanh": [(0.0, 0.0), (5e-324, 5e-324), (20.0, 1.0), (1e300, 1.0), (INF, 1.0)],
}
ODD = ("asin", "asinh", "atan", "atanh", "cbrt", "erf", "sin", "sinh", "tan", "tanh")


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name, run):
    x, expected = np.array([*SPECIAL[name], (NAN, NAN)]).T
    values = run(name, x)
    np.testing.assert_array_equal(values, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("name", ODD)
def test_odd_functions_are_odd_to_the_last_bit(name, run):
    low, high, _ = RANGES[name]
    x = np.concatenate([sample(low, high, 100, np.random.default_rng(0)), [0.0, 5e-324]])
    np.testing.assert_array_equal(run(name, -x).view(np.int64), (-run(name, x)).view(np.int64))


EDGES = np.array([0.0, 5e-324, 2.0**-1022, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 2.0**53, 1e300, INF, NAN])


def pairs():
    edges = np.concatenate([EDGES, -EDGES])
    x, y = (a.ravel() for a in np.meshgrid(edges, edges))
    return x, y


def test_special_values_of_the_power_are_those_of_c(run):
    def power(x, y):
        try:
            return math.pow(x, y)
        except OverflowError:
            return -INF if x < 0 and y % 2 == 1 else INF
        except ValueError:  # a pole at zero, or no real value
            return NAN if x else math.copysign(INF, x) if y % 2 == 1 else INF

    x, y = pairs()
    expected = np.array([power(*pair) for pair in zip(x, y, strict=True)])
    values = run("pow", x, y)
    np.testing.assert_allclose(values, expected, rtol=4e-16, atol=0.0)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values[known]), np.signbit(expected[known]))


def test_special_values_of_the_angle_are_those_of_c(run):
    y, x = pairs()
    expected = np.array([math.atan2(*pair) for pair in zip(y, x, strict=True)])
    values = run("atan2", y, x)
    np.testing.assert_allclose(values, expected, rtol=4e-16, atol=0.0)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_same_values_as_jax(name):
    rng = np.random.default_rng(5)
    x = rng.uniform(0.01, 0.99, (FUNCTIONS[name], 256)) * (1.0 if name in ("acos", "asin", "atanh") else 3.0)
    x = x + (1.0 if name == "acosh" else 0.0)
    with float64():
        expected = np.asarray(getattr(jax.lax, name)(*x))
    np.testing.assert_allclose(compiled(8)(name, *x), expected, rtol=1e-13)


# --- the text ------------------------------------------------------------------------------------------------


def test_a_value_does_not_depend_on_the_number_of_lanes_or_on_the_other_lanes():
    x = np.random.default_rng(2).normal(size=128)
    for name, arguments in FUNCTIONS.items():
        points = (np.abs(x), x[::-1])[:arguments]
        np.testing.assert_array_equal(compiled(8)(name, *points), compiled(64)(name, *points))


@pytest.mark.parametrize("lanes", [1, 2, 4, 16, 24, 32])
def test_any_number_of_lanes_gives_a_valid_module(lanes):
    parts = vector_math.module_of(FUNCTIONS, lanes)
    llvm.parse_assembly("\n".join([*sorted(parts.declarations), parts.definitions])).verify()


def test_a_module_holds_every_definition_once_and_declares_what_it_calls():
    parts = vector_math.module_of(["tanh", "sin", "tanh"], 8)
    assert parts.definitions.count(f" {vector_math.symbol('tanh', 8)}(") == 1
    assert parts.declarations == vector_math.requirements("tanh", 8) | vector_math.requirements("sin", 8)
    assert vector_math.definition("sin", 8) in parts.definitions
    assert vector_math.module_of([], 8) == (frozenset(), "")


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match=r"no vector function named 'gamma'; there are acos, "):
        vector_math.definition("gamma", 8)
    with pytest.raises(ValueError, match="at least one lane, not 0"):
        vector_math.definition("exp", 0)

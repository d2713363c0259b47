"""All periodic orbits in a box: counts and points against closed forms, tables and roots of polynomials."""

import sys
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdmap

pytest.importorskip("flint")

from gdmap.engines.balls.lanes import Ends, Lanes
from gdmap.maps import Torus
from gdmap.orbits.branch_and_prune import AllCycles, enclose_all_cycles

LOGISTIC = gdmap.GradientDescent(gdmap.Function(lambda t: t[0] ** 3 / 3 - t[0], 1), 1.5)
DOUBLE_WELL = gdmap.GradientDescent(gdmap.Function(lambda t: (t[0] ** 2 - 1) ** 2 / 4, 1), 2.0)
HENON = gdmap.Optimiser(
    gdmap.Function(lambda t: t[0] ** 3 / 3 - t[0], 1),
    optax.sgd,
    learning_rate=float(np.sqrt(6.09)) / 2,
    momentum=-0.3,
)


def points_of(result: AllCycles) -> tuple[np.ndarray, np.ndarray]:
    """Middles and radii of all points, shape ``(k, dim)``."""
    orbits = [*result.orbits, *(orbit for found in result.shorter.values() for orbit in found)]
    return np.concatenate([o.mid for o in orbits]), np.concatenate([o.rad for o in orbits])


def assert_same_points(result: AllCycles, exact: np.ndarray, error: float) -> None:
    """Each exact point (known to ``error``) lies in exactly one enclosure, and each enclosure holds one."""
    mid, rad = points_of(result)
    order = np.argsort(mid[:, 0])
    mid, rad, exact = mid[order, 0], rad[order, 0] + error, np.sort(exact)
    assert len(mid) == len(exact)
    assert np.all(np.abs(mid - exact) <= rad)
    assert np.all(np.diff(mid) > rad[1:] + rad[:-1] + 2 * error)


def logistic_points(n: int) -> np.ndarray:
    """``x = -1 + (8 / 3) sin^2(theta)``: all fixed points of the n-fold map at full chaos, on [-1, 5/3]."""
    thetas = [np.pi * k / (2**n - 1) for k in range(2 ** (n - 1))]
    thetas += [np.pi * k / (2**n + 1) for k in range(1, 2 ** (n - 1) + 1)]
    return -1 + 8 / 3 * np.sin(np.array(thetas)) ** 2


def cubic_points(n: int) -> np.ndarray:
    """``sqrt(2) cos(theta)``: all fixed points of the n-fold map ``y -> 3 y - y^3`` at full chaos, in x."""
    power = 3**n
    if n % 2 == 0:
        fractions = {Fraction(2 * k, power - 1) for k in range((power - 1) // 2 + 1)}
        fractions |= {Fraction(2 * k, power + 1) for k in range((power + 1) // 2 + 1)}
    else:
        fractions = {Fraction(2 * k + 1, power + s) for s in (1, -1) for k in range((power + s + 1) // 2)}
    turns = np.array([float(f) for f in sorted(fractions) if f <= 1])
    return np.sqrt(2) * np.cos(np.pi * turns)


@pytest.mark.parametrize(
    ("period", "primes"),
    [
        (1, 2),
        (2, 1),
        (3, 2),
        (4, 3),
        (5, 6),
        (6, 9),
        (7, 18),
        (8, 30),
        (9, 56),
        (10, 99),
        pytest.param(11, 186, marks=pytest.mark.slow),
        (12, 335),
    ],
)
def test_logistic_map_has_2_to_the_n_points(period, primes):
    result = enclose_all_cycles(LOGISTIC, period, -1.0, 2.0)
    assert result.complete
    assert result.count == primes
    assert result.n_points == 2**period
    assert_same_points(result, logistic_points(period), 1e-14)


@pytest.mark.parametrize(
    ("period", "primes"),
    [(1, 3), (2, 3), (3, 8), (4, 18), (5, 48), (6, 116), (7, 312), pytest.param(8, 810, marks=pytest.mark.slow)],
)
def test_cubic_map_has_3_to_the_n_points_told_apart_at_the_ends(period, primes):
    result = enclose_all_cycles(DOUBLE_WELL, period, -1.5, 1.5)
    assert result.complete
    assert result.count == primes
    assert result.n_points == 3**period
    assert_same_points(result, cubic_points(period), 1e-14)


HENON_TABLE = [2, 1, 0, 1, 0, 2, 4, 7, 6, 10, 14, 19]


def henon_box() -> tuple[list[float], list[float]]:
    """A box that holds all bounded orbits.

    With ``c = eta`` and ``b = momentum``, ``x_{n+1} = (1 + b) x_n - b x_{n-1} - c (x_n^2 - 1)``. On a bounded
    orbit let ``R`` be the supremum of ``|x|``: ``c x_n^2 <= c + (1 + |1 + b| + |b|) R`` gives
    ``c R^2 <= c + (1 + |1 + b| + |b|) R``. The velocity is ``(x_n - x_{n+1}) / c``.
    """
    c, b = float(np.sqrt(6.09)) / 2, -0.3
    s = 1 + abs(1 + b) + abs(b)
    radius = 1.001 * (s + np.sqrt(s * s + 4 * c * c)) / (2 * c)
    return [-radius, -2 * radius / c], [radius, 2 * radius / c]


@pytest.mark.parametrize(
    "period", [*range(1, 9), *(pytest.param(p, marks=pytest.mark.slow) for p in range(9, 13))]
)
def test_all_cycles_of_the_classical_henon_map(period):
    result = enclose_all_cycles(HENON, period, *henon_box())
    assert result.complete
    assert result.count == HENON_TABLE[period - 1]
    assert result.n_points == sum(d * HENON_TABLE[d - 1] for d in range(1, period + 1) if period % d == 0)
    mid, _ = points_of(result)
    for point in mid:
        state = point
        for _ in range(period):
            state = np.asarray(HENON.step(state))
        np.testing.assert_allclose(state, point, atol=1e-9)


def test_standard_map_in_the_plane_against_newtons_method():
    # Heavy ball with beta = 1 on cos x. With v' = v - sin x, x' = x - K v' the map is reversible.
    K = 2.3
    map_ = gdmap.Optimiser(gdmap.Function(lambda t: jnp.cos(t[0]), 1), optax.sgd, learning_rate=K, momentum=1.0)
    fixed = enclose_all_cycles(map_, 1, [0.0, -4.0], [2 * np.pi, 4.0])
    assert fixed.complete
    # 2 pi is not a float: its orbit is found although it lies beside the box.
    np.testing.assert_allclose([o.mid[0] for o in fixed.orbits], [[0, 0], [np.pi, 0], [2 * np.pi, 0]], atol=1e-12)
    assert [o.inside for o in fixed.orbits] == [False, True, False]
    result = enclose_all_cycles(map_, 4, [0.0, -4.0], [2 * np.pi, 4.0])
    assert result.complete
    assert set(result.shorter) == {1}
    assert result.count > 0
    for orbit in result.orbits:
        state = orbit.mid
        np.testing.assert_allclose(np.array([map_.step(x) for x in state]), np.roll(state, -1, 0), atol=1e-12)
        reflected = np.sort(2 * np.pi - orbit.mid[:, 0])
        assert any(np.allclose(reflected, np.sort(o.mid[:, 0]), atol=1e-10) for o in result.orbits)
    # Every cycle that Newton's method finds from random starts is in the list.
    rng = np.random.default_rng(0)
    starts = np.stack([rng.uniform(0, 2 * np.pi, 150), rng.uniform(-4, 4, 150)], 1)
    met = 0
    for found in newton_cycles(K, starts, 4):
        if found[:, 0].min() < 0 or found[:, 0].max() > 2 * np.pi or np.abs(found[:, 1]).max() > 4:
            continue
        mids = np.concatenate([o.mid for o in (*result.orbits, *result.shorter[1])])
        assert np.min(np.max(np.abs(mids - found[0]), 1)) < 1e-8
        met += np.ptp(found[:, 0]) > 1e-6
    assert met > 0


@pytest.mark.parametrize(
    ("period", "traces", "point"),
    [
        (1, [1.02836500, 2.97163500], [np.pi, 0.0]),
        (2, [1.05592543, 2.96104413], [1.3346302001, 2.6692604001]),
        (3, [0.95728003, 0.95728003, 3.06235251, 3.06235251], [0.8121394069, 1.6242788137]),
    ],
)
def test_standard_map_on_the_torus(period, traces, point):
    K = 0.971635
    map_ = gdmap.Optimiser(gdmap.Function(lambda t: jnp.cos(t[0]), 1), optax.sgd, learning_rate=K, momentum=1.0)
    # Angles x and momenta -K v; the ranges begin where no orbit is.
    torus = Torus(map_, [2 * np.pi, 2 * np.pi / K], [-0.3, -0.3])
    result = enclose_all_cycles(torus, period, -10.0, 10.0)
    assert result.complete
    found = []
    for orbit in result.orbits:
        derivative = np.eye(2)
        for x in orbit.mid:
            derivative = np.asarray(map_.jacobian(x)) @ derivative
        found.append(np.trace(derivative))
    np.testing.assert_allclose(sorted(found), traces, atol=1e-8)
    turns = (np.concatenate([o.mid for o in result.orbits]) * [1, -K] - point) / (2 * np.pi)
    assert np.min(np.max(np.abs(turns - np.round(turns)), 1)) < 1e-10


def newton_cycles(K: float, starts: np.ndarray, period: int) -> list[np.ndarray]:
    """Cycles of the lifted standard map by Newton's method on the p-fold map, in plain NumPy."""
    cycles = []
    for start in starts:
        x = start.copy()
        for _ in range(40):
            state, derivative, points = x, np.eye(2), [x]
            for _ in range(period):
                velocity = state[1] - np.sin(state[0])
                local = np.array([[1 + K * np.cos(state[0]), -K], [-np.cos(state[0]), 1.0]])
                state, derivative = np.array([state[0] - K * velocity, velocity]), local @ derivative
                points.append(state)
            x = x - np.linalg.lstsq(derivative - np.eye(2), state - x, rcond=None)[0]
            if np.max(np.abs(x)) > 50:
                break
        if np.max(np.abs(points[-1] - points[0])) < 1e-11:
            cycles.append(np.array(points[:-1]))
    return cycles


def test_three_dimensions_where_coordinates_do_not_meet():
    map_ = gdmap.GradientDescent(gdmap.Function(lambda t: jnp.sum((t**2 - 1) ** 2) / 4, 3), 1.1)
    result = enclose_all_cycles(map_, 2, -3.0, 3.0)
    # On each axis: 3 fixed points, 2 cycles in the wells, 1 across: 9 points.
    assert result.complete
    assert (result.count, len(result.shorter[1]), result.n_points) == ((9**3 - 27) // 2, 27, 9**3)


def test_a_family_is_left_open_with_its_reason():
    map_ = gdmap.GradientDescent(gdmap.Function(lambda t: (t[0] * t[1] - 1) ** 2 / 2, 2), 0.3)
    result = enclose_all_cycles(map_, 1, -3.0, 3.0, max_boxes=20_000)
    assert not result.complete
    assert len(result.unresolved_lower) == len(result.unresolved_upper) > 0
    # The saddle at the origin is no part of the family.
    assert result.count == 1
    np.testing.assert_allclose(result.orbits[0].mid, 0, atol=1e-12)
    # Each minimum is in a box that is left.
    for a in np.linspace(0.5, 2.5, 20):
        point = np.array([a, 1 / a])
        low, high = result.unresolved_lower[:, 0] - 1e-9, result.unresolved_upper[:, 0] + 1e-9
        assert np.any(np.all((low <= point) & (point <= high), 1))
    assert "max_boxes=20000" in result.reason
    assert "multiplier 1" in result.reason
    assert "may be incomplete" in result.explain()


def test_a_fold_is_left_open():
    fold = gdmap.GradientDescent(gdmap.Function(lambda t: -(t[0] ** 3) / 3, 1), 1.0)
    result = enclose_all_cycles(fold, 1, -1.0, 1.0)
    assert not result.complete
    assert result.count == 0
    assert np.all((result.unresolved_lower < 1e-6) & (result.unresolved_upper > -1e-6))
    assert "multiplier 1" in result.reason
    # The two fixed points of x -> x + x^2 - d, sqrt(d) from 0, are told apart long before.
    near = gdmap.GradientDescent(gdmap.Function(lambda t: 1e-12 * t[0] - t[0] ** 3 / 3, 1), 1.0)
    pair = enclose_all_cycles(near, 1, -1.0, 1.0)
    assert pair.complete
    np.testing.assert_allclose([o.mid[0, 0] for o in pair.orbits], [-1e-6, 1e-6], rtol=1e-6)


def test_at_a_period_doubling_the_cycle_that_is_born_is_left_open():
    flip = gdmap.GradientDescent(gdmap.Function(lambda t: t[0] ** 3 / 3 - t[0], 1), 1.0)
    assert enclose_all_cycles(flip, 1, -3.0, 3.0).count == 2
    result = enclose_all_cycles(flip, 2, -3.0, 3.0)
    assert not result.complete
    assert np.all(np.abs((result.unresolved_lower + result.unresolved_upper) / 2 - 1) < 1e-3)


def test_a_box_without_orbits():
    slope = gdmap.GradientDescent(gdmap.Function(lambda t: t[0], 1), 1.0)
    result = enclose_all_cycles(slope, 3, -3.0, 3.0)
    assert result.complete
    assert (result.count, result.n_points, len(result.unresolved_lower)) == (0, 0, 0)
    assert result.explain().startswith("Exactly 0 orbits of minimal period 3 lie in the box, proved.")


def test_boxes_that_cannot_be_cut():
    # The minimum at 1 is the box itself; at its neighbour there is nothing.
    map_ = gdmap.GradientDescent(gdmap.Function(lambda t: (t[0] ** 2 - 1) ** 2 / 4, 1), 1.1)
    alone = enclose_all_cycles(map_, 1, 1.0, 1.0)
    assert alone.complete
    assert alone.count == 1
    assert "boundary" in alone.explain()
    beside = enclose_all_cycles(map_, 1, 1.0, float(np.nextafter(1.0, 2.0)))
    assert beside.complete
    assert beside.count == 1
    assert beside.boxes < 10
    assert enclose_all_cycles(map_, 1, 1.5, float(np.nextafter(1.5, 2.0))).count == 0


def test_orbits_that_leave_the_box_do_not_count():
    # The 2-cycle of the double well at 1.1 lies round 1 (golden values: sqrt(1.1) y with product of y 1).
    map_ = gdmap.GradientDescent(gdmap.Function(lambda t: (t[0] ** 2 - 1) ** 2 / 4, 1), 1.1)
    r = 2.1
    y = (np.sqrt(r + 2) + np.array([-1, 1]) * np.sqrt(r - 2)) / 2 / np.sqrt(1.1)
    whole = enclose_all_cycles(map_, 2, 0.5, 1.4)
    assert (whole.count, len(whole.shorter[1])) == (1, 1)
    np.testing.assert_allclose(np.sort(whole.orbits[0].mid[:, 0]), np.sort(y), atol=1e-14)
    assert whole.orbits[0].mid[0, 0] == whole.orbits[0].mid.max()
    half = enclose_all_cycles(map_, 2, 0.5, float(y.max()) - 1e-9)
    assert half.complete
    assert (half.count, len(half.shorter[1])) == (0, 1)


coefficients = st.tuples(*[st.floats(-1.0, 1.0).map(lambda x: round(x, 6)) for _ in range(4)])


@settings(max_examples=6, deadline=None)
@given(coefficients)
def test_random_cubic_maps_against_the_roots_of_the_polynomial(c):
    # G(x) = x - L'(x) = c0 + c1 x + c2 x^2 + c3 x^3, with coefficients that do not make the map nearly linear.
    cubic = np.polynomial.Polynomial([c[0], 2 * c[1], 2 * c[2], np.sign(c[3] or 1) + c[3]])
    loss = (np.polynomial.Polynomial([0, 1]) - cubic).integ().coef
    map_ = gdmap.GradientDescent(
        gdmap.Function(lambda t: sum(a * t[0] ** k for k, a in enumerate(loss) if k), 1), 1.0
    )
    result = enclose_all_cycles(map_, 2, -4.0, 4.0)
    twice = cubic(cubic) - np.polynomial.Polynomial([0, 1])
    roots = twice.roots()
    slopes = np.abs(twice.deriv()(roots))
    plain = np.abs(roots.imag) < 1e-9
    nearly = np.abs(roots.imag) < 1e-3
    if np.any(plain != nearly) or np.any(slopes[plain] < 1e-4):
        return  # nearly a double root, which the comparison does not decide
    real = roots[plain].real
    real = real[(np.abs(real) < 4) & (np.abs(cubic(real)) < 4)]
    assert result.complete
    assert result.n_points == len(real)
    mid, _ = points_of(result) if result.n_points else (np.empty((0, 1)), None)
    np.testing.assert_allclose(np.sort(mid[:, 0]), np.sort(real), atol=1e-7)


def test_elementary_functions_and_progress():
    seen = []
    map_ = gdmap.GradientDescent(
        gdmap.Function(lambda t: (jnp.tanh(2 * t[0]) - 0.5) ** 2 + 0.1 * jnp.exp(t[0]) + jnp.cos(t[0]), 1), 3.0
    )
    result = enclose_all_cycles(map_, 2, -5.0, 5.0, progress=lambda *numbers: seen.append(numbers))
    assert result.complete
    xs = np.linspace(-5, 5, 200_001)

    def step(x):
        gradient = 4 * (np.tanh(2 * x) - 0.5) / np.cosh(2 * x) ** 2 + 0.1 * np.exp(x) - np.sin(x)
        return x - 3 * gradient

    changes = np.flatnonzero(np.diff(np.sign(step(step(xs)) - xs)))
    crossings = [x for x in xs[changes] if abs(step(x)) <= 5]
    assert result.n_points == len(crossings)
    assert seen[-1] == (result.boxes, 0, result.count + sum(map(len, result.shorter.values())))


@pytest.mark.parametrize("name", ["exp", "tanh", "sin", "cos", "sqrt", "rsqrt", "erfc", "tan", "logistic"])
def test_enclosures_of_functions_hold_their_values(name):
    import mpmath

    rng = np.random.default_rng(1)
    low = rng.uniform(0.01, 8, 40)
    high = low + rng.choice([0, 1e-9, 0.3, 4.0], 40)
    lanes = Lanes()
    with lanes.active():
        found = lanes.function(name, Ends(low[None], high[None]))
    functions = {"rsqrt": lambda x: 1 / mpmath.sqrt(x), "logistic": lambda x: 1 / (1 + mpmath.exp(-x))}
    function = functions.get(name) or getattr(mpmath, name)
    finite = np.isfinite(found.lower[0])
    assert finite.sum() >= 15
    for i in np.flatnonzero(finite):
        for share in (0, 0.37, 1):
            with mpmath.workdps(40):
                value = function(mpmath.mpf(low[i]) * (1 - share) + mpmath.mpf(high[i]) * share)
            assert found.lower[0, i] <= value <= found.upper[0, i]
        if low[i] == high[i]:
            assert found.upper[0, i] - found.lower[0, i] <= 8e-16 * max(1, abs(found.lower[0, i]))


@settings(max_examples=50, deadline=None)
@given(*[st.tuples(*[st.floats(-1e3, 1e3, allow_subnormal=False)] * 4) for _ in range(2)])
def test_arithmetic_over_lanes_encloses(a, b):
    lanes = Lanes()
    x, y = (
        Ends(np.sort([[p[0], p[1]], [p[2], p[3]]], 0)[0], np.sort([[p[0], p[1]], [p[2], p[3]]], 0)[1])
        for p in (a, b)
    )
    with lanes.active():
        results = {
            "add": lanes.add(x, y),
            "sub": lanes.sub(x, y),
            "mul": lanes.mul(x, y),
            "div": lanes.div(x, y),
            "square": lanes.power(x, 2),
            "cube": lanes.power(x, 3),
        }
    exact = {
        "add": lambda s, t: s + t,
        "sub": lambda s, t: s - t,
        "mul": lambda s, t: s * t,
        "div": lambda s, t: s / t,
        "square": lambda s, t: s * s,
        "cube": lambda s, t: s**3,
    }
    for name, found in results.items():
        for lane in range(2):
            if np.isnan(found.lower[lane]) or np.isnan(found.upper[lane]):
                assert name == "div"
                assert y.lower[lane] <= 1e-300
                assert y.upper[lane] >= -1e-300
                continue
            for s in (x.lower[lane], x.upper[lane], x.lower[lane] / 2 + x.upper[lane] / 2):
                for t in (y.lower[lane], y.upper[lane]):
                    value = exact[name](Fraction(float(s)), Fraction(float(t)))
                    # Fractions and floats compare exactly.
                    assert float(found.lower[lane]) <= value <= float(found.upper[lane])


def test_bad_input_says_what_to_do():
    with pytest.raises(TypeError, match="expected a map"):
        enclose_all_cycles(lambda x: x, 1, -1, 1)
    adam = gdmap.Optimiser(gdmap.Function(lambda t: t[0] ** 2, 1), optax.adam, learning_rate=0.1)
    with pytest.raises(ValueError, match="limit=True"):
        enclose_all_cycles(adam, 1, -1, 1)
    with pytest.raises(ValueError, match="period must be a whole number"):
        enclose_all_cycles(LOGISTIC, 0, -1, 1)
    with pytest.raises(ValueError, match="max_boxes"):
        enclose_all_cycles(LOGISTIC, 1, -1, 1, max_boxes=True)
    with pytest.raises(ValueError, match="must not exceed"):
        enclose_all_cycles(LOGISTIC, 1, 1, -1)
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        enclose_all_cycles(LOGISTIC, 1, [0, 0], 1)
    circle = Torus(gdmap.GradientDescent(gdmap.Function(lambda t: jnp.cos(t[0]), 1), 0.5), [2 * np.pi])
    with pytest.raises(ValueError, match="does not meet"):
        enclose_all_cycles(circle, 1, 8.0, 9.0)
    with pytest.raises(ValueError, match="finite"):
        enclose_all_cycles(LOGISTIC, 1, -np.inf, 1)
    kinky = gdmap.GradientDescent(gdmap.Function(lambda t: jnp.maximum(t[0], 0.5 * t[0]) ** 2, 1), 0.3)
    with pytest.raises(ValueError, match="kinks"):
        enclose_all_cycles(kinky, 1, -1, 1)


def test_without_flint_the_extra_is_named(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("gdmap.engines.balls") or name in ("gdmap.orbits.enclosing", "gdmap.orbits.box_search"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(ImportError, match=r"gdmap\[proofs\]"):
        enclose_all_cycles(LOGISTIC, 1, -1, 1)

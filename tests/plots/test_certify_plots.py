import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from gdmap import Function, GradientDescent, Objective
from gdmap.plots import plot_determinant_sign, plot_singularity_distance
from gdmap.plots.certify import determinant_slice, meets_pieces, sides_of_kinks, zero_lines
from gdmap.stability import singularity_distance

TWO_FACTORS = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
QUARTIC = Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)
TWO_RELUS = Function(lambda w: (jax.nn.relu(w[1] * jax.nn.relu(w[0])) - 1) ** 2 / 2, 2)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def segments(figure):
    """Drawn lines by colour."""
    found = {}
    for collection in figure.axes[0].collections[1:]:
        colour = tuple(np.round(collection.get_color()[0][:3], 3))
        found[colour] = np.array(collection.get_segments())
    return found


def test_the_critical_set_lies_where_the_determinant_vanishes(tmp_path):
    figure = plot_determinant_sign(TWO_FACTORS, 0.5, extent=2.5)
    assert labels(figure) == ["negative", "positive", "critical set, det = 0"]
    assert "step size 0.5; computed on 240 x 240 points" in figure.axes[0].get_title()
    (lines,) = segments(figure).values()
    a, b = lines.reshape(-1, 2).T
    determinant = 1 - 0.5 * (a**2 + b**2) + 0.25 * ((a * b) ** 2 - (2 * a * b - 1) ** 2)
    assert len(a) > 200 and np.abs(determinant).max() < 2e-3
    figure.savefig(tmp_path / "sign.png")
    assert (tmp_path / "sign.png").stat().st_size > 10_000


def test_no_critical_line_across_a_kink():
    figure = plot_determinant_sign(TWO_RELUS, 0.5, resolution=120)
    assert labels(figure) == ["negative", "positive", "critical set, det = 0", "piece boundaries (kinks)"]
    lines = segments(figure)
    (critical, boundary) = lines.values()
    a, b = critical.reshape(-1, 2).T
    # The determinant changes sign on the axes without a zero: only the curve inside the quadrant is critical.
    determinant = 1 - 0.5 * (a**2 + b**2) + 0.25 * ((a * b) ** 2 - (2 * a * b - 1) ** 2)
    assert np.abs(determinant).max() < 5e-3 and a.min() > 0 and b.min() > 0
    a, b = boundary.reshape(-1, 2).T
    # The second kink is none where the first unit is dead; at the corner, to one cell.
    assert np.all((np.abs(a) < 1e-9) | ((np.abs(b) < 1e-9) & (a > 0)) | (np.hypot(a, b) < 6 / 119))


def test_a_singular_piece_is_filled():
    assert labels(plot_determinant_sign(QUARTIC, Fraction(1), resolution=40)) == ["zero, to rounding"]
    assert labels(plot_determinant_sign(GradientDescent(QUARTIC, 0.5), resolution=40)) == [
        "negative",
        "positive",
        "critical set, det = 0",
    ]
    outside = Function(
        lambda t: jnp.where(t[0] ** 2 + t[1] ** 2 < 1, t[0] ** 4 + t[1] ** 4, t[0] ** 2 + t[1] ** 2), 2
    )
    slice_ = determinant_slice(outside, 0.5, resolution=50)
    radius = np.hypot(slice_.a, slice_.b)
    np.testing.assert_array_equal(slice_.sign == 0, radius >= 1)
    np.testing.assert_array_equal(slice_.pattern != slice_.pattern[0, 0], radius < 1)


def test_a_slice_of_a_larger_space_is_that_space():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=4), rng.normal(size=4)
    network = Objective(
        lambda p, x, y: (p["v"] @ jax.nn.relu(p["w"] * x + p["b"]) - y) ** 2 / 2,
        {"w": np.zeros(2), "b": np.zeros(2), "v": np.zeros(2)},
        data=(x, y),
    )
    origin, one, two = rng.normal(size=(3, 6))
    slice_ = determinant_slice(network, 0.4, (origin, one, two), extent=(-1, 1, 0, 2), resolution=9)
    assert slice_.a.attrs["long_name"] == "steps along direction 1"
    for i, j in ((0, 0), (3, 7), (8, 8)):
        theta = origin + float(slice_.a[i]) * one + float(slice_.b[j]) * two
        sign, _ = GradientDescent(network, 0.4).slogdet(theta)
        assert slice_.sign[i, j] == sign
    numbers, margins = sides_of_kinks(network, rng.normal(size=(50, 6)))
    assert margins.shape == (50, 8) and len(np.unique(numbers)) > 5
    same = np.all(np.sign(margins)[:, None] == np.sign(margins)[None], axis=-1)
    np.testing.assert_array_equal(numbers[:, None] == numbers[None], same)
    figure = plot_determinant_sign(network, 0.4, (origin, np.eye(6)[0], np.eye(6)[3]), resolution=20)
    assert figure.axes[0].get_xlabel().startswith("theta_0 ")


@pytest.mark.parametrize(
    "loss",
    [
        lambda w: jnp.max(jnp.stack([w[0], w[1], -w[0]])) ** 2,
        lambda w: -jnp.min(jnp.stack([w[0], w[1], -w[0]])) + w[0] ** 2,
        lambda w: jnp.clip(w[0] + w[1], -1, 1) ** 2,
        lambda w: jnp.abs(w[0]) * w[1] + jnp.sign(w[1]) * w[0],
        lambda w: jnp.where(w[0] <= w[1], w[0], w[1] ** 2),
        lambda w: jnp.sum(
            jax.lax.reduce_window(jnp.stack([w[0], w[1], -w[0], 0.3]), -jnp.inf, jax.lax.max, (2,), (2,), "VALID")
            ** 2
        ),
    ],
)
def test_patterns_of_every_kind_of_kink_are_those_that_are_proved(loss):
    from gdmap.engines.balls.mid_rad import MidRad
    from gdmap.engines.pieces import PiecewiseProgram

    theta = np.random.default_rng(1).normal(size=(60, 2))
    objective = Function(loss, 2)
    numbers, _ = sides_of_kinks(objective, theta)
    pieces = PiecewiseProgram(objective.evaluate, 2)
    proved = np.array([pieces.pattern(row, MidRad()).digest for row in theta])
    assert len(np.unique(proved)) > 1
    np.testing.assert_array_equal(numbers[:, None] == numbers[None], proved[:, None] == proved[None])


def test_kinks_with_many_sides_are_drawn_along_the_points():
    pooled = Function(lambda w: jnp.max(jnp.stack([w[0], w[1], 0.5 - w[0]])) ** 2, 2)
    figure = plot_determinant_sign(pooled, 0.1, resolution=60)
    assert "piece boundaries (kinks)" in labels(figure)
    (lines,) = segments(figure).values()
    steps = np.abs(lines[:, 1] - lines[:, 0])
    assert np.all(np.minimum(steps[:, 0], steps[:, 1]) < 1e-12)


def test_zero_lines_only_in_the_cells_asked_for():
    a = b = np.linspace(-1, 1, 5)
    plane = np.add.outer(b, 0 * a) - 0.1
    cells = np.zeros((4, 4), bool)
    cells[:, 0] = True
    (segment,) = zero_lines(a, b, plane, cells)
    np.testing.assert_allclose(np.sort(segment[:, 0]), [-1, -0.5])
    np.testing.assert_allclose(segment[:, 1], 0.1)
    assert zero_lines(a, b, plane + 5, cells) == []
    assert not meets_pieces(np.zeros((3, 3))).any()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Function(lambda w: w @ w, 3), 0.1), {}, "give plane="),
        ((QUARTIC, 0.1, (np.zeros(2), np.ones(2), -np.ones(2))), {}, "parallel"),
        ((QUARTIC, 0.1, (np.zeros(2), np.zeros(2), np.ones(2))), {}, "not zero"),
        ((QUARTIC, 0.1, (np.zeros(2), np.ones(2))), {}, "three vectors"),
        ((QUARTIC, 0.1, (np.zeros(3), np.ones(2), np.ones(2))), {}, "shape \\(2,\\)"),
        ((QUARTIC, 0.1, "plane"), {}, "three vectors of numbers"),
        ((QUARTIC, 0.1), {"extent": -1}, "extent must be"),
        ((QUARTIC, 0.1), {"extent": (1, 0, 0, 1)}, "extent must be"),
        ((QUARTIC, 0.1), {"resolution": 1}, "resolution must be"),
        ((QUARTIC, 0.1), {"resolution": 2.5}, "resolution must be"),
        ((QUARTIC,), {}, "step_size is missing"),
    ],
)
def test_mistakes(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plot_determinant_sign(*arguments, **options)


def test_without_flint_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flint", None)
    for name in [
        name
        for name in sys.modules
        if (name.startswith("gdmap.engines") and "balls" in name) or name == "gdmap.engines.pieces"
    ]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="gdmap\\[proofs\\]"):
        plot_determinant_sign(QUARTIC, 0.1, resolution=10)


def test_histogram_of_distances(tmp_path):
    theta = np.random.default_rng(0).normal(size=(200, 2))
    figure = plot_singularity_distance(singularity_distance(TWO_FACTORS, 0.5, theta), "two factors")
    (axes,) = figure.axes
    assert sum(patch.get_height() for patch in axes.patches) == 200
    assert "200 points, 0 of them zero to rounding" in axes.get_title() and "not a proof" in axes.get_title()
    figure.savefig(tmp_path / "distances.png")
    singular = singularity_distance(QUARTIC, 1.0, theta)
    (axes,) = plot_singularity_distance(singular).axes
    assert "200 of them zero to rounding" in axes.get_title()
    mixed = xr.concat([singular, singularity_distance(TWO_FACTORS, 0.5, theta)], "point", combine_attrs="drop")
    (axes,) = plot_singularity_distance(mixed).axes
    assert len(axes.get_legend().get_texts()) == 2
    root = Function(lambda t: jnp.sqrt(t[0]), 1)
    (axes,) = plot_singularity_distance(singularity_distance(root, 0.1, [[-1.0], [2.0]])).axes
    assert "1 without a finite Jacobian" in axes.get_title()
    with pytest.raises(ValueError, match="this dataset has no distance"):
        plot_singularity_distance(xr.Dataset())

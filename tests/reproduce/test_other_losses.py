import jax
import numpy as np
import pytest

import gdmap
from gdmap.bracket import Bracket
from gdmap.engines.precision import float64
from gdmap.objectives.residual_loss import huber, log_cosh
from gdmap.reproduce import REPRODUCTIONS, other_losses, reproduce
from gdmap.reproduce.other_losses import (
    LOSSES,
    SMALLEST,
    Blend,
    Landscape,
    Perturbed,
    Threshold,
    above_the_lowest,
    bottleneck,
    changed,
    classifier,
    continuity_claim,
    interpolating_claim,
    landscape_claim,
    linear_maker,
    settled,
    tanh_maker,
    threshold_claim,
)
from gdmap.sweeps import gaussian_starts
from gdmap.sweeps.fractions import share_of

NAME = "other-losses"
EQUAL, DISTINCT = SMALLEST

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return reproduce(NAME, tmp_path_factory.mktemp("report"), quick=True)


def estimated(value):
    return Bracket(value, value, np.inf, "estimated", "search")


def threshold(loss="square", noise=1.0, step_size=0.2, below=10, above=0):
    shares = (share_of(below, 10, "runs"), share_of(above, 10, "runs"))
    return Threshold("linear (2,1,2)", loss, noise, estimated(step_size), 2, 2, 0.0 if not noise else 0.3, *shares)


def test_the_reproduction_is_registered():
    assert REPRODUCTIONS[NAME].run is other_losses.run
    assert REPRODUCTIONS[NAME].statements == other_losses.STATEMENTS


def derivatives(function):
    """The function and its first three derivatives, compiled together."""
    chain = [function]
    for _ in range(3):
        chain.append(jax.grad(chain[-1]))
    return jax.jit(jax.vmap(lambda r: [one(r) for one in chain]))


def test_the_derivatives_written_down_are_those_of_the_losses():
    r = np.array([-3.0, -0.4, 0.0, 0.7, 2.5])
    with float64():
        for name, function in (("Huber", huber), ("log cosh", log_cosh)):
            ours, theirs = (np.asarray(derivatives(f)(r)) for f in (Blend(np.array(LOSSES[name])), function))
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_blend_is_the_loss_it_is_made_of():
    r = np.array([-2.0, 0.1, 1.5])
    with float64():
        blended = np.asarray(Blend(np.array([2.0, 1.0, 3.0, 0.5]))(r))
        expected = r**2 + np.asarray(huber(r)) + 3 * np.log(np.cosh(r)) + r**4 / 2
    np.testing.assert_allclose(blended, expected, rtol=1e-13)


def test_all_losses_have_curvature_one_at_zero():
    with float64():
        curvature = jax.jit(jax.vmap(lambda multiples: jax.hessian(Blend(multiples))(0.0)))
        np.testing.assert_allclose(curvature(np.array(list(LOSSES.values()))), 1.0, atol=1e-14)


def test_interpolating_networks_have_one_hessian_under_all_losses():
    make = linear_maker((2, 1, 2), 0)
    square = gdmap.LinearNetwork(
        (2, 1, 2), make((1, 0, 0, 0), 0.0).samples.inputs, make((1, 0, 0, 0), 0.0).samples.targets
    )
    theta = gdmap.critical_step_size(square).minimum
    reference = square.hessian(theta)
    for multiples in LOSSES.values():
        network = make(multiples, 0.0)
        assert network.value(theta) < 1e-25
        np.testing.assert_allclose(network.hessian(theta), reference, atol=1e-12)
    # With noise they part.
    noisy = [make(multiples, 1.0).hessian(theta) for multiples in LOSSES.values()]
    assert all(np.abs(noisy[0] - other).max() > 1e-3 for other in noisy[1:])


def test_the_bottleneck_is_whitened_and_has_the_losses_of_theory():
    network = bottleneck(DISTINCT, changed("r^4", 0.0), 0)
    np.testing.assert_allclose(network.input_covariance, np.eye(3), atol=1e-12)
    # The best map of rank one keeps the largest singular value: what is left is half the sum of squares.
    best = np.array([1.0, 0, 0, 1.0, 0, 0])
    assert network.value(best) == pytest.approx((0.75**2 + 0.5**2) / 2, rel=1e-12)
    equal = bottleneck(EQUAL, changed("r^4", 0.0), 0)
    assert equal.value(best) == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(ValueError, match=r"direction must be 'r\^4' or 'log cosh'"):
        changed("huber", 0.1)


def test_runs_settle_below_two_over_the_sharpness_and_not_above():
    network = bottleneck(DISTINCT, changed("r^4", 0.0), 0)
    flattest = np.array([1.0, 0, 0, 1.0, 0, 0])
    sharpness = float(np.linalg.eigvalsh(network.hessian(flattest)).max())
    assert sharpness == pytest.approx(2.0)  # theory.md 2.4: N sigma_1^(2 - 2/N)
    starts = flattest + gaussian_starts(6, 6, 0, scale=1e-2)
    lowest = float(network.value(flattest))
    assert settled(network, 0.95 * 2 / sharpness, starts, lowest) == 6
    assert settled(network, 1.05 * 2 / sharpness, starts, lowest) == 0
    assert settled(network, 1e3, starts, lowest) == 0


def test_losses_above_the_lowest():
    higher, levels = above_the_lowest(np.array([0.5, 0.5 + 1e-13, 0.6, 0.7, 0.6]))
    assert higher.tolist() == [False, False, True, True, True] and levels == 3
    assert above_the_lowest(np.zeros(0))[1] == 0


def test_thresholds_are_judged_by_the_runs_on_both_sides():
    assert threshold_claim([threshold(), threshold("Huber", step_size=0.4)], 0).agrees == "yes"
    assert threshold_claim([threshold(above=1)], 0).agrees == "no"
    assert threshold_claim([threshold(below=0)], 0).agrees == "no"


def test_the_interpolating_case_is_judged_by_the_formula():
    make = linear_maker((2, 1, 2), 0)
    data = make((1, 0, 0, 0), 0.0).samples
    exact = gdmap.critical_step_size(gdmap.LinearNetwork((2, 1, 2), data.inputs, data.targets)).step_size.value
    makers = {"linear (2,1,2)": make}
    right = [threshold(loss, 0.0, exact * (1 + 1e-9)) for loss in LOSSES]
    assert interpolating_claim(right, makers).agrees == "yes"
    assert interpolating_claim([*right[1:], threshold("Huber", 0.0, exact * 1.01)], makers).agrees == "no"


def test_a_jump_of_the_threshold_is_seen():
    sizes = np.array([0.0, 1e-2, 1e-3, 1e-4])
    straight = Perturbed("n", sizes, [estimated(0.2 - 3 * size) for size in sizes])
    jump = Perturbed("n", sizes, [estimated(0.2), *(estimated(0.1 - size) for size in sizes[1:])])
    assert continuity_claim([straight]).agrees == "yes"
    assert continuity_claim([straight]).found["n: change per unit of r^4 in the limit"].value == pytest.approx(3)
    assert continuity_claim([jump]).agrees == "no"


def test_landscapes_are_judged_by_both_targets():
    def some(equal, distinct, square=0):
        return [
            Landscape(EQUAL, "r^4", 0.0, 40 - square, square, 0, 1),
            Landscape(EQUAL, "r^4", 1e-3, 40 - equal, equal, 0, 2),
            Landscape(DISTINCT, "r^4", 0.0, 40, 0, 0, 1),
            Landscape(DISTINCT, "r^4", 1e-3, 40 - distinct, distinct, 0, 2),
        ]

    assert landscape_claim(some(20, 0), 0).agrees == "corrected"
    assert landscape_claim(some(20, 20), 0).agrees == "yes"
    assert landscape_claim(some(0, 0), 0).agrees == "no"
    assert landscape_claim(some(20, 20, square=1), 0).agrees == "no"


def test_other_networks_are_the_formulas_written_out():
    tanh = tanh_maker(0)((0, 0, 1, 0), 0.5)
    x, y = map(np.asarray, tanh.data)
    f = np.tanh(np.outer(x, [0.3, 1.2])) @ np.array([2.0, -1.0])
    assert tanh.value(np.array([0.3, 1.2, 2.0, -1.0])) == pytest.approx(np.mean(np.log(np.cosh(f - y))), rel=1e-12)
    flips = classifier(0, 0.2)
    x, p = map(np.asarray, flips.data)
    assert set(p) == {0.2, 0.8}
    z = x @ np.array([[1.0, 0.5], [0.2, -1.0]]).T @ np.array([0.7, 1.0])
    expected = -np.mean(p * np.log(1 / (1 + np.exp(-z))) + (1 - p) * np.log(1 - 1 / (1 + np.exp(-z))))
    assert flips.value(np.array([1.0, 0.5, 0.2, -1.0, 0.7, 1.0])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_the_quick_run(report):
    interpolating, thresholds, continuity, landscape = report.claims
    assert interpolating.agrees == "yes"
    assert max(b.value for name, b in interpolating.found.items() if "difference" in name) < 1e-9
    assert thresholds.agrees == "yes"
    critical = {name: b.value for name, b in thresholds.found.items() if name.endswith("critical step size")}
    square = critical["linear (3,1,3), square, noise 1: critical step size"]
    # Less curvature at large residuals, larger step sizes.
    assert critical["linear (3,1,3), log cosh, noise 1: critical step size"] > square
    assert critical["linear (3,1,3), square + r^4/10, noise 1: critical step size"] < square
    assert continuity.agrees == "yes" and landscape.agrees == "corrected"
    assert landscape.found[f"{EQUAL}, 0.001 r^4: share of minima that are not global"].lower > 0.3
    assert landscape.found[f"{DISTINCT}, 0.001 r^4: share of minima that are not global"].value == 0
    assert set(report.figures) == {"other_losses", "landscape"}

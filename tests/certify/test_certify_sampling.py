import math

import numpy as np
import pytest
from scipy import stats

from gdmap.certify.sampling import missing_mass, unseen_probability


@pytest.mark.parametrize(("n", "k"), [(1, 0), (10, 0), (10, 3), (1000, 1), (1000, 999), (50, 50)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999999])
def test_the_bound_agrees_with_scipy(n, k, confidence):
    bound = unseen_probability(n, k, confidence)
    reference = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, method="exact")
    assert bound.upper == pytest.approx(reference.high, rel=1e-9)
    assert (bound.lower, bound.value, bound.status, bound.confidence) == (0.0, k / n, "estimated", confidence)


def test_no_failures_in_closed_form():
    assert unseen_probability(299, 0, 0.95).upper == pytest.approx(1 - 0.05 ** (1 / 299), rel=1e-10)
    # The rule of three.
    assert unseen_probability(10**6, 0, 0.95).upper == pytest.approx(3e-6, rel=2e-3)
    assert unseen_probability(10**15, 0, 0.95).upper == pytest.approx(-math.log(0.05) * 1e-15, rel=1e-9)


@pytest.mark.parametrize(("p", "n", "confidence"), [(0.02, 100, 0.9), (0.3, 20, 0.95), (0.001, 500, 0.8)])
def test_the_coverage_is_exactly_what_is_stated_or_more(p, n, confidence):
    """Summed over all counts, no simulation."""
    covered = sum(
        stats.binom.pmf(k, n, p) for k in range(n + 1) if p <= unseen_probability(n, k, confidence).upper
    )
    assert covered >= confidence


def laws():
    ranks = np.arange(1, 2001)
    yield "few", np.full(5, 0.2)
    yield "uniform", np.full(300, 1 / 300)
    yield "all different", np.full(20_000, 1 / 20_000)
    yield "heavy tail", 1 / ranks / (1 / ranks).sum()
    yield "geometric", 0.9 ** np.arange(200) / (0.9 ** np.arange(200)).sum()
    yield "two scales", np.concatenate([[0.9], np.full(50, 0.1 / 50)])


@pytest.mark.parametrize(("name", "law"), list(laws()), ids=lambda x: x if isinstance(x, str) else "")
def test_missing_mass_is_covered(name, law):
    rng = np.random.default_rng(0)
    n, trials, confidence = 100, 400, 0.9
    held_out, covered, covered_by_half = n // 2, 0, 0
    for _ in range(trials):
        draws = rng.choice(law.size, n, p=law)
        pieces, counts = np.unique(draws, return_counts=True)
        covered += 1 - law[pieces].sum() <= missing_mass(n, int((counts == 1).sum()), confidence).upper
        listed = np.unique(draws[:held_out])
        new = int((~np.isin(draws[held_out:], listed)).sum())
        covered_by_half += 1 - law[listed].sum() <= unseen_probability(n - held_out, new, confidence).upper
    # The first bound holds with room to spare, the second nearly with equality: four standard errors.
    assert covered / trials >= confidence
    assert covered_by_half / trials >= confidence - 4 * math.sqrt(confidence * (1 - confidence) / trials)


def test_draws_that_made_the_list_cannot_bound_what_is_not_listed():
    """Why there are two functions: all draws lie on listed pieces, yet almost all of the mass is not listed."""
    law = np.full(20_000, 1 / 20_000)
    pieces, counts = np.unique(np.random.default_rng(1).choice(law.size, 100, p=law), return_counts=True)
    missing = 1 - law[pieces].sum()
    assert missing > 0.99 > unseen_probability(100, 0).upper
    assert missing_mass(100, int((counts == 1).sum())).upper >= missing


def test_missing_mass_shrinks_with_the_sample():
    assert missing_mass(10**8, 0, 0.99).upper < 1e-3
    assert missing_mass(10, 10).upper == 1.0
    assert missing_mass(10**6, 1000).value == 1e-3


@pytest.mark.parametrize("bound", [unseen_probability, missing_mass])
def test_impossible_counts_are_refused(bound):
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        bound(0, 0)
    for count in (-1, 6):
        with pytest.raises(ValueError, match="between 0 and n_samples"):
            bound(5, count)
    for confidence in (0, 1, 99, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            bound(5, 0, confidence)

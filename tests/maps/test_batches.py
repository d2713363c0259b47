import itertools
import math
from fractions import Fraction

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from gdmap.engines.precision import float64
from gdmap.maps import Batches
from gdmap.maps.batches import FEW, trajectory_key

SKEWED = np.array([0.4, 0.1, 0.3, 0.2])
DRAWS = 20_000
# Fixed seeds are refused beyond four standard deviations.
LUCK = 2 * norm.sf(4)


def drawn(batches, trajectories=1, steps=DRAWS, seed=0):
    """Weights ``(trajectories, steps, n)``, indices and weights of members of many batches."""
    with float64():

        @jax.jit
        @jax.vmap
        def of(trajectory):
            key = trajectory_key(seed, trajectory)
            return jax.vmap(lambda step: (batches.sample_weights(key, step), *batches.draw(key, step)))(
                np.arange(steps, dtype=np.int32)
            )

        return tuple(map(np.asarray, of(np.arange(trajectories, dtype=np.int32))))


def observed(weights, support):
    """How often each batch of ``support`` occurs among ``weights``; every batch must be one of them."""
    ulp = 1e-9
    rows, counts = np.unique(np.rint(weights / ulp).astype(np.int64), axis=0, return_counts=True)
    place = {tuple(row): k for k, row in enumerate(np.rint(support / ulp).astype(np.int64).tolist())}
    assert len(place) == len(support)
    found = np.zeros(len(support))
    for row, count in zip(rows.tolist(), counts, strict=True):
        found[place[tuple(row)]] = count
    return found


def successive(p, size):
    """Every batch drawn one after another among those left, in rationals, by enumeration of all orders."""
    p = [Fraction(x).limit_denominator(1000) for x in p]
    law: dict[tuple[int, ...], Fraction] = {}
    for order in itertools.permutations(range(len(p)), size):
        chance, left = Fraction(1), Fraction(1)
        for i in order:
            chance, left = chance * p[i] / left, left - p[i]
        batch = tuple(sorted(order))
        law[batch] = law.get(batch, Fraction(0)) + chance
    return law


LAWS = {
    "one, uniform": {"n_samples": 5},
    "one, given": {"n_samples": 4, "probabilities": SKEWED},
    "pairs without replacement": {"n_samples": 5, "size": 2},
    "all but one": {"n_samples": 6, "size": 5},
    "pairs with replacement": {"n_samples": 4, "size": 2, "replace": True},
    "more than the data": {"n_samples": 3, "size": 4, "replace": True},
    "given with replacement": {"n_samples": 4, "size": 3, "probabilities": SKEWED, "replace": True},
    "given, one after another": {"n_samples": 4, "size": 2, "probabilities": SKEWED},
    "an impossible sample": {"n_samples": 4, "size": 2, "probabilities": [0.5, 0.0, 0.3, 0.2]},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("all but one", "more than the data")))
        for name in LAWS
    ],
)
def test_draws_follow_the_law(name):
    batches = Batches(**LAWS[name])
    weights, indices, members = (array[0] for array in drawn(batches))
    support, probability = batches.support(1000)
    assert probability.sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-14)
    assert indices.dtype == np.int32 and indices.shape == (DRAWS, batches.size)
    assert indices.min() >= 0 and indices.max() < batches.n_samples
    np.testing.assert_allclose(members, 1 / batches.size)
    assert chisquare(observed(weights, support), probability * DRAWS).pvalue > LUCK
    # Successive steps of one trajectory are independent: pairs of batches follow the product law.
    which = np.array([np.abs(support - row).sum(axis=1).argmin() for row in weights[:6000]])
    pairs = np.zeros((len(support), len(support)))
    np.add.at(pairs, (which[:-1:2], which[1::2]), 1)
    expected = np.outer(probability, probability) * pairs.sum()
    enough = expected > 5
    together = np.append(pairs[enough], pairs[~enough].sum())
    forecast = np.append(expected[enough], expected[~enough].sum())
    full = forecast > 0
    assert chisquare(together[full], forecast[full]).pvalue > LUCK


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_moments_are_those_of_the_enumerated_law(law):
    batches = Batches(**law)
    support, probability = batches.support(1000)
    np.testing.assert_allclose(batches.mean(), probability @ support, atol=1e-15)
    np.testing.assert_allclose(batches.second_moment(), (support.T * probability) @ support, atol=1e-15)


def all_draws(n, size, replace, p):
    """Every ordered draw with its probability: the law from first principles."""
    orders = itertools.product(range(n), repeat=size) if replace else itertools.permutations(range(n), size)
    for order in orders:
        chance, left = 1.0, 1.0
        for i in order:
            chance *= p[i] / left
            left -= 0.0 if replace else p[i]
        yield order, chance


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_support_and_moments_against_all_ordered_draws(data):
    n = data.draw(st.integers(1, 4), "n")
    replace = data.draw(st.booleans(), "replace")
    size = data.draw(st.integers(1, 3 if replace else n), "size")
    raw = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n), "rates"), float)
    p = raw / raw.sum()
    batches = Batches(n, size, p, replace)
    mean, second, law = np.zeros(n), np.zeros((n, n)), {}
    for order, chance in all_draws(n, size, replace, p):
        w = np.bincount(order, minlength=n) / size
        mean, second = mean + chance * w, second + chance * np.outer(w, w)
        law[tuple(w)] = law.get(tuple(w), 0.0) + chance
    np.testing.assert_allclose(batches.mean(), mean, atol=1e-14)
    np.testing.assert_allclose(batches.second_moment(), second, atol=1e-14)
    support, probability = batches.support(10**4)
    assert len(support) == len(law)
    for row, chance in zip(support, probability, strict=True):
        key = min(law, key=lambda w: np.abs(np.subtract(w, row)).sum())
        np.testing.assert_allclose(row, key, atol=1e-15)
        assert chance == pytest.approx(law[key], rel=1e-12)


def test_one_after_another_is_the_law_of_numpy_choice():
    batches = Batches(4, 2, SKEWED)
    support, probability = batches.support(100)
    exact = successive(SKEWED, 2)
    for weights, chance in zip(support, probability, strict=True):
        assert chance == pytest.approx(float(exact[tuple(np.flatnonzero(weights))]), rel=1e-14)
    rng = np.random.default_rng(3)
    rows = np.zeros((4000, 4))
    for row in rows:
        row[rng.choice(4, 2, replace=False, p=SKEWED)] = 0.5
    assert chisquare(observed(rows, support), probability * 4000).pvalue > LUCK
    # Then a sample's mean weight is not its probability; with replacement it is.
    assert np.abs(batches.mean() - SKEWED).max() > 0.02
    np.testing.assert_allclose(Batches(4, 2, SKEWED, replace=True).mean(), SKEWED, rtol=1e-15)


@pytest.mark.parametrize(
    ("n", "size"),
    [(40, 3), pytest.param(40, FEW, marks=pytest.mark.slow), (40, FEW + 4), (40, 40 - 3), (40, 40)],
)
def test_every_sample_is_in_a_subset_equally_often(n, size):
    # All ways of drawing a subset: Floyd's algorithm, its complement, a permutation, everything.
    batches = Batches(n, size)
    weights, indices, _ = (array[0] for array in drawn(batches, steps=4000))
    assert all(len(set(row)) == size for row in indices[:200].tolist())
    np.testing.assert_allclose(np.sort(weights, axis=1)[:, : n - size], 0)
    np.testing.assert_allclose(np.sort(weights, axis=1)[:, n - size :], 1 / size)
    # Inclusion of one, and of two samples, as z-scores.
    member = (weights > 0).astype(float)
    one = size / n
    two = one * (size - 1) / (n - 1)
    if size < n:
        z = (member.mean(axis=0) - one) / math.sqrt(one * (1 - one) / len(member))
        assert np.abs(z).max() < 4.5 and 0.5 < z.var() < 1.7
        pair = np.mean(member[:, :-1] * member[:, 1:], axis=0)
        assert np.abs((pair - two) / math.sqrt(two * (1 - two) / len(member))).max() < 4.5
    np.testing.assert_allclose(batches.second_moment(), np.where(np.eye(n), one, two) / size**2, rtol=1e-13)


def test_sample_weights_of_large_batches_are_those_of_the_draw():
    for batches in (Batches(50, 40, replace=True), Batches(7, 3)):
        weights, indices, members = (array[0] for array in drawn(batches, steps=20))
        expected = np.zeros_like(weights)
        np.add.at(expected, (np.arange(20)[:, None], indices), members)
        np.testing.assert_allclose(weights, expected, atol=1e-15)


@pytest.mark.parametrize(
    ("n", "size"), [(7, 3), *(pytest.param(*law, marks=pytest.mark.slow) for law in ((6, 2), (5, 5), (1, 1)))]
)
def test_an_epoch_visits_every_sample_once(n, size):
    batches = Batches(n, size, shuffle=True)
    per = batches.steps_per_epoch
    assert per == math.ceil(n / size)
    weights, indices, members = drawn(batches, trajectories=3, steps=4 * per)
    np.testing.assert_allclose(members.sum(axis=-1), 1, rtol=1e-14)
    for trajectory in range(3):
        for epoch in range(4):
            steps = slice(epoch * per, (epoch + 1) * per)
            seen = indices[trajectory, steps][members[trajectory, steps] > 0]
            np.testing.assert_array_equal(np.sort(seen), np.arange(n))
            last = n - (per - 1) * size
            sizes = (weights[trajectory, steps] > 0).sum(axis=1)
            np.testing.assert_array_equal(sizes, [size] * (per - 1) + [last])


def test_epochs_are_uniform_and_independent_orders():
    batches = Batches(3, 1, shuffle=True)
    _, indices, _ = drawn(batches, trajectories=40, steps=300)
    orders = indices.reshape(-1, 3)
    number = np.array([sorted(itertools.permutations(range(3))).index(tuple(row)) for row in orders.tolist()])
    assert chisquare(np.bincount(number, minlength=6)).pvalue > LUCK
    pairs = np.bincount(6 * number[:-1:2] + number[1::2], minlength=36)
    assert chisquare(pairs).pvalue > LUCK
    # A batch at a random place of the epoch: the last one of 5 in twos is a single sample.
    support, probability = Batches(5, 2, shuffle=True).support(100)
    assert len(support) == 10 + 5
    assert probability[(support > 0).sum(axis=1) == 1].sum() == pytest.approx(1 / 3)
    np.testing.assert_allclose(probability @ support, 0.2)
    with pytest.raises(ValueError, match="batches of an epoch depend on each other"):
        batches.second_moment()


def test_trajectories_and_seeds_are_independent():
    batches = Batches(4)
    weights, _, _ = drawn(batches, trajectories=2, steps=8000)
    which = weights.argmax(axis=-1)
    assert chisquare(np.bincount(4 * which[0] + which[1], minlength=16)).pvalue > LUCK
    other = drawn(batches, trajectories=1, steps=8000, seed=1)[0].argmax(axis=-1)
    assert chisquare(np.bincount(4 * which[0] + other[0], minlength=16)).pvalue > LUCK


@pytest.mark.slow  # trajectories of stochastic gradient descent are compared by default
@pytest.mark.parametrize(
    "law",
    [
        LAWS["pairs without replacement"],
        LAWS["given, one after another"],
        {"n_samples": 7, "size": 3, "shuffle": True},
    ],
)
def test_a_draw_does_not_depend_on_its_company(law):
    batches = Batches(**law)
    many = drawn(batches, trajectories=5, steps=30)
    few = drawn(batches, trajectories=2, steps=7)
    for wide, narrow in zip(many, few, strict=True):
        np.testing.assert_array_equal(wide[:2, :7], narrow)


def test_laws_are_arguments_of_compiled_programs():
    compiled = []

    @eqx.filter_jit
    def weights(batches, key):
        compiled.append(batches)
        return batches.sample_weights(key, 3)

    with float64():
        for name in ("given with replacement", "given, one after another"):
            batches = Batches(**LAWS[name])
            expected = batches.sample_weights(trajectory_key(0, 1), 3)
            np.testing.assert_array_equal(weights(batches, trajectory_key(0, 1)), expected)
        before = len(compiled)
        weights(Batches(4, 2, SKEWED[::-1]), trajectory_key(0, 1))
        assert len(compiled) == before  # other probabilities, the same program


@pytest.mark.parametrize(
    ("law", "single"),
    [
        ({"n_samples": 1}, True),
        pytest.param({"n_samples": 1, "size": 3, "replace": True}, True, marks=pytest.mark.slow),
        ({"n_samples": 4, "size": 4}, True),
        pytest.param({"n_samples": 4, "size": 4, "probabilities": SKEWED}, True, marks=pytest.mark.slow),
        ({"n_samples": 4, "size": 4, "shuffle": True}, True),
        ({"n_samples": 3, "size": 2, "probabilities": [0, 1, 0], "replace": True}, True),
        pytest.param({"n_samples": 4, "size": 4, "replace": True}, False, marks=pytest.mark.slow),
        pytest.param({"n_samples": 4, "size": 3}, False, marks=pytest.mark.slow),
        ({"n_samples": 2, "probabilities": [0.5, 0.5]}, False),
    ],
)
def test_when_there_is_only_one_batch(law, single):
    batches = Batches(**law)
    assert batches.is_deterministic is single
    support, probability = batches.support(100)
    assert (len(support) == 1) is single
    weights = drawn(batches, steps=25)[0][0]
    if single:
        assert probability[0] == pytest.approx(1)
        np.testing.assert_allclose(weights, np.broadcast_to(support[0], weights.shape), rtol=1e-14)
    else:
        assert len(np.unique(weights, axis=0)) > 1


def test_support_is_none_beyond_the_limit():
    for law in LAWS.values():
        batches = Batches(**law)
        number = len(batches.support(1000)[0])
        assert len(batches.support(1000)[1]) == number
        assert batches.support(1) is None
    assert Batches(60, 30).support(10**6) is None
    assert Batches(60, 30).second_moment().shape == (60, 60)


def test_equal_probabilities_are_uniform():
    assert Batches(3, 2, [1 / 3, 1 / 3, 1 / 3]).probabilities is None
    assert Batches(3, 1, [1 / 3, 1 / 3, 1 / 3], shuffle=True).shuffle


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"n_samples": 3, "size": 4}, "larger than the number of samples, 3"),
        ({"n_samples": 3, "size": 0}, "batch_size must be a positive integer"),
        ({"n_samples": 3, "size": -1}, "batch_size must be a positive integer"),
        ({"n_samples": 3, "size": 1.0}, "batch_size must be a positive integer"),
        ({"n_samples": 3, "size": True}, "batch_size must be a positive integer"),
        ({"n_samples": 3, "size": None}, "batch_size must be a positive integer"),
        ({"n_samples": 3, "probabilities": [0.5, 0.5]}, r"shape \(2,\), expected \(3,\)"),
        ({"n_samples": 2, "probabilities": [0.5, 0.6]}, "sum to 1; their sum is 1.1"),
        ({"n_samples": 2, "probabilities": [1.5, -0.5]}, "non-negative and sum to 1"),
        ({"n_samples": 2, "probabilities": [np.nan, 1.0]}, "non-negative and sum to 1"),
        (
            {"n_samples": 3, "size": 2, "probabilities": [0.0, 1.0, 0.0]},
            "only 1 samples have a positive",
        ),
        ({"n_samples": 3, "shuffle": True, "replace": True}, "visits every sample once"),
        ({"n_samples": 2, "shuffle": True, "probabilities": [0.4, 0.6]}, "visits every sample once"),
        ({"n_samples": 3, "replace": "yes"}, "replace must be True or False"),
        ({"n_samples": 3, "shuffle": 1}, "shuffle must be True or False"),
    ],
)
def test_bad_laws(law, message):
    with pytest.raises(ValueError, match=message):
        Batches(**law)


def test_too_many_batches_to_sum_over():
    p = np.arange(1.0, 61) / np.arange(1.0, 61).sum()
    with pytest.raises(ValueError, match="too many to sum over: take replace=True"):
        Batches(60, 30, p).second_moment()
    assert Batches(60, 30, p, replace=True).second_moment().shape == (60, 60)

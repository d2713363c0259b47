"""Standard errors of time averages: independent, correlated and telescoping series."""

import numpy as np
import pytest
from scipy.signal import lfilter

from gdmap.engines.long_run import long_run


@pytest.mark.parametrize(
    ("series", "steps"),
    [
        (lambda e: e, 40),
        (lambda e: np.diff(np.abs(e) ** 1.5, axis=1, append=1.0), 40),
        (lambda e: lfilter([1], [1, -0.9], e, axis=1), 40),
        (lambda e: lfilter([1], [1, 0.9], e, axis=1), 40),
        (lambda e: np.diff(e, axis=1, append=0.0) + 0.02 * e[:, ::-1], 40),
    ],
    ids=["independent", "telescoping", "positively correlated", "negatively correlated", "between"],
)
@pytest.mark.parametrize("blocks", [64, 256])
def test_errors_of_time_averages(series, steps, blocks):
    noise = np.random.default_rng(5).standard_normal((400, blocks * steps + 1000))
    x = series(noise)[:, 500:-500]
    run = long_run(x.reshape(400, blocks, steps).sum(axis=2), np.full(blocks, steps))
    z = run.mean / run.standard_error
    assert 0.75 < z.var(ddof=1) < 1.35
    assert abs(z.mean()) < 0.25


def test_blocks_shorter_than_the_memory_are_merged():
    x = lfilter([1], [1, -0.97], np.random.default_rng(6).standard_normal((300, 1024 * 16 + 2000)), axis=1)
    run = long_run(x[:, 2000:].reshape(300, 1024, 16).sum(axis=2), np.full(1024, 16))
    assert np.median(run.blocks) < 1024
    assert 0.75 < (run.mean / run.standard_error).var() < 1.35


def test_constant_sums():
    run = long_run(np.array([np.full(64, 0.3), np.zeros(64)]), np.full(64, 10))
    np.testing.assert_allclose(run.mean, [0.03, 0.0])
    assert run.standard_error.max() < 1e-16


def test_a_series_does_not_see_the_others():
    sums = np.random.default_rng(7).standard_normal((5, 256))
    together, alone = long_run(sums, np.ones(256)), long_run(sums[3:4], np.ones(256))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one[3], other[0])

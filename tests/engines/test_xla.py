import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.trace import array_digest, trace_fingerprint
from gdmap.engines.xla import block_size, in_blocks, smallest_period


def test_blocks_cover_every_lane_once():
    seen = in_blocks(lambda lanes: {"twice": 2 * jnp.asarray(lanes[0])}, (np.arange(37.0),), 8)
    np.testing.assert_array_equal(seen["twice"], 2 * np.arange(37.0))


def test_block_size_depends_on_the_lane_alone():
    assert block_size(8) == 256
    assert block_size(2**26) == 2
    assert block_size(2**40) == 1


def test_smallest_period_needs_three_matches():
    with float64():
        cycle = jnp.array([1.0, 2.0, 3.0] * 30)[:67]
        almost = jnp.array([1.0, 2.0, 1.0, 3.0] * 20)[:67]
        newest = jnp.stack([cycle, almost, jnp.arange(67.0)], axis=1)[..., None]
        found = smallest_period(newest, jnp.full(3, 1e-9))
    np.testing.assert_array_equal(found, [3, 4, 0])


def test_fingerprints():
    assert trace_fingerprint(lambda w: w * 2, (3,)) == trace_fingerprint(lambda w: w * 2, (3,))
    assert trace_fingerprint(lambda w: w * 2, (3,)) != trace_fingerprint(lambda w: w * 3, (3,))
    assert array_digest(np.ones(3)) != array_digest(np.ones((3, 1)))

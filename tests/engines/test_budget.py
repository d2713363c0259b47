import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap.engines.budget import BudgetedProgram, bytes_of, widest_block


def wide(x):
    """A program whose temporaries are much larger than its arguments."""
    y = jnp.sin(x[:, :, None] * jnp.arange(1.0, 513.0))
    return jnp.sort(y, axis=2)[:, :, 7].sum(axis=1)


LANE = (jax.ShapeDtypeStruct((4,), np.float64),)
X = np.random.default_rng(0).normal(size=(37, 4))


@pytest.fixture(scope="module")
def program():
    return BudgetedProgram(wide, LANE, 2**30, 16)


def test_no_lane_depends_on_company_or_order(program):
    whole = program((X,))
    assert whole.shape == (37,)
    np.testing.assert_array_equal(program((X[::-1].copy(),)), whole[::-1])
    np.testing.assert_array_equal(program((X[5:6],)), whole[5:6])
    np.testing.assert_allclose(whole, [wide(x[None])[0] for x in X], rtol=1e-5)


def test_blocks_shrink_until_all_that_run_side_by_side_fit(program):
    assert program.block == 16
    smaller = BudgetedProgram(wide, LANE, program.bytes // 3, 16)
    assert smaller.bytes <= program.bytes // 3
    assert smaller.block < 16
    assert smaller.bytes == smaller.threads * bytes_of(smaller.program)
    np.testing.assert_allclose(smaller((X,)), program((X,)), rtol=1e-13)


def test_threads_are_given_up_before_one_lane_is_refused():
    one = bytes_of(BudgetedProgram(wide, LANE, 2**30, 1, threads=1).program)
    alone = BudgetedProgram(wide, LANE, one, 16, threads=8)
    assert (alone.block, alone.threads) == (1, 1)
    with pytest.raises(ValueError, match=rf"needs {one:,} bytes and was given {one - 1:,}"):
        BudgetedProgram(wide, LANE, one - 1, 16, threads=8)


def test_equal_programs_are_compiled_once(program):
    assert BudgetedProgram(wide, LANE, 2**30, 16).program is program.program
    assert BudgetedProgram(wide, LANE, 2**29, 16).program is not program.program


@pytest.mark.parametrize(("dim", "lanes"), [(1, 256), (32, 256), (33, 128), (512, 16), (25_450, 16)])
def test_the_widest_block_is_a_power_of_two_of_the_dimension_alone(dim, lanes):
    assert widest_block(dim) == lanes

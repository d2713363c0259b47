"""What must not change a threshold, or must change it by a known factor."""

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, Optimiser, flip_coefficient, local_threshold, sharpness, spectrum
from tests.minima.losses import TanhNeuron, TwoHidden

Y = 0.5
# A minimum w_2 tanh(w_1) = y that is not the flattest.
MINIMUM = np.array([0.9, Y / np.tanh(0.9)])


def thresholds(objective, theta):
    """Every threshold there is at one minimum."""
    heavy_ball = Optimiser(objective, optax.sgd, learning_rate=0.1, momentum=0.9)
    return np.array(
        [
            local_threshold(objective, theta).value,
            local_threshold(heavy_ball, theta).value,
            flip_coefficient(objective, theta).step_size.value,
            2 / sharpness(objective, theta).value,
        ]
    )


PLAIN = Function(TanhNeuron(Y), 2)


@pytest.fixture(scope="module")
def plain():
    return thresholds(PLAIN, MINIMUM), flip_coefficient(PLAIN, MINIMUM).coefficient.value


@settings(max_examples=3, deadline=None)
@given(st.floats(1e-4, 1e4), st.floats(0, 6.28))
def test_scaling_divides_and_rotation_keeps_every_threshold(plain, factor, angle):
    neuron = TanhNeuron(Y, factor, angle)
    theta = neuron.rotation.T @ MINIMUM
    found = thresholds(Function(neuron, 2), theta)
    np.testing.assert_allclose(found * factor, plain[0], rtol=1e-9)
    # The flip coefficient itself keeps its value under both.
    coefficient = flip_coefficient(Function(neuron, 2), theta).coefficient
    assert coefficient.value == pytest.approx(plain[1], rel=1e-8)


def test_a_permutation_of_hidden_units_keeps_every_spectrum():
    objective = Function(TwoHidden(), 4)
    swapped = Function(TwoHidden((1, 0)), 4)
    theta = np.array([0.7, -1.3, 0.4, 0.9])
    permuted = theta.reshape(2, 2)[:, ::-1].ravel()
    np.testing.assert_allclose(
        spectrum(swapped, permuted).eigenvalue, spectrum(objective, theta).eigenvalue, rtol=1e-12
    )
    assert sharpness(objective, permuted).value == pytest.approx(sharpness(objective, theta).value, rel=1e-12)

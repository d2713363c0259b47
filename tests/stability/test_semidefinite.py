"""Critical step sizes of random filling networks: closed brackets, and a semidefinite program at depth two.

At a global minimum of a network of depth two without a bottleneck (theory 2.4) the non-zero part of the Hessian
has the eigenvalues of ``A (x) Sigma + I (x) B`` with ``A = W_2 W_2^T``, ``B = Sigma^(1/2) W_1^T W_1 Sigma^(1/2)``.
These are the diagonal blocks of a positive semidefinite matrix with the off-diagonal block ``C = W* Sigma^(1/2)``;
conversely every such matrix gives a minimum if the hidden width is large enough. So the smallest sharpness is the
convex problem

    minimise t   subject to   [[A, C], [C^T, B]] >= 0,   A (x) Sigma + I (x) B <= t I,

solved here by an interior-point method that knows nothing of the formula.
"""

import numpy as np
import pytest

from gdmap import LinearNetwork, critical_step_size

cp = pytest.importorskip("cvxpy")

DEPTHS = np.repeat([1, 2, 3, 4], [8, 18, 12, 12])


def random_filling_network(seed):
    """Widths 1 to 6, no hidden layer narrower than both ends, a covariance of condition number up to 1e4."""
    rng = np.random.default_rng([3, seed])
    depth = int(DEPTHS[seed])
    first, last = (int(width) for width in rng.integers(1, 7, 2))
    hidden = [int(width) for width in rng.integers(min(first, last), 7, depth - 1)]
    samples = 30
    orthonormal = np.linalg.qr(rng.normal(size=(samples, first)))[0] * np.sqrt(samples)
    rotation = np.linalg.qr(rng.normal(size=(first, first)))[0]
    condition = 10 ** rng.uniform(0, 4)
    spectrum = condition ** rng.uniform(-1, 0, first)
    spectrum[0] = 1.0
    if first > 1:
        spectrum[-1] = 1 / condition
    inputs = 10 ** rng.uniform(-1, 1) * orthonormal * np.sqrt(spectrum) @ rotation.T
    targets = inputs @ rng.normal(size=(first, last)) + rng.normal(size=(samples, last))
    return LinearNetwork((first, *hidden, last), inputs, targets)


def smallest_sharpness(inputs, targets):
    """The optimum of the program from the raw data, computed in units in which ``Sigma`` and ``C`` have norm 1."""
    values, vectors = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    least_squares = np.linalg.lstsq(inputs, targets, rcond=None)[0].T
    C = least_squares @ vectors * np.sqrt(values)  # in the eigenbasis of Sigma
    size, scale = np.linalg.norm(C, 2), values[-1]
    last, first = C.shape
    A, B = cp.Variable((last, last), symmetric=True), cp.Variable((first, first), symmetric=True)
    t = cp.Variable()
    hessian = cp.kron(A, np.diag(values / scale)) + cp.kron(np.eye(last), B)
    constraints = [cp.bmat([[A, C / size], [C.T / size, B]]) >> 0, t * np.eye(first * last) - hessian >> 0]
    program = cp.Problem(cp.Minimize(t), constraints)
    program.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert program.status == "optimal"
    # The unit of A is size / scale^(1/2), that of B size scale^(1/2): so A (x) Sigma and B have the same.
    return size * np.sqrt(scale) * program.value


# All fifty with the slow tests, by default every fourth one: most of the time goes into compiling for new widths.
SEEDS = [pytest.param(seed, marks=pytest.mark.slow) if seed % 4 else seed for seed in range(len(DEPTHS))]
OF_DEPTH_TWO = [seed for seed, depth in zip(SEEDS, DEPTHS, strict=True) if depth == 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bracket_closes(seed):
    network = random_filling_network(seed)
    critical = critical_step_size(network)
    assert critical.step_size.status == "computed"
    assert critical.step_size.relative_width <= 1e-10
    assert critical.min_sharpness.relative_width <= 1e-10


@pytest.mark.parametrize("seed", OF_DEPTH_TWO)
def test_depth_two_agrees_with_the_semidefinite_program(seed):
    network = random_filling_network(seed)
    expected = smallest_sharpness(network.samples.inputs, network.samples.targets)
    assert critical_step_size(network).min_sharpness.value == pytest.approx(expected, rel=1e-8)

"""Stochastic gradient descent: at every step the gradient of a random mini-batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point, float64, is_traced
from gdmap.maps.base import RandomMap, checked_time
from gdmap.maps.batches import Batches, trajectory_key
from gdmap.maps.gradient_descent import GradientDescent, checked_step_size
from gdmap.objectives import AbstractObjective
from gdmap.objectives.samples import SampleLosses


class StochasticGradientDescent(RandomMap):
    """The random map ``G(theta) = theta - eta (1/B) sum_{i in batch} grad l_i(theta)``; the state is ``theta``.

    The batch of a step is a function of ``(seed, trajectory, step)`` alone (counter-based generator). Sources:
    Chemnitz & Engel, JMLR 26(134), 2025; arXiv:2510.24466.

    Parameters
    ----------
    objective
        A loss that is a mean over samples: ``Objective(loss, params, data=...)``, or a `LinearNetwork` of samples.
    step_size
        ``eta``, positive and finite.
    batch_size
        ``B``.
    probabilities
        Of picking each sample, shape ``(n_samples,)``; by default the objective's own weights (uniform unless it
        was `weighted`). The gradients of a batch are averaged as they are, so with replacement the mean step is
        gradient descent on ``objective.weighted(probabilities)``. Without replacement and ``B > 1``, samples of
        different probabilities are drawn one after another among those left.
    replace
        Whether a batch can hold a sample more than once.
    shuffle
        Random reshuffling: each epoch is a random order of the samples, cut into batches (the last may be
        smaller).

    Raises
    ------
    TypeError, ValueError
        For an objective without samples, a step size that is not positive, a batch larger than the data,
        probabilities that are no distribution.
    """

    objective: AbstractObjective
    step_size: Any
    batches: Batches
    sample_losses: SampleLosses

    def __init__(
        self,
        objective: AbstractObjective,
        step_size: Any,
        batch_size: int = 1,
        probabilities: Any = None,
        replace: bool = False,
        shuffle: bool = False,
    ) -> None:
        self.sample_losses = losses_of_samples(objective)
        self.objective = objective
        self.step_size = step_size if is_traced(step_size) else np.asarray(checked_step_size(step_size))
        self.batches = batches_of(objective, batch_size, probabilities, replace, shuffle)

    def step(self, state: Any, batch: Any) -> Any:
        """The next state, shape ``(dim,)``, after a step on the samples ``batch`` (integers; any number of them).

        A sample that is listed twice counts twice, as in a batch drawn with replacement.
        """
        return self._step(state, checked_batch(batch, self.batches.n_samples))

    def batch(self, seed: int, trajectory: int, step: int) -> np.ndarray:
        """The samples of one step of one trajectory, integers of shape ``(B,)``."""
        for name, number in (("seed", seed), ("trajectory", trajectory), ("step", step)):
            checked_counter(number, name)
        with float64():
            indices, weights = self.batches.draw(trajectory_key(seed, trajectory), step)
            return np.asarray(indices)[np.asarray(weights) > 0]

    def jacobian(self, state: Any, batch: Any) -> Any:
        """``I - eta (1/B) sum_{i in batch} Hess l_i(theta)``, shape ``(dim, dim)``, symmetric."""
        return self._jacobian(state, checked_batch(batch, self.batches.n_samples))

    def slogdet(self, state: Any, batch: Any) -> Any:
        """Sign and logarithm of the modulus of the determinant of the Jacobian of one batch."""
        sign, logarithm = np.linalg.slogdet(np.asarray(self.jacobian(state, batch)))
        return sign, logarithm

    @property
    def mean_map(self) -> GradientDescent:
        """Gradient descent on the mean of the batch losses: ``E[G(theta)]``."""
        mean = self.batches.mean()
        own = getattr(self.objective, "probabilities", None)
        weights = np.full(len(mean), 1 / len(mean)) if own is None else np.asarray(own)
        same = np.allclose(weights, mean, rtol=1e-12, atol=0)
        objective: Any = self.objective
        return GradientDescent(objective if same else objective.weighted(mean), self.step_size)

    def random_update(self, state: Any, key: Any, step: Any) -> Any:
        """One step on the batch that the trajectory with this key (`trajectory_key`) draws at ``step``."""
        return self.batch_update(state, *self.batches.draw(key, step))

    def batch_update(self, state: Any, indices: Any, weights: Any) -> Any:
        """One step on the weighted samples of a batch, traceable."""
        gradient = jax.grad(self.sample_losses.batch_value)(state, indices, weights)
        return state - jnp.asarray(self.step_size, state.dtype) * gradient

    @entry_point
    def _step(self, state: Any, batch: Any) -> Any:
        return self.batch_update(self.checked(state), *_equal_weights(batch))

    @entry_point
    def _jacobian(self, state: Any, batch: Any) -> Any:
        indices, weights = _equal_weights(batch)
        gradient = jax.grad(self.sample_losses.batch_value)
        hessian = jax.jacfwd(lambda theta: gradient(theta, indices, weights))(self.checked(state))
        step_size = jnp.asarray(self.step_size, state.dtype)
        return jnp.eye(self.state_dim, dtype=state.dtype) - step_size * (hessian + hessian.T) / 2

    def __repr__(self) -> str:
        shown = self.step_size if is_traced(self.step_size) else float(self.step_size)
        law = f", {describe_law(self.batches)}"
        return f"StochasticGradientDescent({type(self.objective).__name__}, step_size={shown}{law})"


def _equal_weights(batch: Any) -> tuple[Any, Any]:
    return jnp.asarray(batch, jnp.int32), jnp.full(len(batch), 1 / len(batch))


def describe_law(batches: Batches) -> str:
    """The law of the batches in words."""
    words = [f"batch_size={batches.size}"]
    if batches.probabilities is not None:
        words.append("given probabilities")
    if batches.shuffle:
        words.append("shuffled epochs")
    elif batches.size > 1:
        words.append("with replacement" if batches.replace else "without replacement")
    return ", ".join(words)


def losses_of_samples(objective: Any) -> SampleLosses:
    """The sample losses of an objective, or an error that says what has them."""
    if not isinstance(objective, AbstractObjective):
        raise TypeError(
            f"objective must be a gdmap objective such as Objective(loss, params, data), got {objective!r}"
        )
    if not hasattr(type(objective), "sample_losses"):
        raise TypeError(
            f"{type(objective).__name__} has no samples, so there are no mini-batches: "
            "gdmap.Objective(loss, params, data=(x, y)) has"
        )
    with_samples: Any = objective
    losses: SampleLosses = with_samples.sample_losses
    return losses


def batches_of(
    objective: Any, batch_size: int = 1, probabilities: Any = None, replace: bool = False, shuffle: bool = False
) -> Batches:
    """The law of the batches of an objective's samples; its own weights unless probabilities are given."""
    n = losses_of_samples(objective).n_samples
    if probabilities is None:
        probabilities = getattr(objective, "probabilities", None)
    return Batches(n, batch_size, probabilities, replace, shuffle)


def checked_batch(batch: Any, n_samples: int) -> Any:
    """Sample numbers as a floating vector (what entry points take), or an error if they are none."""
    if is_traced(batch):
        return batch
    numbers = np.asarray(batch)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise ValueError(f"batch must be a list of sample numbers, at least one, got {batch!r}")
    if numbers.min() < 0 or numbers.max() >= n_samples:
        raise ValueError(f"batch must hold sample numbers from 0 to {n_samples - 1}, got {numbers.tolist()}")
    return numbers.astype(np.float64)


def checked_counter(number: Any, name: str) -> None:
    """Refuse what is no counter from 0 to 2^31 - 2."""
    try:
        checked_time(number)
    except ValueError:
        raise ValueError(f"{name} must be an integer from 0 to 2^31 - 2, got {number!r}") from None

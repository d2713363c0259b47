"""The losses of single samples, whose weighted mean is the objective: what stochastic gradient descent sees."""

import abc
from typing import Any

import equinox as eqx


class SampleLosses(eqx.Module):
    """The losses ``l_i(theta)`` of the samples ``i`` of one objective, traceable in ``theta`` and in ``i``.

    Made by ``objective.sample_losses``. The data are traced arrays, so objectives of one shape share compilations.
    """

    @property
    @abc.abstractmethod
    def n_samples(self) -> int:
        """The number of samples ``n``."""

    @abc.abstractmethod
    def values(self, theta: Any, indices: Any) -> Any:
        """``l_i(theta)`` of the samples ``indices``, shape ``(b,)``; only these are evaluated."""

    def value(self, theta: Any, index: Any) -> Any:
        """``l_index(theta)``, a scalar."""
        return self.values(theta, index[None])[0]

    def batch_value(self, theta: Any, indices: Any, weights: Any) -> Any:
        """``sum_b weights_b l_{indices_b}(theta)``, a scalar."""
        return weights.astype(theta.dtype) @ self.values(theta, indices)

"""The law of the mini-batches of stochastic gradient descent, deterministic given seed, trajectory and step."""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.objectives.objective import checked_probabilities

# Up to this size a batch without replacement is drawn by Floyd's algorithm, beyond by a random permutation.
FEW = 16
# Successive sampling has no closed second moment; up to this many batches it is summed.
MOST_SUMMED = 2**17


class Batch(NamedTuple):
    """A batch: the ``indices`` of its samples, shape ``(size,)``, and their ``weights``, which sum to 1.

    Where a batch has fewer members (the last of an epoch) it is filled up with members of weight 0.
    """

    indices: Any
    weights: Any


class Batches(eqx.Module):
    """The law of the batches; the weights of a batch are ``1/B`` for each time a sample is drawn.

    Parameters
    ----------
    n_samples
        ``n``.
    size
        ``B``, from 1 to ``n`` (any positive number with ``replace``).
    probabilities
        Of picking each sample in a draw; ``None``: uniform. Without replacement and ``B > 1`` the samples are
        drawn one after another, each with probability proportional to ``p_i`` among those left (successive
        sampling); then the mean of the weights is not ``p``.
    replace
        Whether a sample can be drawn more than once for one batch.
    shuffle
        Epochs: the samples in random order, cut into batches of ``B`` (the last one may be smaller). Uniform.

    Raises
    ------
    ValueError
        For a size beyond the number of samples, probabilities that are no distribution, or a combination that
        makes no sense.
    """

    n_samples: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    replace: bool = eqx.field(static=True)
    shuffle: bool = eqx.field(static=True)
    probabilities: np.ndarray | None

    def __init__(
        self,
        n_samples: int,
        size: int = 1,
        probabilities: Any = None,
        replace: bool = False,
        shuffle: bool = False,
    ) -> None:
        self.n_samples = int(n_samples)
        for name, flag in (("replace", replace), ("shuffle", shuffle)):
            if not isinstance(flag, (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        self.replace, self.shuffle = bool(replace), bool(shuffle)
        self.size = checked_size(size, self.n_samples, self.replace)
        self.probabilities = None
        if probabilities is not None:
            p = checked_probabilities(probabilities, self.n_samples)
            p = p / p.sum()
            if np.ptp(p) > 1e-14 / self.n_samples:
                self.probabilities = p
        if self.shuffle and (self.replace or self.probabilities is not None):
            raise ValueError(
                "an epoch visits every sample once: shuffle=True goes without replace=True and without "
                "probabilities that differ (the objective's own weights included)"
            )
        possible = self.n_samples if self.probabilities is None else int(np.count_nonzero(self.probabilities))
        if self.is_successive and possible < self.size:
            raise ValueError(
                f"only {possible} samples have a positive probability, too few for a "
                f"batch of {self.size} without replacement: make the batch smaller, or take replace=True"
            )

    @property
    def is_successive(self) -> bool:
        """Whether samples of different probabilities are drawn one after another without replacement."""
        return self.probabilities is not None and not self.replace and self.size > 1

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches it takes to see ``n`` samples."""
        return -(-self.n_samples // self.size)

    @property
    def is_deterministic(self) -> bool:
        """Whether there is only one possible batch."""
        possible = self.n_samples if self.probabilities is None else int(np.count_nonzero(self.probabilities))
        return possible == 1 or (self.size == possible and not self.replace)

    # One batch ---------------------------------------------------------------------------------------------------

    def draw(self, key: Any, step: Any) -> Batch:
        """The batch of one step of the trajectory with this key (`trajectory_key`), traceable."""
        n, size = self.n_samples, self.size
        if self.shuffle:
            return self._batch_of_epoch(key, step)
        weights = jnp.full(size, 1 / size)
        if self.probabilities is None and self.is_deterministic:
            return Batch(jnp.arange(size, dtype=jnp.int32) % n, weights)
        key = jax.random.fold_in(key, step)
        if self.probabilities is not None:
            indices = _with_probabilities(key, jnp.asarray(self.probabilities), size, self.replace or size == 1)
        elif self.replace:
            indices = _below(jax.random.bits(key, (size,), jnp.uint32), jnp.full(size, n, jnp.uint32))
        else:
            indices = _subset(key, n, size)
        return Batch(indices.astype(jnp.int32), weights)

    def sample_weights(self, key: Any, step: Any) -> Any:
        """The same batch as a vector of weights of all samples, shape ``(n,)``, traceable."""
        indices, weights = self.draw(key, step)
        if self.size <= 2 * FEW:
            hits = indices[:, None] == jnp.arange(self.n_samples, dtype=indices.dtype)
            return jnp.sum(jnp.where(hits, weights[:, None], 0.0), axis=0)
        return jnp.zeros(self.n_samples).at[indices].add(weights)

    def _batch_of_epoch(self, key: Any, step: Any) -> Batch:
        n, size = self.n_samples, self.size
        epoch, position = step // self.steps_per_epoch, step % self.steps_per_epoch
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)
        places = position * size + jnp.arange(size)
        members = places < n
        return Batch(order[jnp.where(members, places, 0)], members / jnp.sum(members))

    # The law -----------------------------------------------------------------------------------------------------

    def mean(self) -> np.ndarray:
        """``E[w]``, the mean weights of the samples, shape ``(n,)``."""
        if self.is_successive:
            return self._summed(lambda weights, p: p @ weights)
        if self.probabilities is not None:
            return np.array(self.probabilities)
        return np.full(self.n_samples, 1 / self.n_samples)

    def second_moment(self) -> np.ndarray:
        """``E[w w^T]``, shape ``(n, n)``.

        Raises
        ------
        ValueError
            For epochs, whose batches are not independent; and for successive sampling from more batches than can
            be summed.
        """
        n, size = self.n_samples, self.size
        if self.shuffle:
            raise ValueError(
                "the batches of an epoch depend on each other, so their second moment does not decide stability "
                "in mean square: use shuffle=False (or estimate the exponent, which knows epochs)"
            )
        if self.is_successive:
            return self._summed(lambda weights, p: (weights.T * p) @ weights)
        if self.replace or self.probabilities is not None:
            p = self.mean()
            return (np.diag(p) + (size - 1) * np.outer(p, p)) / size
        pairs = (size - 1) / (size * n * (n - 1)) if n > 1 else 1.0
        moment = np.full((n, n), pairs)
        np.fill_diagonal(moment, 1 / (n * size))
        return moment

    def _summed(self, functional: Any) -> np.ndarray:
        support = self.support(MOST_SUMMED)
        if support is None:
            raise ValueError(
                f"batches of {self.size} from {self.n_samples} samples of different probabilities without "
                "replacement are too many to sum over: take replace=True, or a smaller batch"
            )
        return np.asarray(functional(*support))

    def support(self, limit: int) -> tuple[np.ndarray, np.ndarray] | None:
        """All possible batches as weights ``(K, n)``, with probabilities ``(K,)``; ``None`` if over ``limit``.

        For epochs: the law of one batch at a random place of the epoch.
        """
        n, size = self.n_samples, self.size
        p = self.mean() if not self.is_successive else np.asarray(self.probabilities)
        possible = np.flatnonzero(p)
        if self.replace or size == 1:
            if math.comb(len(possible) + size - 1, size) > limit:
                return None
            weights = dense_weights(itertools.combinations_with_replacement(possible.tolist(), size), n)
            counts = np.rint(weights * size)
            log_p = np.log(np.where(p > 0, p, 1.0))
            orders = math.lgamma(size + 1) - np.vectorize(math.lgamma)(counts + 1).sum(axis=1)
            return weights, np.exp(orders + counts @ log_p)
        if self.is_successive:
            return self._successive_support(possible, limit)
        parts = [(size, 1.0)]
        if self.shuffle and n % size:
            parts = [(size, (n // size) / self.steps_per_epoch), (n % size, 1 / self.steps_per_epoch)]
        if sum(math.comb(n, members) for members, _ in parts) > limit:
            return None
        found = [dense_weights(itertools.combinations(range(n), members), n) for members, _ in parts]
        shares = [
            np.full(len(weights), share / len(weights)) for weights, (_, share) in zip(found, parts, strict=True)
        ]
        return np.concatenate(found), np.concatenate(shares)

    def _successive_support(self, possible: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray] | None:
        if sum(math.comb(len(possible), members) for members in range(1, self.size + 1)) > limit:
            return None
        p = np.asarray(self.probabilities)
        chance: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(self.size):
            longer: dict[tuple[int, ...], float] = {}
            for batch, probability in chance.items():
                left = math.fsum(p[i] for i in possible if i not in batch)
                for i in possible:
                    if i not in batch:
                        grown = tuple(sorted((*batch, int(i))))
                        longer[grown] = longer.get(grown, 0.0) + probability * p[i] / left
            chance = longer
        return dense_weights(chance, self.n_samples), np.array(list(chance.values()))


def trajectory_key(seed: Any, trajectory: Any) -> Any:
    """The key of all randomness of one trajectory: a function of the seed and its number alone, traceable."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), trajectory)


def dense_weights(batches: Iterable[tuple[int, ...]], n_samples: int) -> np.ndarray:
    """The weights of batches given as tuples of sample numbers, shape ``(batches, n)``."""
    members = np.array(list(batches), dtype=np.int64)
    weights = np.zeros((len(members), n_samples))
    np.add.at(weights, (np.arange(len(members))[:, None], members), 1 / members.shape[1])
    return weights


def checked_size(size: Any, n_samples: int, replace: bool) -> int:
    """The batch size as an integer, or an error that says which ones there are."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {size!r}")
    if size > n_samples and not replace:
        raise ValueError(
            f"batch_size {size} is larger than the number of samples, {n_samples}: a batch without replacement "
            "has at most all of them (replace=True draws with replacement)"
        )
    return int(size)


def _below(bits: Any, limits: Any) -> Any:
    """Uniform integers below each limit from 32 random bits, by multiplication (bias below limit / 2^32)."""
    return (bits.astype(jnp.uint64) * limits.astype(jnp.uint64)) >> 32


def _with_probabilities(key: Any, p: Any, size: int, replace: bool) -> Any:
    if replace:
        reached = jnp.cumsum(p)
        u = jax.random.uniform(key, (size,), jnp.float64) * reached[-1]
        method = "compare_all" if len(p) <= 256 else "scan"
        return jnp.minimum(jnp.searchsorted(reached, u, side="right", method=method), len(p) - 1)
    # Exponential clocks: the first to ring are drawn one after another in proportion to their rates.
    clocks = jax.random.exponential(key, p.shape, jnp.float64) / p
    return jax.lax.top_k(-clocks, size)[1]


def _subset(key: Any, n: int, size: int) -> Any:
    """A uniformly distributed subset of ``size`` of the numbers below ``n``."""
    if size <= FEW:
        return _few_of(key, n, size)
    if n - size <= FEW:
        left_out = _few_of(key, n, n - size)
        kept = jnp.all(jnp.arange(n)[:, None] != left_out, axis=1)
        return jnp.nonzero(kept, size=size)[0]
    return jax.random.permutation(key, n)[:size]


def _few_of(key: Any, n: int, size: int) -> Any:
    """Floyd's algorithm: for ``j = n - size, ..., n - 1`` a number up to ``j``, or ``j`` itself if it is taken."""
    tops = jnp.arange(n - size, n, dtype=jnp.uint64)
    candidates = _below(jax.random.bits(key, (size,), jnp.uint32), tops + 1)
    chosen: list[Any] = []
    for top, candidate in zip(tops, candidates, strict=True):
        taken = jnp.zeros((), bool)
        for other in chosen:
            taken = taken | (other == candidate)
        chosen.append(jnp.where(taken, top, candidate))
    return jnp.stack(chosen)

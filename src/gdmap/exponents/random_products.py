"""Lyapunov exponents of products of random matrices, from independent replicas followed with QR."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.stats import t as student_t

from gdmap.engines.frames import orthonormalise
from gdmap.engines.precision import float64, for_tracing
from gdmap.maps.batches import Batches, trajectory_key
from gdmap.spectra.extreme import checked_count

EPS = float(np.finfo(np.float64).eps)
# A block of replicas stays in the second-level cache.
FRAME_BYTES, MOST_REPLICAS = 2**19, 256
# Frames are orthonormalised at the latest after so many steps, or growth by this factor, or when they are as flat
# as FLAT; a stretch that left one flatter than COLLAPSED is made again, orthonormalised after every step.
LONGEST_STRETCH, LARGEST_GROWTH = 64, 1e80
FLAT, COLLAPSED = 1e-6, 1e-10
PILOT_STEPS = 64
GUARDED, UNGUARDED = np.ones((), bool), np.zeros((), bool)
# No run is so long: the step whose matrices are drawn for their determinants alone.
DETERMINANT = 0xFFFFFFFF

HISTORY = 32
LONGEST_BOUND = 256
BOUND_ENTRIES = 2**20
DETERMINANTS = 2**16
# A drift beyond so many standard errors is taken to be one. Two exponents less than so many standard deviations of
# a replica apart may be equal: the larger and the smaller of two normal variables differ by 1.3 of their
# deviations.
DRIFT, RESOLVED = 4.0, 2.0
# Two exponents are mixed no more when their gap times the number of steps is this.
MIXED = 8.0
ROUNDING = 1e-9


# Laws ------------------------------------------------------------------------------------------------------------


class MatrixLaw(eqx.Module):
    """The law of the factors of a random product: independent replicas, one random matrix per step and replica.

    Attributes
    ----------
    dim
        Of the vectors the matrices act on.
    """

    dim: eqx.AbstractVar[int]

    @property
    def is_complex(self) -> bool:
        """Whether the matrices are complex."""
        return False

    @abstractmethod
    def apply(self, keys: Any, step: Any, frames: Any) -> Any:
        """Multiply every vector by its replica's matrix of this step, traceable.

        Parameters
        ----------
        keys
            One key per replica (`trajectory_key`), shape ``(replicas,)``. The matrix is a function of the key and
            the step alone.
        step
            Integer, from 0.
        frames
            Shape ``(replicas, k, dim)``: each row ``frames[r, j]`` is a vector.
        """


class SampledMatrices(MatrixLaw):
    """Independent matrices ``sample_matrix(key)``."""

    sample_matrix: Callable[[Any], Any]
    dim: int = eqx.field(static=True)
    complex_entries: bool = eqx.field(static=True, default=False)

    @property
    def is_complex(self) -> bool:
        return self.complex_entries

    def matrix(self, key: Any, step: Any) -> Any:
        """The matrix of one step of the replica with this key."""
        dtype = jnp.complex128 if self.complex_entries else jnp.float64
        return jnp.asarray(self.sample_matrix(jax.random.fold_in(key, step)), dtype)

    def apply(self, keys: Any, step: Any, frames: Any) -> Any:
        matrices = jax.vmap(self.matrix, (0, None))(keys, step)
        return jnp.einsum("rij,rkj->rki", matrices, frames)


class BatchProducts(MatrixLaw):
    """SGD linearised on the normal space: ``I - eta sum_a w_{sample_a} signs_a f_a f_a^T``, ``w`` the weights.

    Step sizes share a compilation, and the same key gives the same batches whatever the step size.

    Parameters
    ----------
    factors
        The rows ``f_a``, shape ``(m, dim)``, float64.
    signs
        ``+1`` or ``-1`` for each row, shape ``(m,)``.
    sample
        The sample each row belongs to, shape ``(m,)``, integers below ``batches.n_samples``.
    batches
        The law of the batches.
    step_size
        ``eta``.
    gathered
        Whether the rows of each batch are gathered, instead of all rows being multiplied (with the weight 0 where
        they are not in the batch); chosen by cost if not given. The results differ by rounding.
    """

    dim: int = eqx.field(static=True)
    gathered: bool = eqx.field(static=True)
    factors: Any
    signs: Any
    sample: Any
    batches: Batches
    step_size: Any

    def __init__(
        self,
        factors: Any,
        signs: Any,
        sample: Any,
        batches: Batches,
        step_size: Any,
        gathered: bool | None = None,
    ) -> None:
        factors = np.asarray(factors, np.float64)
        signs, sample = np.asarray(signs, np.float64), np.asarray(sample)
        if (
            factors.ndim != 2
            or factors.size == 0
            or signs.shape != sample.shape
            or signs.shape != factors.shape[:1]
        ):
            raise ValueError(
                "factors, signs and sample must have shapes (m, dim), (m,) and (m,) with m, dim >= 1, got "
                f"{factors.shape}, {signs.shape} and {sample.shape}"
            )
        if not np.issubdtype(sample.dtype, np.integer) or sample.min() < 0 or sample.max() >= batches.n_samples:
            raise ValueError(f"sample must hold integers from 0 to {batches.n_samples - 1}")
        rows = np.bincount(sample, minlength=batches.n_samples)
        self.dim = factors.shape[1]
        # Measured: a gathered row costs about twice as much as one in a product with a matrix all replicas share.
        cheaper = 2 * batches.size * rows.max() <= len(sample)
        self.gathered = bool(cheaper if gathered is None else gathered)
        self.batches = batches
        self.step_size = step_size if isinstance(step_size, jax.Array) else np.float64(step_size)
        if self.gathered:
            order = np.argsort(sample, kind="stable")
            place = np.arange(len(sample)) - (np.cumsum(rows) - rows)[sample[order]]
            table = np.zeros((batches.n_samples, rows.max(), self.dim))
            table[sample[order], place] = factors[order]
            sign_table = np.zeros(table.shape[:2])
            sign_table[sample[order], place] = signs[order]
            self.factors, self.signs, self.sample = table, sign_table, None
        else:
            self.factors, self.signs, self.sample = factors, signs, sample.astype(np.int32)

    def apply(self, keys: Any, step: Any, frames: Any) -> Any:
        if self.gathered:
            indices, weights = jax.vmap(self.batches.draw, (0, None))(keys, step)
            replicas = len(indices)
            rows = jnp.asarray(self.factors)[indices].reshape(replicas, -1, self.dim)
            scale = weights[:, :, None] * jnp.asarray(self.signs)[indices]
            scale = self.step_size * scale.reshape(replicas, -1)
            inner = jnp.einsum("rkd,rad->rka", frames, rows) * scale[:, None, :]
            return frames - jnp.einsum("rka,rad->rkd", inner, rows)
        weights = jax.vmap(self.batches.sample_weights, (0, None))(keys, step)
        scale = self.step_size * weights[:, self.sample] * self.signs
        inner = jnp.einsum("rkd,ad->rka", frames, self.factors) * scale[:, None, :]
        return frames - jnp.einsum("rka,ad->rkd", inner, self.factors)


# The engine ------------------------------------------------------------------------------------------------------


class Replicas(NamedTuple):
    """Independent replicas of a random product, each with ``k`` orthonormal vectors; `advance` continues them.

    ``frames`` are whole blocks of replicas, shape ``(blocks, block, k, dim)``; vectors of a replica that were
    annihilated are zero and come last. ``first`` is the number of the first replica, ``replicas`` how many there
    are, ``step`` the number of matrices multiplied so far; they are orthonormalised after ``stretch`` steps.
    """

    frames: np.ndarray
    seed: int
    first: int
    replicas: int
    step: int
    stretch: int

    @property
    def k(self) -> int:
        """The number of vectors of each replica."""
        return int(self.frames.shape[2])


def begin(
    law: MatrixLaw,
    replicas: int,
    k: int = 1,
    seed: int = 0,
    *,
    first: int = 0,
    vectors: Any = None,
    stretch: int | None = None,
) -> Replicas:
    """Replicas ``first, ..., first + replicas - 1`` of the product before the first step.

    Replica ``i`` is a function of ``(seed, i)`` alone, and its leading vectors do not depend on ``k``.

    Parameters
    ----------
    law
        Of the matrices.
    replicas, k
        How many replicas, and leading exponents of each.
    seed
        Of the matrices and of the random vectors they are first applied to.
    first
        The number of the first replica.
    vectors
        Other vectors to begin with, shape ``(replicas, k, dim)``; they are orthonormalised.
    stretch
        After how many steps to orthonormalise; found by a pilot run on the first replicas if not given.
    """
    block = block_size(law, k)
    numbers = np.arange(first // block, -(-(first + replicas) // block))
    with float64():
        if vectors is None:
            frames = np.stack([np.asarray(_start(law, seed, b * block + np.arange(block), k)) for b in numbers])
        else:
            given = np.asarray(vectors, np.complex128 if law.is_complex else np.float64)
            if given.shape != (replicas, k, law.dim):
                raise ValueError(f"vectors must have shape {(replicas, k, law.dim)}, got {given.shape}")
            # Replicas of a block beyond those asked for get copies.
            rows = np.arange(numbers[0] * block, (numbers[-1] + 1) * block) - first
            padded = given[np.clip(rows, 0, replicas - 1)].reshape(len(numbers), block, k, law.dim)
            frames = np.stack([np.asarray(_orthonormal(one)) for one in padded])
    state = Replicas(frames, seed, first, replicas, 0, stretch or 1)
    return state if stretch else state._replace(stretch=stretch_of(law, k, seed))


def advance(
    law: MatrixLaw,
    state: Replicas,
    steps: int,
    parts: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Replicas, np.ndarray]:
    """Multiply by the matrices of the next ``steps`` steps.

    Returns the replicas after them and the logarithmic growth of each vector of the frames (the logarithms of the
    diagonal of R, summed) in each of ``parts`` parts of nearly equal length (`part_lengths`), shape ``(replicas,
    parts, k)``. The growth of what is annihilated is ``-inf``. A run that is continued is the same run up to
    rounding, bit by bit where the pieces end at multiples of ``stretch``.

    Raises
    ------
    ValueError
        If a matrix is not finite.
    """
    law = for_tracing(law)
    block, k = state.frames.shape[1:3]
    lengths = part_lengths(steps, parts)
    growth = np.empty((len(state.frames), parts, block, k))
    frames = np.empty_like(state.frames)
    with float64():
        for b, begun in enumerate(state.frames):
            keys = _keys(state.seed, (state.first // block + b) * block + np.arange(block))
            current, step = jnp.asarray(begun), state.step
            for part, length in enumerate(lengths):
                limits = _integers(step, step + length, state.stretch)
                current, grown, _ = _advance(law, keys, current, limits, GUARDED)
                growth[b, part] = grown
                step += length
            frames[b] = current
            if progress is not None:
                progress(b + 1, len(state.frames))
    if np.isnan(growth).any() or np.isposinf(growth).any():
        raise ValueError(
            "a matrix of the product has entries that are NaN or infinite, or overflows when multiplied"
        )
    rows = state.first % block + np.arange(state.replicas)
    every = growth.swapaxes(1, 2).reshape(-1, parts, k)[rows]
    return state._replace(frames=frames, step=state.step + steps), every


def part_lengths(steps: int, parts: int) -> np.ndarray:
    """``steps`` cut into ``parts`` whole numbers that differ by at most 1."""
    return np.diff(np.arange(parts + 1) * steps // parts)


def block_size(law: MatrixLaw, k: int) -> int:
    """Replicas in one block: a power of two that depends on the size of a frame alone."""
    lanes = MOST_REPLICAS
    while lanes > 1 and lanes * law.dim * k * (16 if law.is_complex else 8) > FRAME_BYTES:
        lanes //= 2
    return lanes


def stretch_of(law: MatrixLaw, k: int, seed: int = 0) -> int:
    """After how many steps to orthonormalise, by a pilot run on the first block of replicas.

    The most (a power of two) after which no frame was flatter than 1e-6 nor had grown or shrunk by more than 1e80;
    1 if some matrix is nearly singular.
    """
    law = for_tracing(law)
    with float64():
        numbers = np.arange(block_size(law, k))
        keys = _keys(seed, numbers)
        limits = _integers(0, PILOT_STEPS, 1)
        frames, _, _ = _advance(law, keys, _start(law, seed, numbers, k), limits, GUARDED)
        stretch = 1
        while stretch < LONGEST_STRETCH:
            longer = 2 * stretch
            limits = _integers(PILOT_STEPS, PILOT_STEPS + longer, longer)
            _, growth, flatness = _advance(law, keys, frames, limits, UNGUARDED)
            size = np.abs(np.asarray(growth))
            if not (flatness >= FLAT and np.all(size[np.isfinite(size)] <= math.log(LARGEST_GROWTH))):
                break
            stretch = longer
    return stretch


def _integers(*numbers: Any) -> Any:
    """As arrays, which are arguments of a compiled program, where Python's integers are part of it."""
    return tuple(np.asarray(number, np.int64) for number in numbers)


def _keys(seed: Any, numbers: np.ndarray) -> Any:
    return _drawn_keys(np.asarray(seed, np.int64), numbers)


def _start(law: MatrixLaw, seed: int, numbers: np.ndarray, k: int) -> Any:
    """Random orthonormal vectors for the replicas with these numbers; vector ``j`` does not depend on ``k``."""
    drawn = np.stack(
        [
            np.random.Generator(np.random.Philox(key=[int(seed), int(number)])).standard_normal((k, 2, law.dim))
            for number in numbers
        ]
    )
    return _orthonormal(drawn[:, :, 0] + 1j * drawn[:, :, 1] if law.is_complex else drawn[:, :, 0])


@eqx.filter_jit
def _drawn_keys(seed: Any, numbers: Any) -> Any:
    return jax.vmap(trajectory_key, (None, 0))(seed, numbers)


@eqx.filter_jit
def _orthonormal(frames: Any) -> Any:
    return orthonormalise(frames)[0]


@eqx.filter_jit
def _advance(law: Any, keys: Any, frames: Any, limits: Any, guarded: Any) -> Any:
    """The frames at ``until``, their growth since ``step``, and how flat a frame came to be.

    ``limits`` are ``step``, ``until`` and the stretch.

    ``guarded``: a stretch that left some frame too flat is made again, orthonormalised after every step.
    """

    def go_on(state: Any) -> Any:
        frames, growth, flattest, step, careful_until = state
        length = jnp.where(step < careful_until, 1, jnp.minimum(stretch, until - step))
        moved = jax.lax.fori_loop(step, step + length, lambda s, vectors: law.apply(keys, s, vectors), frames)
        found, grown, flat = orthonormalise(moved, jnp.any(frames != 0, axis=2))
        flatness = jnp.min(flat)
        # Written so that what is not a number is made again, too.
        good = (flatness > COLLAPSED) | (length == 1) | ~guarded
        return (
            jnp.where(good, found, frames),
            jnp.where(good, growth + grown, growth),
            jnp.where(good, jnp.minimum(flattest, flatness), flattest),
            jnp.where(good, step + length, step),
            jnp.where(good, careful_until, step + length),
        )

    step, until, stretch = limits
    state = (frames, jnp.zeros(frames.shape[:2]), jnp.ones(()), step, step)
    state = jax.lax.while_loop(lambda state: state[3] < until, go_on, state)
    return state[:3]


# Any law ---------------------------------------------------------------------------------------------------------


def random_product_exponents(
    sample_matrix: Callable[[Any], Any],
    dim: int,
    *,
    k: int | None = None,
    replicas: int = 256,
    steps: int = 4000,
    warm_up: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    log_determinant: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The Lyapunov exponents of ``M_T ... M_2 M_1`` with independent random matrices of one law.

    ``lambda_1 + ... + lambda_p = lim (1/T) E log |p-dimensional volume|``, natural logarithm per factor, largest
    first. Independent replicas of the product act on orthonormal vectors (one more than ``k`` exponents need) that
    are orthonormalised by QR every few factors; the logarithms of the diagonal of R are averaged after a warm-up.
    The standard error is the one across replicas. Status *estimated*.

    Beside the standard error there is a bias, of order ``1 / steps`` as a rule; ``drift_z`` and ``settled`` show
    one that matters. Where exponents are equal and the matrices share invariant subspaces (they are
    block-diagonal, say) it is of order ``1 / sqrt(steps)``: the largest is overestimated, the smallest
    underestimated. Exponents that may be equal (``separation`` below 2) therefore have intervals that also cover
    their common mean. Where a gap times the number of steps is below 8 the vectors still remember how they began,
    and the intervals are wider by what that may make, ``(1 + log(1 + 9 dim)) / (2 steps)`` at most.

    Parameters
    ----------
    sample_matrix
        A JAX function of a PRNG key that returns one matrix, shape ``(dim, dim)``, real or complex; the product is
        computed in double precision.
    dim
        Of the matrices.
    k
        How many exponents; all ``dim`` of them without ``k``.
    replicas
        Independent products, at least 2; replica ``i`` depends on ``(seed, i)`` alone.
    steps
        Factors of each product, after the warm-up.
    warm_up
        Factors before, not counted; a fifth of ``steps`` by default.
    seed
        Of the matrices and of the first vectors.
    confidence
        Of the intervals ``[lower, upper]`` (Student's t over replicas, each exponent by itself).
    log_determinant
        ``E log|det M|`` if it is known, to be compared with the sum of all exponents; otherwise it is estimated
        from independent matrices.
    progress
        Called as ``progress(finished, total)`` from time to time.

    Returns
    -------
    Dataset over ``k`` (1, 2, ...): ``exponent``, ``standard_error``, ``lower``, ``upper``; ``drift_z``, the
    estimate over the second half of the steps minus that over the first, in standard errors, and ``settled``,
    whether none is beyond 4; ``slow``, whether some gap had no time to act; ``replica_exponent`` over ``(replica,
    index)``; ``history`` and ``history_error``, the running estimates over ``(block, index)`` with the coordinate
    ``step``. Over ``pair`` (exponents ``i`` and ``i + 1``): ``separation``, their mean difference over its
    standard deviation in one replica. Over ``length`` ``n = 1, 2, 4, ...``: ``upper_bound``, ``(1/n) E log ||M_n
    ... M_1||`` with the spectral norm, which is never below the first exponent and falls to it as ``n`` doubles,
    with ``upper_bound_error``. With all exponents: ``sum`` and ``log_determinant``, which have the same
    expectation, each with its ``_error``, and ``sum_z``, their difference in standard errors. ``attrs['remarks']``
    says in words what to beware of. An exponent is ``-inf`` if vectors of some replica were annihilated (to
    rounding: contracted in one step by more than about 1e13 relative to the others).

    Raises
    ------
    TypeError
        If ``sample_matrix`` cannot be traced, or returns integers or no array.
    ValueError
        If it returns another shape, or numbers that are not finite; for numbers out of range.
    """
    dim = checked_count(dim, "dim", 1)
    k = dim if k is None else checked_count(k, "k", 1, dim)
    replicas = checked_count(replicas, "replicas", 2)
    steps = checked_count(steps, "steps", 1, 2**31)
    warm_up = steps // 5 if warm_up is None else checked_count(warm_up, "warm_up", 0, 2**31)
    seed = checked_count(seed, "seed", 0, 2**63 - 1)
    if (
        isinstance(confidence, bool)
        or not isinstance(confidence, (int, float, np.number))
        or not 0 < confidence < 1
    ):
        raise ValueError(f"confidence must be a number between 0 and 1, got {confidence!r}")
    if log_determinant is not None and not float(log_determinant) < math.inf:
        raise ValueError(f"log_determinant is E log|det M|, a number or -inf, got {log_determinant!r}")
    law = sampled_law(sample_matrix, dim)
    total = warm_up + steps

    def counted(before: int, length: int) -> Callable[[int, int], None] | None:
        return progress and (lambda done, parts: progress(before + length * done // parts, total))

    followed = min(k + 1, dim)
    state = begin(law, replicas, followed, seed)
    state, _ = advance(law, state, warm_up, progress=counted(0, warm_up))
    parts = min(HISTORY, steps)
    _, growth = advance(law, state, steps, parts, counted(warm_up, steps))
    method = (
        f"{replicas} independent products of {steps} factors after {warm_up}, QR of {followed} vectors every "
        f"{state.stretch} factors"
    )
    attrs = {"status": "estimated", "method": method}
    variables = _estimates(growth, k, part_lengths(steps, parts), warm_up, dim, confidence, attrs)
    variables |= upper_bounds(law, replicas, min(steps, LONGEST_BOUND), seed, attrs | {"units": "1 / step"})
    if k == dim:
        variables |= _sum_rule(law, growth, steps, replicas, seed, log_determinant, attrs)
    found = xr.Dataset(variables, _coordinates(k, followed - 1, replicas, part_lengths(steps, parts)))
    found.attrs = attrs | {
        "dim": dim,
        "replicas": replicas,
        "steps": steps,
        "warm_up": warm_up,
        "seed": seed,
        "confidence": float(confidence),
        "remarks": remarks(found),
    }
    return found


def sampled_law(sample_matrix: Callable[[Any], Any], dim: int) -> SampledMatrices:
    """The law of ``sample_matrix(key)``, checked."""
    if not callable(sample_matrix):
        raise TypeError(f"sample_matrix must be a JAX function of a PRNG key, got {type(sample_matrix).__name__}")
    with float64():
        key = jax.random.key(0, impl="threefry2x32")
        try:
            shape = jax.eval_shape(sample_matrix, key)
        except Exception as error:
            raise TypeError(
                f"sample_matrix(key) cannot be traced by JAX ({type(error).__name__}): draw with jax.random "
                "from the key it is given, and compute with jax.numpy"
            ) from error
        if not isinstance(shape, jax.ShapeDtypeStruct):
            raise TypeError(f"sample_matrix(key) must return one array, got {type(shape).__name__}")
        if shape.shape != (dim, dim):
            raise ValueError(
                f"sample_matrix(key) returns shape {shape.shape}, expected ({dim}, {dim}) for dim={dim}"
            )
        if not jnp.issubdtype(shape.dtype, jnp.inexact):
            raise TypeError(
                f"sample_matrix(key) returns dtype {shape.dtype}, expected real or complex floating-point numbers "
                "(.astype(float) converts)"
            )
        first, second = (np.asarray(sample_matrix(key)) for _ in range(2))
    if not np.array_equal(first, second, equal_nan=True):
        raise TypeError(
            "sample_matrix(key) returns another matrix at each call with the same key: compiled, it would give "
            "one and the same matrix ever after. Draw with jax.random from the key, not with numpy.random"
        )
    is_complex = bool(jnp.issubdtype(shape.dtype, jnp.complexfloating))
    return SampledMatrices(sample_matrix=sample_matrix, dim=dim, complex_entries=is_complex)


def remarks(found: xr.Dataset) -> str:
    """What to know about the estimates, in sentences; empty if nothing."""
    sentences = []
    if not bool(found["settled"]):
        sentences.append(
            "Not settled: the two halves of the steps are not shown to agree, so there may be a bias beyond the "
            "standard errors; take more steps and a longer warm-up."
        )
    if bool(found["slow"]):
        sentences.append(
            "The gap between some exponents is too small for so few steps, so that the start still matters: their "
            "intervals are wider by what it may make."
        )
    if abs(float(found.get("sum_z", 0.0))) > DRIFT:
        sentences.append(
            f"The sum of all exponents differs from E log|det| by {float(found['sum_z']):.3g} standard errors: "
            "they are not to be trusted (rare large factors, or too short a run)."
        )
    close = [int(i) for i in found["pair"].values[found["separation"].values < RESOLVED]]
    if close:
        pairs = ", ".join(f"{i} and {i + 1}" for i in close)
        sentences.append(
            f"Exponents not told apart within one replica: {pairs}; if they are equal and the matrices share "
            "invariant subspaces, the larger are overestimated and the smaller underestimated (their intervals "
            "cover the common mean); otherwise more steps tell them apart."
        )
    return " ".join(sentences)


def _estimates(
    growth: np.ndarray,
    k: int,
    lengths: np.ndarray,
    before: int,
    dim: int,
    confidence: float,
    attrs: dict[str, Any],
) -> dict[str, Any]:
    """The variables that come from the growth of the frames, shape ``(replicas, parts, k or k + 1)``."""
    rates = growth.sum(axis=1) / lengths.sum()
    exponent, error = mean_and_error(rates)
    noise = 1 + _finite(np.abs(exponent))
    separation = _separation(rates, noise)
    lower, upper = _intervals(rates, separation >= RESOLVED, confidence)
    slow = _memories(exponent, before, int(lengths.sum()), dim)
    lower, upper = lower - slow, upper + slow
    drift = _drift(growth, lengths, exponent, noise)[:k]
    running, running_error = mean_and_error(np.cumsum(growth, axis=1) / np.cumsum(lengths)[:, None])

    def named(long_name: str, units: str = "1 / step") -> dict[str, Any]:
        return {"long_name": long_name, "units": units, **attrs}

    return {
        "exponent": ("k", exponent[:k], named("Lyapunov exponent")),
        "standard_error": ("k", error[:k], named("standard error of the exponent across replicas")),
        "lower": ("k", lower[:k], named("lower end of the exponent's interval")),
        "upper": ("k", upper[:k], named("upper end of the exponent's interval")),
        "drift_z": ("k", drift, named("second minus first half of the steps, in standard errors", "1")),
        "settled": ((), bool(np.all(np.abs(drift) <= DRIFT)), named("whether no exponent drifts", "1")),
        "slow": ((), bool(np.any(slow[:k] > 0)), named("whether a gap has not had time to act", "1")),
        "separation": ("pair", separation, named("gap to the next exponent over its deviation in a replica", "1")),
        "replica_exponent": (("replica", "k"), rates[:, :k], named("growth rate of one replica")),
        "history": (("block", "k"), running[:, :k], named("estimate from the steps so far")),
        "history_error": (
            ("block", "k"),
            running_error[:, :k],
            named("standard error of the estimate so far"),
        ),
    }


def memory_bound(steps: float, dim: int) -> float:
    """What a random start may still take off a rate after so many steps, while its gap has not had time to act.

    A component ``R`` times as large as the leading one that falls behind at the rate ``x`` takes
    ``x R e^(-2 x t) / (1 + R e^(-2 x t))`` off the rate at time ``t``, at most about ``(1 + log(1 + R)) / (2 t)``;
    for random vectors ``R = 9 dim`` is rarely exceeded.
    """
    return (1 + math.log1p(9 * dim)) / (2 * steps)


def _memories(exponent: np.ndarray, before: int, steps: int, dim: int) -> np.ndarray:
    """`memory_bound` for the exponents with a neighbour whose gap has not acted since the start, else 0."""
    time = max(before, steps / 2)
    below = np.isneginf(exponent[1:])
    gaps = np.where(below, math.inf, exponent[:-1] - np.where(below, 0.0, exponent[1:]))
    unmixed = np.concatenate([[False], gaps * time < MIXED, [False]])
    return np.where(unmixed[1:] | unmixed[:-1], memory_bound(time, dim), 0.0)


def _drift(growth: np.ndarray, lengths: np.ndarray, exponent: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Second minus first half in standard errors; undefined where there is one part only."""
    half = len(lengths) // 2
    if half == 0:
        return np.full_like(exponent, np.nan)
    usable = np.where(np.isneginf(exponent), 0.0, growth)
    first = usable[:, :half].sum(axis=1) / lengths[:half].sum()
    second = usable[:, half:].sum(axis=1) / lengths[half:].sum()
    mean, error = mean_and_error(second - first)
    return mean / np.maximum(error, ROUNDING * noise)


def _separation(rates: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The mean gap to the next exponent over its standard deviation in one replica, shape ``(k - 1,)``."""
    below = np.isneginf(rates[:, 1:])
    gaps = np.where(below, np.inf, rates[:, :-1] - np.where(below, 0.0, rates[:, 1:]))
    gap, error = mean_and_error(gaps)
    return gap / np.maximum(error * math.sqrt(len(rates)), ROUNDING * noise[:-1])


def _intervals(rates: np.ndarray, apart: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Student's intervals; those of exponents that are not told apart cover that of their common mean."""

    def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, error = mean_and_error(values)
        half = student_t.ppf((1 + confidence) / 2, len(values) - 1) * error
        half = half + 64 * rates.shape[1] * EPS * (1 + _finite(np.abs(mean)))
        return mean - half, mean + half

    lower, upper = interval(rates)
    ends = [0, *(np.flatnonzero(apart) + 1), rates.shape[1]]
    for begin_, end in itertools.pairwise(ends):
        if end - begin_ > 1:
            low, high = interval(rates[:, begin_:end].mean(axis=1))
            lower[begin_:end] = np.minimum(lower[begin_:end], low)
            upper[begin_:end] = np.maximum(upper[begin_:end], high)
    return lower, upper


def _coordinates(k: int, pairs: int, replicas: int, lengths: np.ndarray) -> dict[str, Any]:
    return {
        "k": ("k", np.arange(1, k + 1), {"long_name": "rank of the exponent, largest first"}),
        "pair": ("pair", np.arange(1, pairs + 1), {"long_name": "between this exponent and the next"}),
        "replica": ("replica", np.arange(replicas), {"long_name": "number of the replica"}),
        "step": ("block", np.cumsum(lengths), {"long_name": "factors so far, after the warm-up"}),
    }


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis and its standard error; ``-inf`` or ``inf`` with error 0 where one value is."""
    finite = np.isfinite(values).all(axis=0)
    usable = np.where(finite, values, 0.0)
    error = usable.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.where(finite, usable.mean(axis=0), np.where(finite, 0.0, values).sum(axis=0)), error


def _sum_rule(
    law: SampledMatrices,
    growth: np.ndarray,
    steps: int,
    replicas: int,
    seed: int,
    log_determinant: float | None,
    attrs: dict[str, Any],
) -> dict[str, Any]:
    total, total_error = (float(x) for x in mean_and_error(growth.sum(axis=(1, 2)) / steps))
    if log_determinant is not None:
        expected, expected_error, how = float(log_determinant), 0.0, {"method": "given"}
    else:
        draws = min(DETERMINANTS, replicas * steps)
        values = mean_log_determinants(law, seed, draws)
        expected, expected_error = (float(x) for x in mean_and_error(values))
        how = {"method": f"mean over {draws} independent matrices"}
    scatter = max(math.hypot(total_error, expected_error), ROUNDING * (1 + float(_finite(np.abs(total)))))
    difference = 0.0 if total == expected else total - expected

    def named(long_name: str, units: str = "1 / step") -> dict[str, Any]:
        return {"long_name": long_name, "units": units, **attrs}

    return {
        "sum": ((), total, named("sum of all exponents")),
        "sum_error": ((), total_error, named("standard error of the sum")),
        "log_determinant": ((), expected, named("mean of log|det M|") | how),
        "log_determinant_error": ((), expected_error, named("standard error of the mean of log|det M|") | how),
        "sum_z": ((), difference / scatter, named("sum minus log_determinant, in standard errors", "1")),
    }


def mean_log_determinants(law: SampledMatrices, seed: int, draws: int) -> np.ndarray:
    """``log|det M|`` of independent matrices, none of which is a factor of a product, shape ``(draws,)``."""
    law = for_tracing(law)
    block = max(1, min(2**12, 2**22 // law.dim**2))
    values = []
    with float64():
        for begin in range(0, draws, block):
            keys = _keys(seed, begin + np.arange(block))
            values.append(np.asarray(_log_determinants(law, keys, np.asarray(DETERMINANT, np.int64))))
    return np.concatenate(values)[:draws]


@eqx.filter_jit
def _log_determinants(law: SampledMatrices, keys: Any, step: Any) -> Any:
    return jnp.linalg.slogdet(jax.vmap(law.matrix, (0, None))(keys, step))[1]


def upper_bounds(law: MatrixLaw, replicas: int, longest: int, seed: int, attrs: dict[str, Any]) -> dict[str, Any]:
    """``(1/n) E log ||M_n ... M_1||`` for ``n = 1, 2, 4, ...`` up to ``longest``, as variables over ``length``."""
    count = min(replicas, max(8, BOUND_ENTRIES // law.dim**2))
    norms = log_norms(law, count, longest.bit_length() - 1, seed)
    length = 2 ** np.arange(norms.shape[1])
    bound, error = mean_and_error(norms / length)
    how = attrs | {"method": f"spectral norms of {count} independent products"}
    return {
        "length": ("length", length, {"long_name": "number of factors"}),
        "upper_bound": ("length", bound, {"long_name": "(1/n) E log ||M_n ... M_1||", **how}),
        "upper_bound_error": ("length", error, {"long_name": "standard error of the upper bound", **how}),
    }


def log_norms(law: MatrixLaw, replicas: int, doublings: int, seed: int = 0) -> np.ndarray:
    """``log ||M_n ... M_1||`` (spectral norm) for ``n = 1, 2, 4, ..., 2**doublings``.

    Shape ``(replicas, doublings + 1)``. The factors are the first ones of the same replicas in `advance`.
    """
    law = for_tracing(law)
    block = block_size(law, law.dim)
    dtype = np.complex128 if law.is_complex else np.float64
    found = np.empty((replicas, doublings + 1))
    with float64():
        for first in range(0, replicas, block):
            rows = slice(first, min(first + block, replicas))
            keys = _keys(seed, first + np.arange(block))
            products = jnp.asarray(np.broadcast_to(np.eye(law.dim, dtype=dtype), (block, law.dim, law.dim)))
            scale = jnp.zeros(block)
            for j in range(doublings + 1):
                limits = _integers(2**j // 2, 2**j)
                products, scale = _multiplied(law, keys, products, scale, *limits)
                norm = np.linalg.norm(np.asarray(products), 2, axis=(1, 2))
                with np.errstate(divide="ignore"):
                    found[rows, j] = (np.log(norm) + np.asarray(scale))[: rows.stop - first]
    return found


@eqx.filter_jit
def _multiplied(law: MatrixLaw, keys: Any, products: Any, scale: Any, step: Any, until: Any) -> Any:
    def one(s: Any, state: Any) -> Any:
        moved = law.apply(keys, s, state[0])
        largest = jnp.max(jnp.abs(moved), axis=(1, 2))
        size = jnp.where(largest == 0, 1.0, largest)
        return moved / size[:, None, None], state[1] + jnp.log(size)

    return jax.lax.fori_loop(step, until, one, (products, scale))

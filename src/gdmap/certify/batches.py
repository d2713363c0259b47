"""Mini-batch maps: one step of SGD for every batch, ``theta - eta grad (1/B) sum_{i in batch} l_i(theta)``."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from gdmap.certify.claims import RULES, Claim, Finding, UnprovedError, require_everywhere, verify
from gdmap.certify.coverage import EVERYTHING, Coverage
from gdmap.certify.subject import Subject
from gdmap.engines.balls import matrices
from gdmap.engines.balls.mid_rad import Intervals
from gdmap.objectives import AbstractObjective

# More batches than this are not certified one by one.
MOST_BATCHES = 400


def listed_batches(objective: AbstractObjective, batch_size: Any, batches: Any) -> list[tuple[int, ...]] | None:
    """The batches asked for as tuples of sample numbers; ``None`` where all of a size are too many to list."""
    n = number_of_samples(objective)
    if batches is not None:
        if batch_size is not None:
            raise ValueError("give batch_size or batches, not both")
        try:
            found = [tuple(sorted(operator.index(i) for i in batch)) for batch in batches]
            if any(isinstance(i, bool) for batch in batches for i in batch):
                found = []
        except TypeError:
            found = []
        if not found or any(not batch or batch[0] < 0 or batch[-1] >= n for batch in found):
            raise ValueError(f"batches must be lists of sample numbers from 0 to {n - 1}, at least one")
        return list(dict.fromkeys(found))
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be an integer from 1 to the number of samples, {n}, got {batch_size!r}")
    if math.comb(n, int(batch_size)) > MOST_BATCHES:
        return None
    return list(itertools.combinations(range(n), int(batch_size)))


def number_of_samples(objective: Any) -> int:
    """The number of samples, or an error if there are none."""
    if not hasattr(objective, "sample_values"):
        raise TypeError(
            f"{type(objective).__name__} has no samples: give data= to gdmap.Objective for mini-batch maps"
        )
    return int(objective.n_samples)


def batch_subject(subject: Subject, batch: Sequence[int]) -> Subject:
    """The map of one batch."""
    return Subject(subject.objective, subject.exact_decimals, batch_loss(subject.objective, batch))


def batch_loss(objective: Any, batch: Sequence[int]) -> Callable[[Any], Any]:
    """The mean of the losses of some samples."""
    index = np.asarray(batch, int)

    def loss(theta: Any) -> Any:
        return jnp.mean(objective.sample_values(theta)[index])

    return loss


def verify_every_batch(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """All batches of a size and all patterns at once: weights anywhere in ``[0, 1/B]``, at one point."""
    objective: Any = subject.objective
    n, m, size = subject.dim, number_of_samples(objective), int(claim["batch_size"])
    weighted = Subject(
        objective,
        subject.exact_decimals,
        lambda both: both[n:] @ objective.sample_values(both[:n]),
        extra=m,
    )
    require_everywhere(weighted)
    half = np.full(m, 0.5 / size)
    mid = np.concatenate([np.zeros(n), half])
    rad = np.concatenate([np.zeros(n), half * (1 + 2.0**-50)])
    directions = np.eye(n, n + m)
    hessian = weighted.pieces.hessian(
        Intervals(mid, rad), weighted.pieces.every_pattern(), weighted.verified, directions
    )
    norm = matrices.norm_bound(hessian.mid[:, :n], hessian.rad[:, :n])
    coverage = Coverage(((-np.inf, float(norm)),))
    return Finding(coverage, "everywhere", {"norm": float(norm)})


def verify_each_batch(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """The claims of each batch; what all of them prove."""
    coverage = EVERYTHING
    singular: set[Fraction] = set()
    figures = []
    for entry in claim["batches"]:
        own = batch_subject(subject, entry["batch"])
        found: Coverage | None = None
        for part in entry["claims"]:
            finding = verify(own, part, step_sizes)
            singular |= finding.singular
            if part.get("assumed_bounded"):
                raise UnprovedError("an assumption about a batch is not listed")
            if finding.scope != "everywhere" and not finding.singular:
                raise UnprovedError("a claim about a batch does not hold everywhere")
            found = finding.coverage if found is None else found.both(finding.coverage)
            figures.append(finding.figures)
        if found is None:
            raise UnprovedError(f"no claim about batch {entry['batch']}")
        if not entry["batch"]:
            raise UnprovedError("an empty batch")
        coverage = coverage.each(found)
    return Finding(coverage, "everywhere", {"batches": figures}, frozenset(singular))


RULES["every batch"] = verify_every_batch
RULES["each batch"] = verify_each_batch

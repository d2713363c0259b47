"""Pieces too many to list: those of random initialisations, certified one by one, with a confidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gdmap.bracket import Bracket
from gdmap.certify.claims import Claim, Finding, UnprovedError, verify
from gdmap.certify.constants import claim_of_constant, generic_points
from gdmap.certify.coverage import EVERYTHING, NOTHING, Coverage
from gdmap.certify.sampling import unseen_probability
from gdmap.certify.subject import Subject, exact_point, written
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.random import drawn_starts, gaussian_starts

# Constant directions are looked for on pieces of losses up to this size.
LARGEST_EXAMINED = 200


@dataclass(frozen=True)
class Drawn:
    """A law of initialisations and how many are drawn from it."""

    n: int
    law: Callable[[Any], Any] | None
    scale: float
    seed: int
    confidence: float

    @classmethod
    def from_request(cls, starts: Any, scale: float, seed: int, confidence: float) -> "Drawn":
        """Read the arguments of `certify_nonsingular`.

        Raises
        ------
        ValueError
            For arguments that are no numbers of their kind.
        """
        if not is_number(confidence) or not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
        if not is_number(scale) or not 0 < scale < np.inf:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed must be an integer from 0, got {seed!r}")
        if callable(starts):
            return cls(60, starts, scale, seed, confidence)
        if isinstance(starts, bool) or not isinstance(starts, (int, np.integer)) or starts < 1:
            raise ValueError(f"starts must be a positive number of draws, or a law starts(key), got {starts!r}")
        return cls(int(starts), None, scale, seed, confidence)

    def claim(self, subject: Subject, step_sizes: Sequence[Fraction]) -> Claim:
        """The claim to verify; points of a law that is a function are written out."""
        claim: Claim = {"kind": "drawn pieces", "n": self.n, "confidence": self.confidence, "seed": self.seed}
        if self.law is None:
            return {**claim, "law": "normal", "scale": self.scale}
        points = drawn_starts(self.law, np.arange(self.n), self.seed, subject.dim)
        return {**claim, "law": "given", "points": [written(exact_point(point)) for point in points]}


def is_number(value: Any) -> bool:
    """Whether a value is a real number."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def points_of(subject: Subject, claim: Claim) -> list[tuple[Fraction, ...]]:
    """The initialisations a claim is about."""
    from gdmap.certify.subject import read

    if claim["law"] == "normal":
        drawn = gaussian_starts(int(claim["n"]), subject.dim, seed=int(claim["seed"]), scale=float(claim["scale"]))
        return [exact_point(point) for point in drawn]
    points = [read(point) for point in claim["points"]]
    if len(points) != claim["n"] or any(len(point) != subject.dim for point in points):
        raise UnprovedError("the points of the claim are not as many as it says, or of another dimension")
    return points


def verify_drawn(
    subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]
) -> tuple[Finding, Bracket | None, frozenset[Fraction]]:
    """Certify the piece of each initialisation; whether that succeeds depends on the draw alone.

    The share of draws that fail then bounds the probability of pieces that cannot be certified (Clopper-Pearson).
    """
    coverage, failures = EVERYTHING, 0
    points = points_of(subject, claim)
    if claim["law"] == "given" and len(set(points)) < len(points):
        raise UnprovedError("the draws of the claim are not distinct")
    seen: dict[str, Coverage | None] = {}
    for point in points:
        try:
            digest = subject.pattern(point).digest
        except UndecidedError:
            failures += 1
            continue
        if digest not in seen or not subject.covers_all:
            seen[digest] = certified(subject, point, step_sizes)
            if seen[digest] is None and subject.dim <= LARGEST_EXAMINED:
                constant = claim_of_constant(subject, point)
                if constant is not None and (singular := verify(subject, constant, step_sizes).singular):
                    return Finding(NOTHING, "piece", {"singular_start": written(point)}), None, singular
        own = seen[digest]
        if own is None:
            failures += 1
        else:
            coverage = coverage.each(own)
    if failures:
        raise UnprovedError(
            f"the pieces of {failures} of {len(points)} random initialisations could not be certified"
        )
    bound = unseen_probability(int(claim["n"]), failures, float(claim["confidence"]))
    probability = Bracket(
        1 - bound.value,
        1 - bound.upper,
        1 - bound.lower,
        "estimated",
        "Clopper-Pearson on certified draws",
        bound.confidence,
    )
    figures = {"failures": failures, "pieces": len(seen), "probability_at_least": probability.lower}
    return Finding(coverage, "drawn", figures), probability, frozenset()


def certified(subject: Subject, point: Sequence[Fraction], step_sizes: Sequence[Fraction]) -> Coverage | None:
    """What is proved on the piece of a point, ``None`` if not what is asked for."""
    places = [point]
    if subject.covers_all:
        places += [p for scale in (0.3, 1.0) for p in generic_points(subject, 1, scale, seed=11)]
    about: Claim = {"pattern": "of the point", "point": written(point)}
    if not step_sizes:
        try:
            chosen = [written(p) for p in (places if subject.covers_all else places[:1])]
            coverage = verify(subject, {**about, "kind": "spectra", "points": chosen}, ()).coverage
        except UnprovedError:
            return None
        return coverage if coverage.reach is not None else None
    coverage = NOTHING
    for place in places:
        try:
            claim = {**about, "kind": "regular", "points": [written(place)]}
            coverage = coverage.both(verify(subject, claim, step_sizes).coverage)
        except UnprovedError:
            continue
        if coverage.covers_all(step_sizes):
            return coverage
    return None

"""Is the gradient-descent map non-singular? The proof for one loss and one step size, or for all step sizes."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from gdmap.bracket import Bracket
from gdmap.certify.batches import batch_subject, listed_batches
from gdmap.certify.certificate import Certificate, NearestExceptional
from gdmap.certify.claims import Claim, Finding, UnprovedError, verify
from gdmap.certify.constants import Curvature, claim_of_constant, constant_curvatures, generic_points
from gdmap.certify.coverage import NOTHING, Coverage, is_negligible
from gdmap.certify.drawn import Drawn, verify_drawn
from gdmap.certify.reasons import reason_of
from gdmap.certify.record import assumptions_of, new_record, statement_of, up_to
from gdmap.certify.request import Request, checked_theta, read_request
from gdmap.certify.search import (
    Effort,
    claim_of_vanishing,
    claims_everywhere,
    claims_on_piece,
    telling_points,
)
from gdmap.certify.step_sizes import counted, in_words
from gdmap.certify.subject import Subject
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.maps import Map
from gdmap.objectives import AbstractObjective

# Constant curvatures are looked for in losses of at most so many parameters.
LARGEST_EXAMINED = 3000
# A rounded step size is told from others so far.
SAME = 1e-9


def certify_nonsingular(
    objective: AbstractObjective | Map,
    step_size: Any = None,
    *,
    theta: Any = None,
    batch_size: int | None = None,
    batches: Sequence[Sequence[int]] | None = None,
    exact_decimals: bool = False,
    assume_bounded: bool = False,
    starts: int | Callable[[Any], Any] = 60,
    scale: float = 1.0,
    seed: int = 0,
    confidence: float = 0.95,
    max_pieces: int = 20_000,
) -> Certificate:
    """Prove that ``G(theta) = theta - eta grad L(theta)`` is non-singular, that it is singular, or say why not.

    Non-singular means that ``G^-1`` of a null set is a null set: then gradient descent avoids strict saddles and
    unstable minima from almost every start. On a connected piece where ``L`` is analytic this holds exactly if
    ``det(I - eta H)`` does not vanish identically, so one point at which it is proved to be non-zero suffices.

    Parameters
    ----------
    objective
        The loss ``L``, or a map: `GradientDescent`, or an `Optimiser` whose update is affine in the gradient (SGD
        with momentum, Nesterov, weight decay), whose determinant is known in closed form.
    step_size
        ``eta``: a float means exactly that binary number, a ``fractions.Fraction`` (or a string like ``"1/10"``)
        that fraction. A sequence (a schedule) asks for every one of them; ``None`` for every step size at once.
    theta
        Weights of interest, shape ``(dim,)``. For a loss with several pieces, where not all of them can be
        certified, the proof is then about the piece they lie in. float32 weights are the exact numbers they are.
    batch_size, batches
        Ask for the mini-batch maps of SGD instead: of every batch of this size, or of these batches (lists of
        sample numbers); non-singular if each of them is, then also every composition of them. The objective
        needs samples.
    exact_decimals
        Read every float (the step size, the data, constants of the loss) as the decimal number it prints as: 0.1
        is 1/10.
    assume_bounded
        Take it on the user's word that ``L`` is bounded (arXiv:2402.13108, Proposition 18, strengthened): recorded
        as an assumption.
    starts, scale, seed
        The law of initialisations for losses with too many pieces to list: so many draws from ``N(0, scale^2)``;
        see `gdmap.sweep`.
    confidence
        The confidence of a probabilistic scope.
    max_pieces
        List the pieces of a loss with one hidden layer if there are at most so many.

    Returns
    -------
    Certificate
        With ``verdict``, ``scope``, ``proof`` (a record that `check_proof` verifies again from the loss alone),
        ``nearest_exceptional`` and ``explain()``. Status *proved*; with a probabilistic scope *estimated*.

    Raises
    ------
    ValueError, TypeError
        For step sizes that are no positive finite numbers, weights that are not finite or of another shape, and
        maps that depend on time or are not affine in the gradient.
    UnsupportedProgramError
        If the loss is not a piecewise analytic formula of supported operations; names the operation.

    Notes
    -----
    Sources: arXiv:2402.13108 (Propositions 9, 18, Theorem 17, repaired), arXiv:2510.24466 (Theorem 1, Lemma 10).
    """
    request = read_request(objective, step_size, exact_decimals)
    subject = Subject(request.objective, exact_decimals)
    if (batch_size is not None or batches is not None) and (theta is not None or isinstance(objective, Map)):
        raise ValueError(
            "mini-batch maps are certified for an objective and everywhere: without theta=, not for a map"
        )
    if isinstance(max_pieces, bool) or not isinstance(max_pieces, (int, np.integer)):
        raise ValueError(f"max_pieces must be an integer, got {max_pieces!r}")
    point = None if theta is None else checked_theta(theta, subject.dim)
    if theta is not None and np.asarray(theta).dtype != np.float64:
        kind = np.asarray(theta).dtype.name
        request = replace(request, note=f"The weights are the exact {kind} numbers given")
    effort = Effort(max_pieces=max_pieces)
    drawn = Drawn.from_request(starts, scale, seed, confidence)
    search = Search(subject, request.step_sizes, effort)
    if request.always:
        return search.certificate_for_optimiser(request)
    if batch_size is not None or batches is not None:
        return search.certificate_of_batches(batch_size, batches, request)
    if point is not None:
        require_piece(subject, point)
    search.everywhere()
    scope, probability = "all of parameter space", None
    if point is not None and not search.is_covered(search.coverage):
        scope = search.about_weights(point)
        return search.certificate(scope, None, request)
    if not search.is_settled:
        search.look_for_singular_pieces()
    if not search.is_settled and assume_bounded:
        search.on_assumption()
    if not search.is_settled and not subject.pieces.is_smooth:
        probability = search.on_drawn_pieces(drawn)
    elif not search.is_settled and not subject.covers_all:
        scope = search.on_piece_of(generic_points(subject, 1, 0.3)[0])
    return search.certificate(scope, probability, request)


def require_piece(subject: Subject, point: Sequence[Fraction]) -> None:
    """Refuse weights that lie on a kink, or where the loss is undefined."""
    try:
        subject.require_value(point, subject.pattern(point))
    except UndecidedError as error:
        raise ValueError(f"theta lies in no piece: {error}") from error


@dataclass
class Search:
    """Claims proposed, verified, and put together."""

    subject: Subject
    step_sizes: tuple[Fraction, ...]
    effort: Effort
    coverage: Coverage = NOTHING
    claims: list[Claim] = field(default_factory=list)
    singular: set[Fraction] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    singular_scope: str = ""
    remark: str = ""
    batches: Any = None
    scope_of_claims: str = "everywhere"
    coverages: dict[int, Coverage] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether the question is answered for all of parameter space."""
        return bool(self.singular) or self.is_covered(self.coverage)

    def is_covered(self, coverage: Coverage) -> bool:
        """Whether a coverage answers the question with non-singular."""
        if self.step_sizes:
            return coverage.covers_all(self.step_sizes)
        return coverage.reach is not None

    def verified(self, claim: Claim) -> Finding | None:
        """What a claim proves, or ``None`` if it is not confirmed."""
        try:
            finding = verify(self.subject, claim, self.step_sizes)
        except UnprovedError as error:
            self.failures.append(f"{claim['kind']}: {error}")
            return None
        claim["found"] = finding.figures
        return finding

    def everywhere(self) -> None:
        """Prove what can be proved about all of parameter space."""
        for claim in self.proposed():
            if not self.step_sizes and claim["kind"] == "regular":
                break
            finding = self.verified(claim)
            if finding is None or finding.scope != "everywhere":
                continue
            if finding.singular:
                self.singular |= finding.singular
                self.claims, self.singular_scope = [claim], "some of the pieces listed"
                return
            self.take(claim, finding)
            if self.is_covered(self.coverage):
                self.prune()
                return

    def on_assumption(self) -> None:
        """Use what the user says: the loss is bounded."""
        claim: Claim = {"kind": "growth", "assumed_bounded": True}
        finding = self.verified(claim)
        if finding is not None:
            self.take(claim, finding)

    def proposed(self) -> Iterator[Claim]:
        """Claims about all of parameter space, until a point on a kink or outside the domain ends them."""
        try:
            yield from claims_everywhere(self.subject, self.step_sizes, self.effort)
        except UndecidedError as error:
            self.failures.append(str(error))

    def prune(self) -> None:
        """Drop claims that the proof does not need, the least general first."""
        for claim in list(self.claims):
            rest = [other for other in self.claims if other is not claim]
            coverage = functools.reduce(Coverage.both, (self.coverages[id(other)] for other in rest), NOTHING)
            if rest and self.is_covered(coverage):
                self.claims, self.coverage = rest, coverage

    def take(self, claim: Claim, finding: Finding) -> None:
        """Add a verified claim to the proof, if it adds anything."""
        self.coverages[id(claim)] = finding.coverage
        if self.is_covered(finding.coverage):
            self.coverage, self.claims = finding.coverage, [claim]
            return
        both = self.coverage.both(finding.coverage)
        if both != self.coverage:
            self.coverage = both
            self.claims.append(claim)

    def look_for_singular_pieces(self) -> None:
        """Look for a piece on which a Hessian eigenvalue is constant and makes the map singular."""
        if self.subject.dim > LARGEST_EXAMINED:
            return
        for start in self.interesting_points():
            if self.is_singular_on_piece_of(start):
                return

    def is_singular_on_piece_of(self, start: Sequence[Fraction]) -> bool:
        """Prove that the map is singular on the piece of a point, if that can be proved."""
        for claim in self.claims_of_singularity(start):
            finding = self.verified(claim)
            if finding is not None and finding.singular:
                self.singular |= finding.singular
                self.claims, self.scope_of_claims = [claim], finding.scope
                whole = finding.scope == "everywhere"
                self.singular_scope = "all of parameter space" if whole else "one piece, of positive measure"
                return True
        return False

    def about_weights(self, point: Sequence[Fraction]) -> str:
        """Decide the piece of given weights; its scope in words."""
        elsewhere, self.singular = set(self.singular), set()
        if self.subject.dim <= LARGEST_EXAMINED and self.is_singular_on_piece_of(point):
            if self.scope_of_claims != "everywhere":
                self.singular_scope = "the piece of the given weights, of positive measure"
            return self.singular_scope
        scope = self.on_piece_of(point)
        if elsewhere:
            sizes = ", ".join(in_words(size) for size in sorted(elsewhere))
            self.remark = f"On other pieces the map is singular at step size {sizes}"
        return scope

    def claims_of_singularity(self, start: Sequence[Fraction]) -> Iterator[Claim]:
        """Claims that the map is singular on the piece of a point."""
        try:
            for claim in (
                claim_of_constant(self.subject, start),
                claim_of_vanishing(self.subject, start, self.step_sizes),
            ):
                if claim is not None:
                    yield claim
        except UndecidedError:
            return

    def interesting_points(self) -> list[Sequence[Fraction]]:
        """Points whose pieces are examined."""
        if self.subject.pieces.is_smooth:
            return [generic_points(self.subject, 1, 0.3)[0]]
        return [*telling_points(self.subject)]

    def on_piece_of(self, point: Sequence[Fraction]) -> str:
        """Prove what can be proved about the piece of a point; its scope in words."""
        self.coverage, self.claims, self.scope_of_claims = NOTHING, [], "piece"
        try:
            claims = list(claims_on_piece(self.subject, point, self.step_sizes))
        except UndecidedError as error:
            self.failures.append(str(error))
            claims = []
        for claim in claims:
            finding = self.verified(claim)
            if finding is not None:
                self.take(claim, finding)
                if self.is_covered(self.coverage):
                    break
        if self.subject.covers_all:
            return "the piece of the given weights (every point with their activation pattern)"
        return "the connected part, free of kinks and of poles, that holds the point of the record"

    def on_drawn_pieces(self, drawn: Drawn) -> Bracket | None:
        """Certify the pieces of random initialisations; a bracket of the probability that is proved."""
        claim = drawn.claim(self.subject, self.step_sizes)
        try:
            finding, probability, singular = verify_drawn(self.subject, claim, self.step_sizes)
        except UnprovedError as error:
            self.failures.append(str(error))
            return None
        claim["found"] = finding.figures
        if singular:
            self.singular |= singular
            self.singular_scope = "one piece, of positive measure"
        self.coverage, self.claims = finding.coverage, [claim]
        return probability

    def known_curvatures(self) -> list[tuple[Curvature, str]]:
        """Constant curvatures proved on some piece, each with its reason."""
        subject = self.subject
        if subject.dim > LARGEST_EXAMINED:
            return []
        found: dict[str, tuple[Curvature, str]] = {}
        for start in self.interesting_points():
            try:
                pattern = subject.pattern(start)
                for curvature in constant_curvatures(subject, pattern):
                    found.setdefault(str(curvature), (curvature, reason_of(subject, pattern, curvature)))
            except UndecidedError:
                continue
        return list(found.values())

    def nearest(self) -> NearestExceptional | None:
        """The known exceptional step size nearest to one that was asked for."""
        best: NearestExceptional | None = None
        for curvature, reason in self.known_curvatures():
            for size in self.step_sizes:
                distance = curvature.relative_distance(size)
                if best is None or distance < best.relative_distance:
                    exact = None if curvature.exact is None else 1 / curvature.exact
                    best = NearestExceptional(curvature.step_size, distance, reason, exact)
        return best

    def certificate_of_batches(self, batch_size: Any, batches: Any, request: Request) -> Certificate:
        """The certificate of all mini-batch maps."""
        listed = listed_batches(self.subject.objective, batch_size, batches)
        self.batches = {"size": int(batch_size)} if batches is None else [list(batch) for batch in listed or []]
        if listed is None or (batches is None and len(listed) > 1):
            claim: Claim = {"kind": "every batch", "batch_size": int(batch_size)}
            finding = self.verified(claim)
            if finding is not None:
                self.take(claim, finding)
        if not self.is_covered(self.coverage) and listed is not None:
            self.each_batch(listed)
        scope = (
            "all of parameter space, every mini-batch"
            if batches is None
            else "all of parameter space, the given mini-batches"
        )
        return self.certificate(scope, None, request)

    def each_batch(self, listed: Sequence[Sequence[int]]) -> None:
        """Certify the map of one batch after another."""
        entries: list[dict[str, Any]] = []
        for batch in listed:
            own = Search(batch_subject(self.subject, batch), self.step_sizes, self.effort)
            own.everywhere()
            if not own.is_settled:
                own.look_for_singular_pieces()
            if own.singular:
                entries = [{"batch": list(batch), "claims": own.claims}]
                self.singular_scope = f"batch {list(batch)}: {own.singular_scope}"
                break
            if not own.is_covered(own.coverage):
                self.failures.append(f"batch {list(batch)}: " + "; ".join(own.failures[-2:]))
                return
            entries.append({"batch": list(batch), "claims": own.claims})
        claim = {"kind": "each batch", "batches": entries}
        finding = self.verified(claim)
        if finding is not None:
            self.singular |= finding.singular
            self.coverage, self.claims = finding.coverage, [claim]

    def certificate(self, scope: str, probability: Bracket | None, request: Request) -> Certificate:
        """The result."""
        covered = self.is_covered(self.coverage)
        assumptions = assumptions_of(self.subject, self.claims)
        nearest = None if self.batches is not None else self.nearest()
        exceptional = self.left_out()
        reason = ". ".join(filter(None, (request.map, request.note, self.remark)))
        if self.singular:
            verdict, scope, probability = "singular", self.singular_scope, None
            why = [] if self.batches is not None else self.reasons_of_singularity()
            reason = ". ".join(filter(None, (request.map, request.note, *why)))
        elif covered or probability is not None:
            verdict = "non-singular"
        else:
            verdict = "undecided"
            reason = "What was tried last: " + (
                "; ".join(dict.fromkeys(self.failures[-3:])) or "the curvatures that are not excluded contain it"
            )
        if probability is not None:
            confidence = 100 * (probability.confidence or 0)
            scope = f"pieces of total probability at least {probability.lower:.4g} at confidence {confidence:g} %"
            scope += law_of(self.claims[0])
        if request.map:
            scope = scope.replace("parameter space", "state space")
        kind = "drawn" if probability is not None else self.scope_of_claims
        statement = statement_of(
            verdict, self.step_sizes, self.subject.exact_decimals, kind, request.map, self.batches, probability
        )
        statement["up_to"] = up_to(self.coverage) if verdict == "non-singular" and not self.step_sizes else None
        proof = new_record(self.subject, statement, self.claims, assumptions)
        return Certificate(
            verdict=verdict,  # type: ignore[arg-type]
            scope=scope,
            step_sizes=self.step_sizes,
            proved_up_to=self.proved_up_to() if covered else 0.0,
            exceptional=exceptional,
            nearest_exceptional=nearest,
            probability=probability,
            method=(
                "none"
                if verdict == "undecided"
                else "; ".join(in_words_of(claim, self.subject.pieces.is_smooth) for claim in self.claims)
            ),
            reason=reason,
            assumptions=tuple(assumptions),
            proof=proof,
            singular_step_sizes=tuple(sorted(self.singular)),
        )

    def reasons_of_singularity(self) -> list[str]:
        """Why the map is singular, for each step size, in words."""
        known = self.known_curvatures()
        found = []
        for size in sorted(self.singular):
            near = [why for curvature, why in known if abs(float(curvature) * float(size) - 1) < SAME]
            if near:
                found.append(f"{in_words(size)}: {near[0]}" if len(self.singular) > 1 else capitalised(near[0]))
        return found

    def proved_up_to(self) -> float:
        """Up to which step size all are proved, apart from the intervals left out."""
        small = [float(high) for low, high in self.coverage.positive if is_negligible(low, high)]
        return math.nextafter(1 / max(small), 0.0) if small and max(small) > 0 else math.inf

    def left_out(self) -> tuple[Bracket, ...]:
        """The intervals of step sizes that the proof for all of them leaves out."""
        brackets = []
        for low, high in self.coverage.positive:
            if is_negligible(low, high) or (math.isinf(float(high)) and math.isinf(float(low))):
                continue
            lower = 0.0 if math.isinf(float(high)) else math.nextafter(1 / float(high), 0.0)
            upper = math.inf if float(low) <= 0 else math.nextafter(1 / float(low), math.inf)
            value = upper if lower == 0 else lower if math.isinf(upper) else (lower + upper) / 2
            brackets.append(
                Bracket(value, lower, upper, "proved", "reciprocals of the curvatures that are not excluded")
            )
        return tuple(brackets)

    def certificate_for_optimiser(self, request: Request) -> Certificate:
        """The certificate of a map whose determinant does not depend on the curvature."""
        claim: Claim = {"kind": "closed form", "found": request.map}
        statement = statement_of("non-singular", (), request.exact_decimals, "everywhere", request.map)
        statement["up_to"] = "inf"
        assumptions = assumptions_of(self.subject, [claim])
        proof = new_record(self.subject, statement, [claim], assumptions)
        method = f"closed form, {request.map}"
        return Certificate(
            "non-singular",
            "all of state space",
            (),
            math.inf,
            (),
            None,
            None,
            method,
            "",
            tuple(assumptions),
            proof,
        )


def capitalised(text: str) -> str:
    """A sentence that begins with a capital."""
    return text[:1].upper() + text[1:]


def law_of(claim: Claim) -> str:
    """The law that a claim drew its points from, in words."""
    if claim["law"] == "normal":
        return f", of {claim['n']} draws from N(0, {claim['scale']:g}^2) with seed {claim['seed']}"
    return f", of {claim['n']} draws from the given law with seed {claim['seed']}"


def in_words_of(claim: Claim, smooth: bool) -> str:
    """How a claim proves what it proves."""
    kind = claim["kind"]
    if kind == "growth":
        if claim.get("assumed_bounded"):
            return "a bounded analytic loss (assumed): at some point H < I/eta"
        found = claim["found"]
        bound = f", {found['steps'][-1]} with r = ||theta||" if found["steps"] else ""
        curvature = float(found["curvature"])
        return (
            f"growth: L grows at most like (c/2) ||theta||^2 with c = {curvature:.6g}{bound}; where L less a "
            "slightly steeper parabola is largest, H <= c I, so I - eta H is positive definite for every eta < 1/c"
        )
    if kind in ("spectra", "exact spectra"):
        if claim["pattern"] == "every" and not smooth:
            where = "at one point, for all activation patterns at once"
        else:
            where = f"at {counted(len(claim['points']), 'point')}"
        if kind == "exact spectra":
            return f"the exact characteristic polynomial of the Hessian {where}"
        how = "a verified bound on the norm" if claim.get("bound") == "norm" else "the verified spectrum"
        return f"{how} of the Hessian {where}"
    if kind == "regular":
        if claim.get("bits"):
            return f"det(I - eta H) is not zero at one point, in balls of {claim['bits']} bits"
        return "I - eta H is regular at one point (verified double precision, Rump's test)"
    if kind == "every piece":
        return f"all {claim['n_pieces']} pieces listed and certified one by one ({claim['method']})"
    if kind == "constant directions":
        which = counted(len(claim["basis"]), "direction")
        return f"{which} on which the Hessian acts in the same way at every point, exactly, 1/eta an eigenvalue"
    if kind == "every batch":
        size = claim["batch_size"]
        return f"a verified bound on the norm of the Hessian at one point, for all batches of {size} at once"
    if kind == "each batch":
        return f"{counted(len(claim['batches']), 'mini-batch map')}, one by one"
    if kind == "vanishing determinant":
        return "det(I - eta H) is the zero polynomial, by exact symbolic evaluation"
    if kind == "drawn pieces":
        return f"the pieces of {claim['n']} random initialisations, certified one by one"
    return kind

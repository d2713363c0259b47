"""The kinds of claim a proof record is made of, and how each is verified from the loss and the claim alone.

A claim is a plain dictionary. ``verify`` evaluates it rigorously and returns what it proves; nothing that a search
found is trusted. `gdmap.certify.search` proposes claims, `gdmap.certify.record` checks those of a record.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from flint import arb, fmpq

from gdmap.certify.constants import Curvature, constant_curvatures, fraction, vanishes
from gdmap.certify.coverage import NOTHING, Coverage, is_negligible
from gdmap.certify.exact_spectra import (
    common_eigenvalues,
    exact_matrix,
    is_constant_action,
    is_singular,
    positive_roots,
)
from gdmap.certify.growth import growth
from gdmap.certify.margins import affine_margins, every_piece
from gdmap.certify.subject import Subject, read
from gdmap.engines.balls import matrices
from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.pieces import Pattern

Claim = dict[str, Any]
# Spectra of larger matrices are not enclosed eigenvalue by eigenvalue.
LARGEST_SPECTRUM = 1500
# Points of one claim.
MOST_POINTS = 16


class UnprovedError(Exception):
    """A claim that verification did not confirm; the message says why."""


class Finding(NamedTuple):
    """What a verified claim proves.

    ``coverage``: the step sizes for which the map is non-singular on the part ``scope`` (``'everywhere'``, or
    ``'piece'``: the piece of the point that the claim names). ``singular``: the step sizes for which it is proved
    singular, of those asked for; where every step size is asked for, all of them (irrational ones rounded).
    ``figures``: the numbers that verification found, for the record.
    """

    coverage: Coverage
    scope: str
    figures: dict[str, Any]
    singular: frozenset[Fraction] = frozenset()


def verify(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """What a claim proves about a map; ``step_sizes`` are those that are asked for.

    Raises
    ------
    UnprovedError
        If the claim is not confirmed, or is not one.
    """
    rule = RULES.get(claim.get("kind", ""))
    if rule is None:
        raise UnprovedError(f"'{claim.get('kind')}' is no kind of claim that is known here")
    try:
        return rule(subject, claim, step_sizes)
    except UndecidedError as error:
        raise UnprovedError(str(error)) from error
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise UnprovedError(f"the claim '{claim['kind']}' is malformed: {error}") from error


# Growth
# -----------------------------------------------------------------------------------------------------------


def verify_growth(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """``L <= a0 + a1 r + (c/2) r^2``: where ``L - (c'/2) r^2`` is largest, ``H <= c' I`` (theory: growth)."""
    require_one_piece(subject, "growth")
    if claim.get("assumed_bounded"):
        return Finding(Coverage(((-np.inf, 0.0),)), "everywhere", {"bounded": "assumed"})
    if subject.exact_decimals:
        raise UnprovedError("growth: bounds are those of the binary constants, not of decimals")
    found = growth(subject.pieces.program)
    curvature = found.curvature
    if not np.isfinite(float(curvature)):
        raise UnprovedError("the trace does not show that the loss grows at most quadratically")
    return Finding(
        Coverage(((-np.inf, curvature),)),
        "everywhere",
        {"curvature": str(curvature), "bounded": bool(found.bounded), "steps": list(found.steps)},
    )


def require_one_piece(subject: Subject, name: str) -> None:
    """Refuse losses that are not analytic on all of parameter space."""
    if not subject.pieces.is_smooth:
        raise UnprovedError(f"{name}: the loss has kinks")
    if not subject.covers_all:
        raise UnprovedError(f"{name}: the loss is not shown to be analytic everywhere ({limits(subject)})")


def require_everywhere(subject: Subject) -> None:
    """Refuse losses whose pieces' functions are not analytic on all of parameter space."""
    if not subject.covers_all:
        raise UnprovedError(
            f"the functions of the pieces are not shown to be analytic everywhere ({limits(subject)})"
        )


def limits(subject: Subject) -> str:
    """What limits the domain of the loss, in words."""
    return "; ".join(
        f"{equation.primitive.name} of a number not shown to be {condition}"
        for equation, _, condition in subject.pieces.conditions[:3]
    )


# Points
# -----------------------------------------------------------------------------------------------------------


def pattern_of(subject: Subject, claim: Claim) -> tuple[Pattern, str]:
    """The pattern a claim is about, and its scope."""
    if claim["pattern"] == "every":
        require_everywhere(subject)
        return subject.pieces.every_pattern(), "everywhere"
    if claim["pattern"] != "of the point":
        raise UnprovedError(f"'{claim['pattern']}' is no pattern")
    return piece_of(subject, claim)


def piece_of(subject: Subject, claim: Claim) -> tuple[Pattern, str]:
    """The pattern at the point of a claim, where the loss is shown to be defined, and the scope of a proof about
    it."""
    point = read(claim["point"])
    if len(point) != subject.pieces.dim:
        raise UnprovedError("the point of the claim does not have as many coordinates as there are parameters")
    pattern = subject.pattern(point)
    subject.require_value(point, pattern)
    whole = subject.pieces.is_smooth and subject.covers_all
    return pattern, "everywhere" if whole else "piece"


def points_of(subject: Subject, claim: Claim, scope: str) -> list[tuple[Fraction, ...]]:
    """The points at which a claim has the Hessian evaluated.

    Where the functions of the pieces are analytic everywhere any point will do, even one outside the piece: the
    function of the pattern is analytic on all of parameter space, so its determinant vanishes identically on the
    piece only if it does everywhere. Where logarithms, roots or quotients limit the domain, the one point of the
    claim itself stands for the connected part of the piece that it lies in.
    """
    if len(claim["points"]) > MOST_POINTS:
        raise UnprovedError(f"a claim names more than {MOST_POINTS} points")
    points = [read(point) for point in claim["points"]]
    if any(len(point) != subject.pieces.dim for point in points) or not points:
        raise UnprovedError("the points of the claim do not have as many coordinates as there are parameters")
    if scope == "piece" and not subject.covers_all and (len(points) != 1 or points[0] != read(claim["point"])):
        raise UnprovedError("the domain is limited: only the point of the piece itself may be used")
    return points


def verify_spectra(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """Enclosures of the spectra of the Hessian at some points: an exceptional ``eta`` has ``1/eta`` in all of
    them."""
    pattern, scope = pattern_of(subject, claim)
    coverage, spectra = NOTHING, []
    for point in points_of(subject, claim, scope):
        hessian = own_block(subject, subject.hessian(point, pattern, claim.get("bits")))
        if claim.get("bound") == "norm":
            norm = matrices.norm_bound(*hessian)
            union = np.array([[-norm, norm]])
        else:
            if len(hessian[0]) > LARGEST_SPECTRUM:
                raise UnprovedError(f"spectra of more than {LARGEST_SPECTRUM} eigenvalues are not enclosed")
            union = matrices.union(*matrices.spectrum_enclosure(*hessian))
        spectra.append(len(union))
        coverage = coverage.both(Coverage(tuple((float(low), float(high)) for low, high in union)))
    excluded = [[float(low), float(high)] for low, high in coverage.positive[-20:]]
    return Finding(coverage, scope, {"excluded_curvatures": excluded, "intervals": spectra})


def own_block(subject: Subject, hessian: Any) -> tuple[np.ndarray, np.ndarray]:
    """The block of the parameters of the map."""
    n = subject.dim
    return hessian[0][:n, :n], hessian[1][:n, :n]


def verify_regular(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """``det(I - eta H) != 0`` at a point: Rump's test ``||I - R (I - eta H)|| < 1``, or the determinant in
    balls."""
    pattern, scope = pattern_of(subject, claim)
    (point,) = points_of(subject, claim, scope)
    if claim.get("bits") is not None:
        return verify_determinant(subject, pattern, point, int(claim["bits"]), scope, step_sizes)
    mid, rad = own_block(subject, subject.hessian(point, pattern))
    proved, norms = set(), {}
    for step_size in step_sizes:
        norm = matrices.regularity(*identity_minus(mid, rad, step_size))
        norms[str(step_size)] = float(norm)
        if norm < 1:
            proved.add(step_size)
    if not proved:
        worst = max(norms.values(), default=np.inf)
        raise UnprovedError(f"the regularity test fails: ||I - R(I - eta H)|| is bounded by {worst:.3g} only")
    return Finding(NOTHING._replace(only=frozenset(proved)), scope, {"regularity": norms})


def verify_determinant(
    subject: Subject, pattern: Pattern, point: Any, bits: int, scope: str, step_sizes: Sequence[Fraction]
) -> Finding:
    """The sign of ``det(I - eta H)`` in balls of so many bits."""
    arithmetic = subject.balls(bits)
    hessian = subject.pieces.hessian(subject.point(point, arithmetic), pattern, arithmetic)
    hessian = hessian[: subject.dim, : subject.dim]
    signs = {}
    with arithmetic.active():
        for step_size in step_sizes:
            eta = arb(fmpq(step_size.numerator, step_size.denominator))
            matrix = -eta * hessian
            matrix[np.diag_indices(subject.dim)] += arb(1)
            signs[step_size] = matrices.determinant_sign(matrix)
    proved = frozenset(step_size for step_size, sign in signs.items() if sign)
    if not proved:
        raise UnprovedError(f"the determinant of I - eta H is not told from zero with {bits} bits")
    return Finding(NOTHING._replace(only=proved), scope, {"signs": {str(s): sign for s, sign in signs.items()}})


def identity_minus(mid: np.ndarray, rad: np.ndarray, step_size: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """``I - eta H`` as intervals, rounded outward."""
    eta = float(step_size)
    eta_error = abs(eta) * 2.0**-52 if Fraction(eta) != step_size else 0.0
    with np.errstate(all="ignore"):  # what overflows is refused by the regularity test
        product = eta * mid
        out = np.eye(len(mid)) - product
        size = np.abs(mid) + rad
        error = abs(eta) * rad + eta_error * size + 2.0**-52 * (np.abs(product) + np.abs(out))
        return out, error * (1 + 2.0**-48) + 2.0**-400


# Exact pieces
# -----------------------------------------------------------------------------------------------------


def verify_exact(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """The common roots of the characteristic polynomials at rational points, in exact arithmetic."""
    pattern, scope = pattern_of(subject, claim)
    coverage, _ = exact_coverage(subject, pattern, points_of(subject, claim, scope))
    return Finding(
        coverage, scope, {"excluded_curvatures": [[str(low), str(high)] for low, high in coverage.excluded]}
    )


def exact_coverage(
    subject: Subject, pattern: Pattern, points: Sequence[Sequence[Fraction]]
) -> tuple[Coverage, list[tuple[Fraction, Fraction]]]:
    """What exact spectra at some points prove on a pattern; also the candidates, enclosures of positive
    curvatures."""

    def hessians() -> Any:
        for point in points:
            hessian = subject.exact_hessian(point, pattern)[: subject.dim, : subject.dim]
            if any(entry is ANY for entry in hessian.ravel()):
                raise UnprovedError(
                    "the Hessian is not rational at rational points, or not the same for every pattern"
                )
            yield hessian

    found = common_eigenvalues(hessians())
    roots = [(fraction(root.lower), fraction(root.upper)) for root in positive_roots(found.polynomial)]
    return Coverage(((-np.inf, Fraction(0)), *roots)), roots


def verify_every_piece(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """All pieces, enumerated: on each the Hessian is evaluated at the points of the claim."""
    require_everywhere(subject)
    margins = affine_margins(subject)
    if margins is None:
        raise UnprovedError(
            "the kinks are not decided by affine functions of the parameters: the pieces cannot be listed"
        )
    if claim["n_pieces"] != margins.n_pieces:
        raise UnprovedError(f"there are {margins.n_pieces} pieces, not {claim['n_pieces']}")
    points = points_of(subject, claim, "everywhere")
    coverage: Coverage | None = None
    count, with_candidates = 0, 0
    singular: set[Fraction] = set()
    constants: dict[str, int] = {}
    for piece in every_piece(subject, margins):
        count += 1
        own, roots = piece_coverage(subject, piece.pattern, points, claim["method"], step_sizes)
        coverage = own if coverage is None else coverage.each(own)
        if roots or not own.covers_all(step_sizes):
            with_candidates += 1
            candidates = [low for low, high in roots if isinstance(low, Fraction) and low == high]
            for curvature in constant_curvatures(subject, piece.pattern, candidates):
                constants[str(curvature)] = constants.get(str(curvature), 0) + 1
                singular |= {size for size in step_sizes if curvature.is_exactly(1 / size)}
    if count != claim["n_pieces"] or coverage is None:
        raise UnprovedError(f"{count} pieces were listed, not {claim['n_pieces']}")
    figures = {"pieces": count, "pieces_with_candidates": with_candidates, "constant_curvatures": constants}
    return Finding(coverage, "everywhere", figures, frozenset(singular))


def piece_coverage(
    subject: Subject, pattern: Pattern, points: Sequence[Any], method: str, step_sizes: Sequence[Fraction]
) -> tuple[Coverage, list[Any]]:
    """What is proved on one piece, and the candidates for constant curvatures that are left."""
    if method == "exact":
        return exact_coverage(subject, pattern, points)
    coverage = NOTHING
    for point in points:
        hessian = own_block(subject, subject.hessian(point, pattern))
        union = matrices.union(*matrices.spectrum_enclosure(*hessian))
        coverage = coverage.both(Coverage(tuple((float(low), float(high)) for low, high in union)))
        if coverage.covers_all(step_sizes) if step_sizes else coverage.reach is not None:
            break
    return coverage, [(low, high) for low, high in coverage.positive if not is_negligible(low, high)]


# Constant curvatures
# ----------------------------------------------------------------------------------------------


def verify_constant(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """Directions on which the Hessian acts in the same way at all points of a piece, with a singular ``I - eta
    A``."""
    pattern, scope = piece_of(subject, claim)
    basis, action = rationals(claim["basis"]), rationals(claim["action"])
    if not is_constant_action(basis, subject.constant_images(pattern, basis), action):
        raise UnprovedError("the Hessian is not shown to act on these directions in one way at all points")
    curvatures = [Curvature(root) for root in positive_roots(exact_matrix(action).charpoly())]
    if step_sizes:
        singular = frozenset(size for size in step_sizes if is_singular(action, size))
    else:
        singular = frozenset(1 / c.exact if c.exact is not None else Fraction(1 / float(c)) for c in curvatures)
    figures = {"pattern": pattern.digest, "constant_curvatures": [str(c) for c in curvatures]}
    return Finding(NOTHING, scope, figures, singular)


def verify_vanishing(subject: Subject, claim: Claim, step_sizes: Sequence[Fraction]) -> Finding:
    """``det(I - eta H)`` is the zero polynomial on a piece."""
    pattern, scope = piece_of(subject, claim)
    singular = frozenset(size for size in step_sizes if vanishes(subject, pattern, 1 / size))
    if not singular:
        raise UnprovedError("the determinant is not shown to vanish identically")
    return Finding(NOTHING, scope, {"pattern": pattern.digest}, singular)


def rationals(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """A matrix of exact numbers of a record."""
    matrix = np.empty((len(rows), len(rows[0])), object)
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            number = Fraction(text)
            matrix[i, j] = fmpq(number.numerator, number.denominator)
    return matrix


RULES: dict[str, Callable[[Subject, Claim, Sequence[Fraction]], Finding]] = {
    "growth": verify_growth,
    "spectra": verify_spectra,
    "regular": verify_regular,
    "exact spectra": verify_exact,
    "every piece": verify_every_piece,
    "constant directions": verify_constant,
    "vanishing determinant": verify_vanishing,
}

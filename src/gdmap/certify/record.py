"""Proof records: written with a certificate, verified again from the loss and the record alone."""

import hashlib
import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gdmap.bracket import Bracket
from gdmap.certify.batches import listed_batches
from gdmap.certify.claims import Claim, UnprovedError, verify
from gdmap.certify.coverage import NOTHING, Coverage
from gdmap.certify.drawn import verify_drawn
from gdmap.certify.request import read_request
from gdmap.certify.step_sizes import counted, exact_step_size
from gdmap.certify.subject import Subject
from gdmap.maps import Map
from gdmap.objectives import AbstractObjective

FORMAT = "gdmap proof 1"
ASSUMED_BOUNDED = "the loss is bounded"
GRADIENT_DESCENT = "theta - eta grad L(theta)"
# Figures found again agree with those of the record up to this share.
FIGURES_AGREE = 1e-6
# Records of other statements: which room checks them.
OTHER_RECORDS = {
    "periodic orbit": ("periodic_orbit", "check_periodic_orbit"),
    "invertible box": ("box", "check_invertible"),
}
PACKAGES = ("gdmap", "jax", "jaxlib", "numpy", "python-flint")
ARITHMETIC = (
    "exact rationals (FLINT), balls (Arb), and midpoint-radius float64: IEEE double precision rounded to nearest, "
    "matrix products that sum the ordinary products in any order"
)


def new_record(
    subject: Subject,
    statement: dict[str, Any],
    claims: Sequence[Claim],
    assumptions: Sequence[str],
) -> dict[str, Any]:
    """The record of a proof: plain values, ready for JSON. ``statement`` is made by `statement_of`."""
    record = {
        "format": FORMAT,
        "statement": statement,
        "objective": subject.objective.describe(),
        "claims": list(claims),
        "assumptions": list(assumptions),
        "arithmetic": ARITHMETIC,
        "versions": {name: version(name) for name in PACKAGES},
    }
    record = json.loads(json.dumps(record))
    return {**record, "digest": digest(record)}


def statement_of(
    verdict: str,
    step_sizes: Sequence[Fraction],
    exact_decimals: bool,
    scope: str,
    note: str = "",
    batches: Any = None,
    probability: Bracket | None = None,
) -> dict[str, Any]:
    """What a record states: every word of it is verified.

    ``scope`` is ``'everywhere'``, ``'piece'`` or ``'drawn'``; ``batches`` is ``None`` for the full gradient,
    ``{'size': B}`` for every batch of a size, or a list of batches; ``note`` says how the determinant of an
    optimiser is that of gradient descent.
    """
    sure = None
    if probability is not None:
        sure = {"at_least": probability.lower, "confidence": probability.confidence}
    return {
        "verdict": verdict,
        "map": note or GRADIENT_DESCENT,
        "step_sizes": [str(size) for size in step_sizes] or "every",
        "exact_decimals": exact_decimals,
        "batches": batches,
        "scope": scope,
        "probability": sure,
        "up_to": None,
    }


def assumptions_of(subject: Subject, claims: Sequence[Claim]) -> list[str]:
    """What claims about a loss take on the user's word."""
    rules = [
        f"the own derivative rule of {name} is its derivative (compared)" for name in subject.pieces.assumed_rules
    ]
    return [ASSUMED_BOUNDED] * any(claim.get("assumed_bounded") for claim in claims) + rules


def up_to(coverage: Coverage) -> str | None:
    """Up to which step size every one is covered, as text; ``None`` if some below it are not."""
    return None if coverage.reach is None else repr(float(coverage.reach))


def digest(record: dict[str, Any]) -> str:
    """A hash of a record, its own digest aside: shows accidental changes; proofs are verified whatever it says."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def with_target(record: dict[str, Any], target: str) -> dict[str, Any]:
    """A record that also says where the loss is, ``path/to/file.py:name``, for the command line."""
    rest = {key: value for key, value in record.items() if key != "digest"} | {"target": target}
    return {**rest, "digest": digest(rest)}


def target_of(proof: Any) -> str | None:
    """Where a record says the loss is; ``None`` if it does not, or cannot be read."""
    try:
        record = read_record(proof)
    except (UnprovedError, ValueError):
        return None
    target = record.get("target") if isinstance(record, dict) else None
    return target if isinstance(target, str) else None


def written_record(record: dict[str, Any]) -> str:
    """A record as the text of its file."""
    return json.dumps(record, indent=1) + "\n"


def agree(one: Any, other: Any) -> bool:
    """Whether two sets of figures are the same, floats to the rounding of another machine."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= FIGURES_AGREE * max(1.0, abs(one), abs(other))
    return one == other


@dataclass(frozen=True)
class Check:
    """The outcome of verifying a record: truthy if the proof holds."""

    valid: bool
    reason: str

    def __bool__(self) -> bool:
        return self.valid


def check_proof(objective: AbstractObjective | Map, proof: dict[str, Any] | str | os.PathLike[str]) -> Check:
    """Verify a proof record again, from the objective and the record alone.

    Every enclosure is computed anew and must agree with the figures of the record. The record must be about this
    objective: the fingerprint of its trace and data is compared.

    Parameters
    ----------
    objective
        The loss, or the map, that the certificate is about.
    proof
        ``certificate.proof``, or the path of a file written by ``certificate.save``.

    Returns
    -------
    Check
        Truthy if the verdict follows; ``reason`` says what was verified, or what fails.
    """
    if not isinstance(objective, (AbstractObjective, Map)):
        raise TypeError(f"expected a gdmap objective or map, got {type(objective).__name__}")
    if not isinstance(proof, (dict, str, os.PathLike)):
        raise TypeError(f"expected a proof record or the path of one, got {type(proof).__name__}")
    try:
        record = read_record(proof)
        if record.get("kind") in OTHER_RECORDS:
            return other_check(objective, record)
        return checked(objective, record)
    except UnprovedError as error:
        return Check(False, str(error))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, PackageNotFoundError) as error:
        return Check(False, f"the record is damaged: {type(error).__name__}: {error}")


def other_check(map_: Any, record: dict[str, Any]) -> Check:
    """The check of a record about a periodic orbit or a box; its subject is a map."""
    if not isinstance(map_, Map):
        raise UnprovedError(f"a record about a {record['kind']} is checked with its map, not the objective")
    room, name = OTHER_RECORDS[record["kind"]]
    valid, reason = getattr(importlib.import_module(f"gdmap.certify.{room}"), name)(map_, record)
    return Check(bool(valid), reason)


def read_record(proof: Any) -> dict[str, Any]:
    """A record, from a file if need be."""
    if isinstance(proof, dict):
        return as_record(proof)
    try:
        return as_record(json.loads(Path(proof).read_text()))
    except UnicodeDecodeError as error:
        raise UnprovedError("the record is no text, hence no JSON") from error
    except OSError as error:
        raise UnprovedError(f"the record cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise UnprovedError(f"the record is no JSON: {error}") from error


def as_record(value: Any) -> dict[str, Any]:
    """A value, if it looks like a record."""
    if not isinstance(value, dict) or not ("format" in value or "kind" in value):
        raise UnprovedError("this is no proof record of gdmap (Certificate.save writes one)")
    return value


def checked(subject_of_proof: AbstractObjective | Map, record: dict[str, Any]) -> Check:
    """Whether the verdict of a record follows from its claims."""
    if record["format"] != FORMAT:
        raise UnprovedError(f"the record has format {record['format']!r}, not {FORMAT!r}")
    if record["digest"] != digest(record):
        raise UnprovedError("the record was changed after it was written: its digest does not match")
    statement = record["statement"]
    objective = subject_of_proof.objective if isinstance(subject_of_proof, Map) else subject_of_proof
    about, own = record["objective"], objective.describe()
    if about["fingerprint"] != own["fingerprint"]:
        older = {name: v for name, v in record["versions"].items() if version(name) != v}
        hint = f" (the record was made with {older}, which may trace it differently)" if older else ""
        raise UnprovedError(f"the record is about another objective: the fingerprints of the traces differ{hint}")
    if statement["step_sizes"] != "every" and not isinstance(statement["step_sizes"], list):
        raise UnprovedError("the step sizes of the statement are no list")
    sizes = () if statement["step_sizes"] == "every" else tuple(map(exact_step_size, statement["step_sizes"]))
    if statement["step_sizes"] != "every" and not sizes:
        raise UnprovedError("the record names no step size")
    closed_form = [claim["kind"] for claim in record["claims"]] == ["closed form"]
    if isinstance(subject_of_proof, Map):
        request = read_request(subject_of_proof, None, bool(statement["exact_decimals"]))
        if (
            (request.map or GRADIENT_DESCENT) != statement["map"]
            or request.step_sizes != sizes
            or request.always != closed_form
        ):
            raise UnprovedError("the record is about another map on this objective")
        if closed_form:
            return Check(statement["verdict"] == "non-singular", f"closed form verified: {request.map}")
    elif statement["map"] != GRADIENT_DESCENT or closed_form:
        raise UnprovedError("the record is about an optimiser: pass the map, not its objective")
    subject = Subject(objective, bool(statement["exact_decimals"]))
    if list(record["assumptions"]) != assumptions_of(subject, record["claims"]):
        raise UnprovedError("the record does not list the assumptions that its claims make")
    check_batches(objective, statement, record["claims"])
    coverage, probability = NOTHING, None
    singular: set[Fraction] = set()
    scopes: set[str] = set()
    places: set[str] = set()
    for claim in record["claims"]:
        if claim["kind"] == "drawn pieces":
            finding, probability, found = verify_drawn(subject, claim, sizes)
            singular |= found
        else:
            finding = verify(subject, claim, sizes)
        if not agree(json.loads(json.dumps(finding.figures)), claim.get("found")):
            raise UnprovedError(
                f"the figures of the claim '{claim['kind']}' are not those that verification finds"
            )
        singular |= finding.singular
        scopes.add(finding.scope)
        places.add("" if finding.scope == "everywhere" else json.dumps(claim.get("point")))
        coverage = coverage.both(finding.coverage)
    assumed = f", assuming that {' and '.join(record['assumptions'])}" if record["assumptions"] else ""
    verdict = statement["verdict"]
    if verdict == "undecided":
        return Check(False, "the record decides nothing")
    if verdict == "singular":
        if not singular:
            raise UnprovedError("the claims do not prove the map singular at these step sizes")
        kinds = {claim["kind"] for claim in record["claims"]}
        whole = scopes == {"everywhere"} and kinds <= {"constant directions", "vanishing determinant"}
        where = "all of parameter space" if whole else "a piece of positive measure"
        if statement["batches"] is not None:
            where = "the map of a mini-batch"
        named = ", ".join(map(str, sorted(singular)))
        return Check(True, f"singular at step size {named}, on {where}: verified{assumed}")
    if verdict != "non-singular":
        raise UnprovedError(f"{verdict!r} is no verdict")
    if len(places) != 1:
        raise UnprovedError("the claims are about different pieces, or there are none")
    if scopes != {statement["scope"]}:
        raise UnprovedError(f"the claims prove the statement on the scope {scopes}, not {statement['scope']!r}")
    reach = None if sizes else up_to(coverage)
    if not (coverage.covers_all(sizes) if sizes else reach is not None) or not agree(reach, statement["up_to"]):
        raise UnprovedError("the claims do not cover the step sizes of the statement")
    stated = statement_of("", (), False, "", probability=probability)["probability"]
    if not agree(stated, statement["probability"]):
        raise UnprovedError(f"the claims prove the probability {stated}, not {statement['probability']}")
    if not sizes and statement["up_to"] != "inf":
        assumed = f" up to step size {float(statement['up_to']):.4g}{assumed}"
    where = {"everywhere": "on all of parameter space", "piece": "on the piece of the record"}.get(
        statement["scope"], ""
    )
    if probability is not None:
        confidence = 100 * (probability.confidence or 0)
        where = f"on pieces of probability at least {probability.lower:.4g} at confidence {confidence:g} %"
        if any(claim.get("law") == "given" for claim in record["claims"]):
            where += " (taking the draws of the record for independent draws of their law)"
    return Check(True, f"non-singular {where}, {counted(len(record['claims']), 'claim')} verified{assumed}")


def check_batches(objective: AbstractObjective, statement: dict[str, Any], claims: Sequence[Claim]) -> None:
    """Refuse claims about mini-batches that are not those of the statement."""
    about = statement["batches"]
    kinds = {claim["kind"] for claim in claims}
    if about is None:
        if kinds & {"each batch", "every batch"}:
            raise UnprovedError("a claim is about mini-batches, the statement about the full gradient")
        return
    if len(claims) != 1 or not kinds <= {"each batch", "every batch"}:
        raise UnprovedError("a statement about mini-batches needs one claim about them")
    size = about["size"] if isinstance(about, dict) else None
    if kinds == {"every batch"}:
        if claims[0]["batch_size"] != size:
            raise UnprovedError("the claim is about batches of another size")
        return
    wanted = listed_batches(objective, size, None if size is not None else about)
    given = [tuple(entry["batch"]) for entry in claims[0]["batches"]]
    if wanted is None or not set(given) <= set(wanted):
        raise UnprovedError("the claim is about other batches than the statement")
    if statement["verdict"] != "singular" and set(given) != set(wanted):
        raise UnprovedError("the claim leaves out some of the batches of the statement")

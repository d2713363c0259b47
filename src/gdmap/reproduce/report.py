"""What a reproduction found, claim by claim, and how it is written down."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from matplotlib.figure import Figure

from gdmap.bracket import Bracket

Agreement = Literal["yes", "no", "corrected", "undecided", "not reproducible"]
AGREEMENTS = {
    "yes": "what was found agrees with the statement",
    "no": "what was found does not agree with the statement",
    "corrected": "the statement holds after a correction, which is given",
    "undecided": "the numbers of this run decide neither way: its intervals are too wide",
    "not reproducible": "no computation can tell, or what was published does not say enough; the reason is given",
}


PROVED = {True: ", proved", False: "", "instances": ", proved for the instances named"}


@dataclass(frozen=True)
class Claim:
    """One statement of a paper beside what was found.

    Attributes
    ----------
    statement
        What the paper says, in our words.
    source
        Where: paper, theorem or figure.
    run
        What was computed to test it.
    found
        The numbers by name; each carries its interval, status and method.
    agrees
        ``'yes'``, ``'no'``, ``'corrected'`` (it holds in a corrected form, which ``conclusion`` gives),
        ``'undecided'`` (the intervals of the run are too wide) or ``'not reproducible'`` (with the reason):
        decided by the numbers of the run.
    conclusion
        What follows, in plain sentences.
    proved
        Whether the statement (or its correction) is proved, in exact or ball arithmetic, by proofs that the run
        verified; ``'instances'`` for a general statement that is proved for the instances that the run names.
    paper
        The paper, where it is not that of the report.
    figure
        The picture of the report that shows it, by file name without the ending.
    """

    statement: str
    source: str
    run: str
    found: Mapping[str, Bracket]
    agrees: Agreement
    conclusion: str
    proved: bool | Literal["instances"] = False
    paper: str | None = None
    figure: str | None = None

    def __post_init__(self) -> None:
        if self.agrees not in AGREEMENTS:
            raise ValueError(f"agrees must be one of {', '.join(map(repr, AGREEMENTS))}, not {self.agrees!r}")
        if self.proved and self.agrees not in ("yes", "corrected"):
            raise ValueError(f"a statement cannot be proved and have agrees={self.agrees!r}")


@dataclass(frozen=True, eq=False)
class Report:
    """The outcome of a reproduction: claims, data and pictures.

    Attributes
    ----------
    name, title, paper
        Of the reproduction.
    claims
        Each a `Claim`.
    data
        Everything that is drawn or counted.
    figures
        Pictures by file name without the ending.
    quick
        Whether it was a short run, with fewer points and simulations.
    """

    name: str
    title: str
    paper: str
    claims: tuple[Claim, ...]
    data: xr.Dataset = field(repr=False)
    figures: Mapping[str, Figure] = field(repr=False)
    quick: bool = False

    def markdown(self) -> str:
        """The report as Markdown, with the pictures beside it."""
        lines = [f"# {self.title}", "", f"Reproduction `{self.name}` of {self.paper}.", ""]
        if self.quick:
            lines += ["A quick run: fewer points and simulations than the full one.", ""]
        for stem in self.figures:
            lines += [f"![{stem}]({stem}.png)", ""]
        for number, claim in enumerate(self.claims, 1):
            lines += [f"## {number}. {claim.statement}", "", f"*{claim.source}*", ""]
            verdict = claim.agrees.capitalize() + PROVED[claim.proved]
            lines += [f"**{verdict}.** {claim.conclusion}", "", f"What was run: {claim.run}", ""]
            if claim.found:
                lines += ["| found | value | interval | status |", "|---|---:|---|---|"]
                for name, bracket in claim.found.items():
                    value, interval = number_of(bracket), interval_of(bracket)
                    lines.append(f"| {escaped(name)} | {value} | {interval} | {status_of(bracket)} |")
                lines.append("")
        lines += ["The numbers behind the pictures are in `data.zarr`, the findings also in `report.json`.", ""]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The report as a plain record, without data and pictures."""
        claims = [
            {
                "statement": claim.statement,
                "source": claim.source,
                "paper": claim.paper or self.paper,
                "agrees": claim.agrees,
                "proved": claim.proved,
                "figure": claim.figure,
                "conclusion": claim.conclusion,
                "run": claim.run,
                "found": {name: record_of(bracket) for name, bracket in claim.found.items()},
            }
            for claim in self.claims
        ]
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "quick": self.quick,
            "claims": claims,
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write ``report.md``, ``report.json``, ``data.zarr`` and the pictures into ``folder``; their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for stem, figure in self.figures.items():
            pictures.append(folder / f"{stem}.png")
            figure.savefig(pictures[-1], dpi=150)
        self.data.to_zarr(folder / "data.zarr", mode="w", consolidated=False, zarr_format=3)
        (folder / "report.md").write_text(self.markdown())
        (folder / "report.json").write_text(json.dumps(self.record(), indent=2))
        return [folder / "report.md", folder / "report.json", folder / "data.zarr", *pictures]


def escaped(words: str) -> str:
    """Words for a cell of a Markdown table."""
    return words.replace("|", "\\|").replace("\n", " ")


def number_of(bracket: Bracket) -> str:
    """The value up to its first uncertain digit, at most nine digits; more where it is an end of its interval."""
    half = max(bracket.upper - bracket.value, bracket.value - bracket.lower)
    if not math.isfinite(bracket.value) or bracket.value == 0 or not math.isfinite(half):
        return f"{bracket.value:.4g}"
    known = 9 if half == 0 else math.floor(math.log10(abs(bracket.value))) - math.floor(math.log10(half)) + 1
    if bracket.value in (bracket.lower, bracket.upper) and half > 0:
        known = max(known, 4)  # as many digits as the interval is printed with, so that it holds the value
    return f"{bracket.value:.{min(max(known, 2), 9)}g}"


def interval_of(bracket: Bracket) -> str:
    """The interval, or its half-width where the digits would not show it."""
    if bracket.lower == bracket.upper:
        return "exact"
    half = max(bracket.upper - bracket.value, bracket.value - bracket.lower)
    if bracket.value != 0 and half < 1e-6 * abs(bracket.value):
        return f"± {half:.1e}"
    return f"[{bracket.lower:.4g}, {bracket.upper:.4g}]"


def status_of(bracket: Bracket) -> str:
    """The status, with the confidence where it has one."""
    return bracket.status if bracket.confidence is None else f"{bracket.status}, {100 * bracket.confidence:g} %"


def record_of(bracket: Bracket) -> dict[str, Any]:
    """A bracket as a plain record that JSON can hold: infinite numbers as strings."""
    numbers = {end: getattr(bracket, end) for end in ("value", "lower", "upper")}
    return {
        **asdict(bracket),
        **{end: number if math.isfinite(number) else str(number) for end, number in numbers.items()},
    }

"""All reports in one table, claim by claim: what the papers say, and its status here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gdmap.reproduce.papers import LARGE_LEARNING_RATES, NON_SINGULARITY
from gdmap.reproduce.report import escaped

PAPERS = (LARGE_LEARNING_RATES, NON_SINGULARITY)
STATUSES = {
    "yes": "reproduced",
    "no": "does not agree",
    "corrected": "corrected",
    "undecided": "undecided by this run",
    "not reproducible": "not reproducible",
}
HEADER = """# The papers' statements, claim by claim

Every row is written by a run of `gdmap reproduce`: the status is decided by the numbers of that run, which its
report lists with their intervals. *Proved*: the run verified a proof in exact or ball arithmetic; *for
instances*: of a general statement, for the instances that the row names. *Reproduced*: computed or sampled in
floating point, and it agrees. *Corrected*: it holds after a correction, which is given, with the counterexample
running. *Not reproducible*: no computation can tell, or the sources at hand do not say enough. The first paper
is known here through its abstracts and summaries ("as reported"), the second was read in full.
"""


def read_reports(folder: Path | str) -> list[dict[str, Any]]:
    """The records ``NAME/report.json`` in a folder, in the order of their names.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    files = sorted(Path(folder).glob("*/report.json"))
    if not files:
        raise FileNotFoundError(
            f"there is no report below {folder}: run gdmap reproduce NAME --out {folder}/NAME first"
        )
    return [read_report(file) for file in files]


def read_report(file: Path) -> dict[str, Any]:
    """The record of one report, or an error that names the file."""
    try:
        record = json.loads(file.read_text())
        complete = {"name", "paper", "quick", "claims"} <= set(record)
    except (ValueError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{file} is not the record of a report: run gdmap reproduce {file.parent.name} again")
    return record


def reproduction_table(reports: Sequence[Mapping[str, Any]], pictures: str) -> str:
    """The reports as one Markdown page, a table for each paper; ``pictures`` is the path to their folders."""
    lines = [HEADER]
    papers = list(PAPERS)
    papers += sorted({claim["paper"] for report in reports for claim in report["claims"]} - set(papers))
    for paper in papers:
        rows = [
            row_of(report, claim, pictures)
            for report in reports
            for claim in report["claims"]
            if claim["paper"] == paper
        ]
        if rows:
            lines += [f"## {paper}", "", "| statement | source | status | why | command | figure |"]
            lines += ["|---|---|---|---|---|---|", *rows, ""]
    runs = [f"`{report['name']}`{' (quick)' if report['quick'] else ''}" for report in reports]
    lines += [f"Reports: {', '.join(runs)}. `gdmap reproduce --table {pictures}` writes this page from them.", ""]
    return "\n".join(lines)


def row_of(report: Mapping[str, Any], claim: Mapping[str, Any], pictures: str) -> str:
    """One claim as a row."""
    status = status_of_claim(claim)
    name = report["name"]
    stem = claim["figure"]
    figure = f"[{stem}]({pictures}/{name}/{stem}.png)" if stem else ""
    found = f"{claim['conclusion']} ([numbers]({pictures}/{name}/report.md))"
    command = f"`gdmap reproduce {name}`"
    cells = (claim["statement"], claim["source"], status, found, command, figure)
    return "| " + " | ".join(map(escaped, cells)) + " |"


def status_of_claim(claim: Mapping[str, Any]) -> str:
    """The status in a word or two."""
    if not claim["proved"]:
        return STATUSES[claim["agrees"]]
    proved = "proved for instances" if claim["proved"] == "instances" else "proved"
    return proved if claim["agrees"] == "yes" else f"{STATUSES[claim['agrees']]}, {proved}"


def write_table(folder: Path | str) -> Path:
    """Write ``FOLDER.md`` beside the folder of reports; its path."""
    folder = Path(folder)
    page = folder.with_name(f"{folder.name}.md")
    page.write_text(reproduction_table(read_reports(folder), folder.name))
    return page

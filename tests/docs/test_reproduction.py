import json
from pathlib import Path

import pytest

from gdmap.reproduce import REPRODUCTIONS
from gdmap.reproduce.papers import LARGE_LEARNING_RATES, NON_SINGULARITY
from gdmap.reproduce.table import read_reports, reproduction_table

DOCS = Path(__file__).resolve().parents[2] / "docs"
REPORTS = DOCS / "reproduction"


def test_the_page_is_what_the_reports_make_it():
    assert (DOCS / "reproduction.md").read_text() == reproduction_table(read_reports(REPORTS), "reproduction")


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_reproduction_was_run_in_full_and_shows_its_pictures(name):
    report = json.loads((REPORTS / name / "report.json").read_text())
    assert report["name"] == name and not report["quick"]
    assert [claim["statement"] for claim in report["claims"]] == list(REPRODUCTIONS[name].statements)
    for claim in report["claims"]:
        assert claim["figure"] is None or (REPORTS / name / f"{claim['figure']}.png").is_file()


def test_no_statement_has_two_rows_and_both_papers_have_theirs():
    claims = [claim for report in read_reports(REPORTS) for claim in report["claims"]]
    statements = [claim["statement"] for claim in claims]
    assert len(set(statements)) == len(statements)
    assert {claim["paper"] for claim in claims} == {LARGE_LEARNING_RATES, NON_SINGULARITY}


def test_the_readme_lists_every_reproduction():
    readme = (DOCS.parent / "README.md").read_text()
    for name in REPRODUCTIONS:
        assert f"`{name}`" in readme, name

import json

import pytest

from gdmap.reproduce.papers import LARGE_LEARNING_RATES, NON_SINGULARITY
from gdmap.reproduce.table import read_reports, reproduction_table, status_of_claim, write_table


def record(name="sky", agrees="yes", proved=False, paper=NON_SINGULARITY, figure="sky"):
    claim = {
        "statement": "The sky is |green|.",
        "source": "Figure 1",
        "paper": paper,
        "agrees": agrees,
        "proved": proved,
        "figure": figure,
        "conclusion": "It is\nblue.",
        "run": "A look.",
        "found": {},
    }
    return {"name": name, "title": "The sky", "paper": paper, "quick": False, "claims": [claim]}


@pytest.mark.parametrize(
    ("agrees", "proved", "words"),
    [
        ("yes", True, "proved"),
        ("yes", False, "reproduced"),
        ("corrected", False, "corrected"),
        ("corrected", True, "corrected, proved"),
        ("yes", "instances", "proved for instances"),
        ("not reproducible", False, "not reproducible"),
        ("no", False, "does not agree"),
        ("undecided", False, "undecided by this run"),
    ],
)
def test_the_status_of_a_claim(agrees, proved, words):
    assert status_of_claim(record(agrees=agrees, proved=proved)["claims"][0]) == words


def test_a_row_for_every_claim_under_its_paper():
    page = reproduction_table([record(), record("sea", paper=LARGE_LEARNING_RATES, figure=None)], "reports")
    first, second = page.index(f"## {LARGE_LEARNING_RATES}"), page.index(f"## {NON_SINGULARITY}")
    assert first < page.index("`gdmap reproduce sea`") < second < page.index("`gdmap reproduce sky`")
    row = next(line for line in page.splitlines() if "reproduce sky" in line)
    assert row.startswith("| The sky is \\|green\\|. | Figure 1 | reproduced | It is blue. ")
    assert "[sky](reports/sky/sky.png)" in row and "(reports/sky/report.md)" in row
    assert row.replace("\\|", "").count("|") == 7


def test_a_page_is_written_beside_the_reports(tmp_path):
    folder = tmp_path / "reports"
    with pytest.raises(FileNotFoundError, match="there is no report below"):
        write_table(folder)
    (folder / "bad").mkdir(parents=True)
    (folder / "bad" / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the record of a report: run gdmap reproduce bad again"):
        write_table(folder)
    (folder / "bad" / "report.json").unlink()
    for name in ("sky", "sea"):
        (folder / name).mkdir(parents=True)
        (folder / name / "report.json").write_text(json.dumps(record(name)))
    assert [one["name"] for one in read_reports(folder)] == ["sea", "sky"]
    page = write_table(folder)
    assert page == tmp_path / "reports.md"
    assert page.read_text() == reproduction_table(read_reports(folder), "reports")

import json
import math

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from gdmap import Bracket
from gdmap.reproduce import Claim, Report
from gdmap.reproduce.report import interval_of, number_of, record_of, status_of


def report(**changes):
    found = {
        "pole": Bracket(-math.inf, -math.inf, -1.0, "computed", "by hand"),
        "share": Bracket(0.25, 0.2, 0.31, "estimated", "counted", 0.95),
    }
    claim = Claim("The sky is green.", "Figure 1", "A look.", found, "no", "It is blue.")
    picture = Figure()
    picture.subplots().plot([0, 1])
    data = xr.Dataset({"x": ("place", np.arange(3.0))})
    return Report(
        **{"name": "sky", "title": "The sky", "paper": "A paper", "claims": (claim,)} | changes,
        **{"data": data, "figures": {"sky": picture}},
    )


def test_a_report_is_written_and_read(tmp_path):
    written = report(quick=True).save(tmp_path / "new" / "folder")
    assert {path.name for path in written} == {"report.md", "report.json", "data.zarr", "sky.png"}
    assert all(path.exists() for path in written)
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    for words in ("# The sky", "![sky](sky.png)", "A quick run", "## 1. The sky is green.", "**No.** It is blue."):
        assert words in text
    assert "| share | 0.25 | [0.2, 0.31] | estimated, 95 % |" in text
    record = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert record["claims"][0]["found"]["pole"]["value"] == "-inf"
    assert record["claims"][0]["found"]["share"]["confidence"] == 0.95
    stored = xr.open_zarr(tmp_path / "new" / "folder" / "data.zarr", consolidated=False)
    np.testing.assert_array_equal(stored["x"], [0, 1, 2])
    report().save(tmp_path / "new" / "folder")  # again, over the first
    assert "A quick run" not in (tmp_path / "new" / "folder" / "report.md").read_text()


def test_numbers_have_the_digits_that_their_intervals_support():
    assert number_of(Bracket(1.23456789, 1.23, 1.24, "computed", "")) == "1.235"
    assert number_of(Bracket(1.23456789012, 1.23456789011, 1.23456789013, "computed", "")) == "1.23456789"
    assert number_of(Bracket(3.0, 3.0, 3.0, "computed", "")) == "3"
    assert number_of(Bracket(0.0, -1e-3, 1e-3, "computed", "")) == "0"
    assert number_of(Bracket(-math.inf, -math.inf, 0.0, "computed", "")) == "-inf"
    assert number_of(Bracket(5.0, -math.inf, 6.0, "computed", "")) == "5"
    assert interval_of(Bracket(3.0, 3.0, 3.0, "computed", "")) == "exact"
    assert interval_of(Bracket(3.0, 3.0 - 1e-9, 3.0 + 2e-9, "computed", "")) == "± 2.0e-09"
    assert status_of(Bracket(3.0, 2.0, 4.0, "estimated", "", 0.9)) == "estimated, 90 %"
    assert record_of(Bracket(1.0, -math.inf, 2.0, "computed", ""))["lower"] == "-inf"


def test_a_claim_agrees_or_does_not():
    with pytest.raises(
        ValueError,
        match="agrees must be one of 'yes', 'no', 'corrected', 'undecided', 'not reproducible', not 'maybe'",
    ):
        Claim("a", "b", "c", {}, "maybe", "d")

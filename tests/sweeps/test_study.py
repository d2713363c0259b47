import numpy as np
import pytest

from gdmap import LinearNetwork
from gdmap.sweeps import Study, load_objective, read_study
from gdmap.sweeps.study import DataTable, ObjectiveTable, SweepTable

TEXT = """
[data]
inputs = "X.csv"
targets = "y.csv"
scale = "overall"

[objective]
hidden = [3]

[sweep]
step_sizes = [0.1, 0.2]
starts = 4
scale = [0.1, 0.5]
max_steps = 50
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "X.csv", rng.normal(size=(20, 2)), delimiter=",")
    np.savetxt(tmp_path / "y.csv", rng.normal(size=(20, 1)), delimiter=",")
    (tmp_path / "study.toml").write_text(TEXT)
    return tmp_path


def test_a_study_runs_from_its_file(folder):
    study = read_study(folder / "study.toml")
    objective = study.make_objective()
    assert isinstance(objective, LinearNetwork) and objective.widths == (2, 3, 1)
    assert "divided by one overall standard deviation" in objective.provenance
    dataset = study.run(objective, None, None)
    assert dataset.fate.shape == (2, 2, 4)


def test_a_written_study_is_the_same_study_elsewhere(folder, tmp_path_factory):
    study = read_study(folder / "study.toml")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy.toml"
    study.write(elsewhere)
    again = read_study(elsewhere)
    assert again.sweep == study.sweep and again.objective == study.objective
    np.testing.assert_array_equal(again.make_data().inputs, study.make_data().inputs)


def test_objectives_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gdmap\ndef make():\n    return gdmap.Function(lambda w: w @ w, 3)\nready = make()\nnumber = 3\n"
    )
    assert load_objective("mine.py:make", tmp_path).dim == 3
    assert load_objective("mine.py:ready", tmp_path).dim == 3
    study = Study(objective=ObjectiveTable(file="mine.py:ready"), sweep=SweepTable((0.1,), 2), base=tmp_path)
    assert study.run(study.make_objective(), None, None).fate.shape == (1, 2)
    (tmp_path / "wrong.py").write_text("def make():\n    return 1 / 0\n")
    (tmp_path / "syntax.py").write_text("x = (\n")
    for reference, error, message in (
        ("wrong.py:make", ValueError, "raised ZeroDivisionError"),
        ("syntax.py:make", ValueError, "syntax.py, line 1 raised SyntaxError"),
        ("mine.py:number", ValueError, "not a gdmap objective"),
        ("mine.py:nothing", ValueError, "defines no 'nothing'"),
        ("mine.py", ValueError, "path/to/file.py:name"),
        ("other.py:x", FileNotFoundError, "no file"),
    ):
        with pytest.raises(error, match=message):
            load_objective(reference, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data\n", "not a TOML file"),
        ("[dat]\n", r"unknown tables \['dat'\]"),
        ("data = 3\n", r"\[data\] must be a table"),
        ("[sweep]\nstarts = 2.5\n", "starts in .sweep. must be int, got 2.5"),
        ("[sweep]\nscale = true\n", "scale in .sweep. must be"),
        ("[sweep]\nstep_sizes = 0.5\n", "step_sizes in .sweep. must be"),
        ("[data]\ncentre = 'x'\n", "centre in .data. must be"),
        ("[objective]\nfile = 5\n", "file in .objective. must be"),
        ("[objective]\nhidden = 8\n", "hidden in .objective. must be"),
        ("[sweep]\nstep_size = [0.1]\n", r"\[sweep\] has unknown keys \['step_size'\]"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "study.toml")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (Study(), "no data: give --digits, or --inputs"),
        (Study(DataTable(source="mnist")), "source must be 'digits'"),
        (Study(DataTable(source="digits", inputs="X.csv")), "not both"),
        (Study(DataTable(source="digits", scale="unit")), "scale must be"),
        (Study(DataTable(source="digits", components=100)), "components must be from 1 to 64"),
        (Study(DataTable(source="digits"), ObjectiveTable(file="a.py:b")), "without data"),
    ],
)
def test_contradictory_studies(study, message):
    with pytest.raises(ValueError, match=message):
        study.make_objective()

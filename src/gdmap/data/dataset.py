"""A data set with the record of how it was preprocessed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gdmap.objectives import LinearNetwork

Scale = Literal["overall", "component"] | None


@dataclass(frozen=True, eq=False)
class DataSet:
    """Inputs ``(m, d_0)``, targets ``(m, d_N)`` and, in words, where they come from and what was done to them.

    Preprocessing changes every threshold, so ``provenance`` travels with the results.
    """

    inputs: np.ndarray
    targets: np.ndarray
    provenance: str

    def linear_network(
        self, hidden: Sequence[int] = (), *, loss: str | Callable[[Any], Any] = "squared"
    ) -> LinearNetwork:
        """The `LinearNetwork` on these data with the given hidden widths and loss."""
        widths = (self.inputs.shape[1], *hidden, self.targets.shape[1])
        return LinearNetwork(widths, self.inputs, self.targets, loss=loss, provenance=self.provenance)


def preprocessed(
    inputs: np.ndarray,
    components: int | None = None,
    centre: bool = True,
    scale: Scale = "overall",
) -> tuple[np.ndarray, str]:
    """Inputs centred, projected on their leading principal components and scaled, and that in words.

    Parameters
    ----------
    inputs
        Shape ``(m, d)``.
    components
        Keep this many principal components (of the second-moment matrix where not centred), largest first;
        each direction has its sign fixed by its largest entry being positive.
    centre
        Subtract the mean of every column.
    scale
        ``'overall'``: divide everything by one standard deviation, that of all entries; ``'component'``: every
        column by its own; ``None``: leave the units. Columns that are constant are left alone.

    Raises
    ------
    ValueError
        For more components than columns, or an unknown scale.
    """
    inputs = np.asarray(inputs, dtype=float)
    words = []
    if scale not in ("overall", "component", None):
        raise ValueError(f"scale must be 'overall', 'component' or None, got {scale!r}")
    if not np.all(np.isfinite(inputs)):
        raise ValueError("inputs hold values that are not finite: remove or impute them")
    if centre:
        inputs = inputs - inputs.mean(axis=0)
        words.append("inputs centred")
    else:
        words.append("inputs not centred")
    if components is not None:
        if not 1 <= components <= min(inputs.shape):
            raise ValueError(f"components must be from 1 to {min(inputs.shape)}, got {components}")
        directions = np.linalg.svd(inputs, full_matrices=False)[2][:components]
        largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
        inputs = inputs @ (directions * np.sign(largest)).T
        words.append(f"first {components} principal components")
    if scale == "overall":
        deviation = float(inputs.std())
        inputs = inputs / (deviation or 1.0)
        words.append(f"divided by one overall standard deviation ({deviation:.6g})")
    elif scale == "component":
        deviations = inputs.std(axis=0)
        inputs = inputs / np.where(deviations > 0, deviations, 1.0)
        words.append("each component divided by its standard deviation")
    else:
        words.append("not scaled")
    return inputs, ", ".join(words)


def one_hot(labels: np.ndarray) -> tuple[np.ndarray, str]:
    """Labels ``(m,)`` as centred one-hot vectors ``(m, classes)``, classes in increasing order, and words."""
    classes = np.unique(labels)
    encoded = (labels[:, None] == classes).astype(float)
    return encoded - encoded.mean(axis=0), f"targets one-hot of {len(classes)} classes, centred"

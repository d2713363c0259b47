"""Lyapunov exponents on their way to the final estimate."""

import textwrap

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# So many exponents have a line in the legend; more share their colours.
NAMED = 10
# The line at 0 is in the picture if it is no farther away than so many times what is drawn.
NEAR = 3.0


def plot_lyapunov(dataset: xr.Dataset, title: str | None = None) -> Figure:
    """The running estimates of the Lyapunov exponents against the number of steps, with the final intervals.

    The bars at the right end are the intervals at the confidence of the dataset. Exponents of ``-inf`` (a
    derivative that is exactly 0) have no line and are named in the legend.

    Parameters
    ----------
    dataset
        The result of `gdmap.lyapunov_spectrum` for one start (``dataset.isel(start=0)``).
    title
        A title above the picture; by default the map.

    Raises
    ------
    ValueError
        If the dataset is not such a result, or holds several starts.
    """
    if "history" not in dataset or "exponent" not in dataset:
        raise ValueError("plot_lyapunov draws the result of gdmap.lyapunov_spectrum: this dataset has no history")
    if "start" in dataset.dims:
        if dataset.sizes["start"] > 1:
            raise ValueError(
                f"plot_lyapunov draws one start, this dataset has {dataset.sizes['start']}: choose one with "
                "dataset.isel(start=0)"
            )
        dataset = dataset.isel(start=0)
    history = dataset["history"].transpose("block", "k").values
    steps = np.asarray(dataset["step"].values, float)
    value, lower, upper = (dataset[name].values for name in ("exponent", "lower", "upper"))
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="black", lw=1)
    last = float(steps[-1])
    count = len(value)
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        finite = np.isfinite(history[:, i])
        words = f"{i + 1}: {value[i]:.5g}"
        if np.isfinite(lower[i]) and np.isfinite(upper[i]) and upper[i] > lower[i]:
            words += f" in [{lower[i]:.5g}, {upper[i]:.5g}]"
        label = words if i < NAMED else None
        axes.plot(steps[finite], history[finite, i], color=colour, lw=1.1, label=label)
        if np.isfinite(value[i]):
            # Intervals side by side, so that close ones can be told apart.
            place = last * (1.03 + 0.02 * (i % 5))
            sides = [[max(value[i] - lower[i], 0)], [max(upper[i] - value[i], 0)]]
            bars = sides if np.all(np.isfinite(sides)) else None
            axes.errorbar([place], [value[i]], yerr=bars, fmt="o", ms=3.5, capsize=3, color=colour)
    axes.axvline(last, color="#888888", lw=0.8, ls=":")
    finite = history[len(history) // 2 :]
    finite = finite[np.isfinite(finite)]
    ends = np.concatenate(
        [finite, value[np.isfinite(value)], lower[np.isfinite(lower)], upper[np.isfinite(upper)]]
    )
    if ends.size:
        # The running means of the first half say little and may lie far out; 0 is shown if it is near.
        low, high = float(ends.min()), float(ends.max())
        span = (high - low) or 0.1 * abs(high) or 0.1
        low, high = min(low, 0.0) if low <= NEAR * span else low, max(high, 0.0) if high >= -NEAR * span else high
        axes.set_ylim(low - 0.08 * span, high + 0.08 * span)
    axes.set_xlim(0, 1.14 * last)
    axes.set_xlabel("steps after the warm-up (final intervals to the right of the dotted line)")
    axes.set_ylabel("Lyapunov exponent per step")
    axes.grid(alpha=0.25, linewidth=0.6)
    confidence = dataset.attrs.get("confidence")
    heading = "exponent" if confidence is None else f"exponent, {100 * float(confidence):g} % interval"
    if count > NAMED:
        heading += f"\n(the first {NAMED} of {count})"
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small", title=heading)
    title = str(dataset.attrs.get("map", "")) if title is None else title
    if title:
        figure.suptitle(textwrap.fill(title, 85), fontsize="medium")
    return figure

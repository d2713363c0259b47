"""Does another loss change the critical step size of a linear network? (an open question of arXiv:2402.13108)

Three levels of noise, one network, four losses of the residual with the same curvature 1 at zero.
Without noise every loss has the threshold of the square loss: the minima interpolate. With noise they part.
"""

import numpy as np

import gdmap

LOSSES = {
    "squared": "squared",
    "Huber": "huber",
    "log cosh": "log_cosh",
    "r^2/2 + r^4/100": lambda residual: residual**2 / 2 + residual**4 / 100,
}

rng = np.random.default_rng(0)
inputs = rng.normal(size=(60, 3)) * [1.0, 1.5, 0.7]
clean = inputs @ rng.normal(size=(3, 2))
noise = rng.normal(size=clean.shape)

print("Critical step size, widths (3, 3, 2), 60 samples; searches that agree with the best in parentheses")
print(f"{'noise':>6}  " + "  ".join(f"{name:>22}" for name in LOSSES))
for level in (0.0, 0.5, 2.0):
    cells = []
    for loss in LOSSES.values():
        network = gdmap.LinearNetwork((3, 3, 2), inputs, clean + level * noise, loss=loss)
        critical = gdmap.critical_step_size(network, starts=8)
        how = "formula" if critical.search is None else f"{critical.search.agreeing} of 8"
        cells.append(f"{critical.step_size.value:.9f} ({how})")
    print(f"{level:>6}  " + "  ".join(f"{cell:>22}" for cell in cells))

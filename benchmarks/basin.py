"""Seconds for a basin picture, beside the same starts given to gdmap.ensemble, in one run.

    python benchmarks/basin.py [--resolution 2000] [--json]

Each picture is timed as a user calls it the first time: compilation, judging, identities and the verification of
500 pixels included. The ensemble is timed on 2,000 of the same starts, compiled beforehand.
"""

import argparse
import json
import os
import platform
import time

import numpy as np

import gdmap
from gdmap.ensembles.basin import basin

TWO_FACTORS = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
FOUR_WELLS = gdmap.Function(lambda w: (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2, 2)
CASES = {
    "two factors, minima": (TWO_FACTORS, 0.8, 2.5),
    "two factors, 2-cycles": (TWO_FACTORS, 1.1, 2.5),
    "two factors, 16-cycles": (TWO_FACTORS, 1.3, 2.5),
    "four wells, minima and a cycle": (FOUR_WELLS, 0.0165, 5.0),
    "four wells, minima, a cycle and chaos": (FOUR_WELLS, 0.021, 5.0),
}
SUBSET = 2000


def measure(objective, step_size: float, half: float, resolution: int) -> dict[str, float]:
    map_ = gdmap.GradientDescent(objective, step_size)
    begin = time.perf_counter()
    dataset = basin(map_, ((-half, half), (-half, half)), resolution)
    picture = time.perf_counter() - begin
    starts = np.random.default_rng(0).uniform(-half, half, (SUBSET, 2))
    gdmap.ensemble(map_, starts)
    begin = time.perf_counter()
    gdmap.ensemble(map_, starts)
    rate = SUBSET / (time.perf_counter() - begin)
    return {
        "seconds": picture,
        "starts_per_second": resolution**2 / picture,
        "ensemble_starts_per_second": rate,
        "ratio": resolution**2 / picture / rate,
        "disagreements": dataset.attrs["disagreements"],
        "verified": dataset.attrs["verified"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {name: measure(*case, arguments.resolution) for name, case in CASES.items()}
    if arguments.json:
        print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "results": results}))
        return
    print(f"{arguments.resolution} x {arguments.resolution} pixels on {os.cpu_count()} cores")
    for name, row in results.items():
        print(
            f"{name:40s} {row['seconds']:6.1f} s  {row['starts_per_second']:9.0f} starts/s, "
            f"{row['ratio']:6.0f} times gdmap.ensemble; {row['disagreements']} of {row['verified']} pixels differ"
        )


if __name__ == "__main__":
    main()

"""Gradient steps per second of gdmap.ensemble, beside what else can be run or written, in one run.

    python benchmarks/ensembles.py [--quick] [--only NAME ...] [--json FILE]
    (a JSON file that is there is completed: rows measured again are replaced)
    python benchmarks/ensembles.py --table FILE.json docs/speed.md

gdmap.ensemble is timed as a user calls it, with each engine: every fate, with its checks, period search,
judging and packing; its steps are those of its result. The others make a fixed number of steps and do nothing
else: a plain JAX loop, PyTorch, and loops written by hand in C and for Numba where there are any. All is float64,
gradient descent, compiled beforehand; the arms take turns and their best rates are shown (the JSON has all).

The long run has a step size so small that most starts need many thousands of steps to their minimum. An engine
that would take too long for that stops at an earlier horizon, without fates. The short run has an ordinary step
size, and takes seconds mostly for what is not stepping.
"""

import argparse
import importlib.util
import inspect
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers import c_kernels
from peers.page import page
from peers.problems import Problem, problems

import gdmap

# Without a choice of engines: the one there is.
ENGINES = ("simd", "xla") if "engine" in inspect.signature(gdmap.ensemble).parameters else (None,)
PACKAGES = ("gdmap", "jax", "jaxlib", "numpy", "llvmlite", "numba", "torch")
COMPARED_STEPS, COMPARED_STARTS = 100, 64
FEWEST = 16
GEMM_SIZE = 1024


class Effort(NamedTuple):
    """How long to measure: rounds, the most starts, the first horizon that gdmap is given, seconds of a call of a
    loop and of gdmap, and the largest sizes of the fits.
    """

    rounds: int
    starts: int
    horizon: int
    loop_seconds: float
    call_seconds: float
    largest_batch: int
    most_steps: int
    widest: int
    left_out: frozenset[str] = frozenset()


FULL = Effort(2, 8192, 1024, 0.25, 0.8, 10**5, 10**5, 12)
QUICK = Effort(1, 64, 64, 0.05, 0.1, 10**4, 10**4, 4, frozenset({"torch.compile"}))


class Arm(NamedTuple):
    """One way to run: a call that returns the steps it made, what returns its states, and what is said of it."""

    name: str
    call: Callable[[], int]
    states: Callable[[], np.ndarray]
    said: dict[str, Any]


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


# The loops -------------------------------------------------------------------------------------------------------


class PlainLoop:
    """jit(vmap(step)) inside a fori_loop, as one writes it in JAX."""

    def __init__(self, problem: Problem, starts: np.ndarray, step_size: float) -> None:
        map_ = gdmap.GradientDescent(problem.objective, step_size)

        @jax.jit
        def run(states: Any, steps: Any) -> Any:
            return jax.lax.fori_loop(0, steps, lambda _, states: jax.vmap(map_.update)(states), states)

        self.program, self.starts, self.ends = run, starts, starts

    def run(self, steps: int) -> None:
        with jax.enable_x64(True):
            self.ends = jax.block_until_ready(self.program(jnp.asarray(self.starts), steps))

    def states(self) -> np.ndarray:
        return np.asarray(self.ends)


def peer_loops(
    problem: Problem, starts: np.ndarray, step_size: float, left_out: frozenset[str]
) -> dict[str, Callable[[], Any]]:
    """What makes each loop, by name; making one may fail, with the reason."""

    def numba() -> Any:
        if importlib.util.find_spec("numba") is None:
            raise LookupError("Numba is not installed")
        from peers.numba_loops import Loop

        return Loop(problem.key, starts, step_size, problem.constants)

    def torch(compiled: bool) -> Any:
        if importlib.util.find_spec("torch") is None:
            raise LookupError("PyTorch is not installed")
        if compiled and "torch.compile" in left_out:
            raise LookupError("left out")
        from peers.torch_loops import Loop

        return Loop(problem.key, starts, step_size, problem.constants, compiled)

    return {
        "JAX": lambda: PlainLoop(problem, starts, step_size),
        "PyTorch": lambda: torch(False),
        "torch.compile": lambda: torch(True),
        "Numba": numba,
        "C": lambda: c_kernels.Kernel(problem.key, starts, step_size, problem.constants),
    }


def loop_arms(problem: Problem, effort: Effort) -> tuple[list[Arm], dict[str, str]]:
    """The loops with as many steps as fill the time of a call, and why others are missing."""
    starts = problem.draw(problem.long, effort.starts)
    arms, missing = [], {}
    for name, make in peer_loops(problem, starts, problem.long.step_size, effort.left_out).items():
        try:
            loop = make()
            first = seconds(lambda loop=loop: loop.run(1))
        except (LookupError, OSError) as error:
            missing[name] = str(error)
            continue
        except Exception as error:
            # torch.compile needs a compiler for C++ and fails in many ways without one.
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}"
            continue
        steps = steps_in(loop.run, effort.loop_seconds)

        def call(loop: Any = loop, steps: int = steps) -> int:
            loop.run(steps)
            return steps * len(starts)

        arms.append(Arm(name, call, loop.states, {"starts": len(starts), "horizon": steps, "first call s": first}))
    return arms, missing


def steps_in(run: Callable[[int], None], target: float) -> int:
    """How many steps take about ``target`` seconds."""
    steps = 1
    while (spent := seconds(partial(run, steps))) < target / 5:
        steps *= max(2, min(16, int(target / 3 / max(spent, 1e-6))))
    return max(1, round(steps * target / spent))


# gdmap -----------------------------------------------------------------------------------------------------------


def ensemble(problem: Problem, starts: np.ndarray, step_size: float, steps: int, engine: str | None) -> Any:
    """The call of a user."""
    chosen = {} if engine is None else {"engine": engine}
    return gdmap.ensemble(gdmap.GradientDescent(problem.objective, step_size), starts, steps, **chosen)


def gdmap_arm(problem: Problem, effort: Effort, engine: str | None, ahead: dict[str, Any] | None) -> Arm:
    """The long run with one engine, compiled.

    It ends with every fate if that takes a few seconds, or not many more where the engine `ahead` of it could do
    that; otherwise at an earlier horizon.
    """
    starts = problem.draw(problem.long, effort.starts)
    horizon = min(problem.long.steps, effort.horizon)
    # Where following what does not end costs much, the whole horizon at once, so that all ends.
    if ahead is None and problem.long.starts < effort.starts and effort.starts > FEWEST:
        horizon = problem.long.steps
    held: dict[str, Any] = {}

    def run(steps: int) -> float:
        return seconds(
            lambda: held.update(result=ensemble(problem, starts, problem.long.step_size, steps, engine))
        )

    first, spent = run(horizon), run(horizon)
    compilation = max(0.0, first - spent)
    if ahead is not None and ahead["complete"] and spent * ahead["mean steps"] / horizon < 4 * effort.call_seconds:
        horizon = problem.long.steps
        run(horizon)
    while spent < effort.call_seconds and moving(held["result"], horizon) and horizon < problem.long.steps:
        # What is not stepping is part of the time: the next horizon is at most so much longer.
        grows = max(1.5, min(8.0, effort.call_seconds / max(spent, 1e-6)))
        horizon = min(problem.long.steps, math.ceil(horizon * grows))
        spent = run(horizon)
    result = held["result"]

    def call() -> int:
        run(horizon)
        return int(held["result"].steps.sum())

    fates = np.asarray(gdmap.fate_names(result))
    said = {
        "starts": len(starts),
        "horizon": horizon,
        "engine": result.attrs["engine"],
        "compilation s": compilation,
        "fates": {
            str(name): int(number) for name, number in zip(*np.unique(fates, return_counts=True), strict=True)
        },
        "mean steps": float(result.steps.mean()),
        "complete": horizon == problem.long.steps or not moving(result, horizon),
    }
    return Arm(f"gdmap {engine or 'default'}", call, lambda: held["result"].state.values, said)


def moving(result: Any, horizon: int) -> int:
    """How many starts were stopped by the horizon."""
    return int((result.steps.values >= horizon).sum())


def difference(problem: Problem, engine: str | None) -> float:
    """The largest difference between the states of an engine and of the plain JAX loop after some steps.

    Starts that were finished earlier (their step had become negligible) or are not finite are left out.
    """
    starts = problem.draw(problem.long, COMPARED_STARTS)
    result = ensemble(problem, starts, problem.long.step_size, COMPARED_STEPS, engine)
    plain = PlainLoop(problem, starts, problem.long.step_size)
    plain.run(COMPARED_STEPS)
    ran = (result.steps.values == COMPARED_STEPS) & np.isfinite(plain.states()).all(axis=1)
    return float(np.abs(result.state.values - plain.states())[ran].max(initial=0.0)) if ran.any() else math.nan


def short_run(problem: Problem, effort: Effort, engines: list[str | None]) -> dict[str, Any]:
    """Seconds of an ordinary call with each of the engines, best of the rounds."""
    assert problem.short is not None
    starts = problem.draw(problem.short, effort.starts)
    steps = problem.short.steps if effort.starts != QUICK.starts else 500
    row: dict[str, Any] = {"starts": len(starts), "horizon": steps, "step size": problem.short.step_size}
    calls = {
        engine: lambda engine=engine: row.update(
            result=ensemble(problem, starts, problem.short.step_size, steps, engine)
        )
        for engine in engines
    }
    row["engines"] = {}
    for engine, call in calls.items():
        first = seconds(call)
        row["engines"][engine or "default"] = {
            "engine": row["result"].attrs["engine"],
            "first call s": first,
            "mean steps": float(row["result"].steps.mean()),
            "undecided": int((np.asarray(gdmap.fate_names(row["result"])) == "undecided").sum()),
            "s": math.inf,
        }
    for _ in range(min(2, effort.rounds)):
        for engine, call in calls.items():
            found = row["engines"][engine or "default"]
            found["s"] = min(found["s"], seconds(call))
            found["starts/s"] = len(starts) / found["s"]
    del row["result"]
    return row


# The machine -----------------------------------------------------------------------------------------------------


def gemm_peak(rounds: int = 5) -> float:
    """Float64 rate of a product of two matrices, flop/s."""
    with jax.enable_x64(True):
        a = jnp.asarray(np.random.default_rng(0).normal(size=(GEMM_SIZE, GEMM_SIZE)))
        multiply = jax.jit(jnp.matmul)
        jax.block_until_ready(multiply(a, a))
        best = min(seconds(lambda: jax.block_until_ready(multiply(a, a))) for _ in range(rounds))
    return 2 * GEMM_SIZE**3 / best


def fma_peak(rounds: int = 5) -> float:
    """Float64 rate of fused multiply-adds in registers on all processors, flop/s; nan without a C compiler."""
    try:
        kernel = c_kernels.peak_kernel()
    except OSError:
        return math.nan
    steps = 100_000
    kernel.run(steps)
    return 2 * steps * kernel.starts.size / min(seconds(lambda: kernel.run(steps)) for _ in range(rounds))


def flops_by_xla(problem: Problem) -> float:
    """What XLA counts for one compiled step of one trajectory; what its fusions compute twice, it counts twice."""
    with jax.enable_x64(True):
        step = jax.jit(gdmap.GradientDescent(problem.objective, problem.long.step_size).step)
        return float(step.lower(jnp.zeros(problem.objective.dim)).compile().cost_analysis()["flops"])


def load_average() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else []


def environment() -> dict[str, Any]:
    """The machine and the versions."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    command = c_kernels.compiler()
    compiler = None
    if command is not None:
        compiler = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "cpu": model.group(1) if model else platform.processor() or platform.machine(),
        "vectors": sorted(set(re.findall(r"\b(avx2|avx512f|fma|asimd|sve)\b", text))),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "compiler": compiler.splitlines()[0] if compiler else None,
        "flags of C": " ".join(c_kernels.FLAGS),
        "device": jax.default_backend(),
    }


# Growth ----------------------------------------------------------------------------------------------------------


def growth(sizes: list[int], times: list[float]) -> dict[str, Any]:
    """The slope of log time on log size by least squares, with its standard error."""
    x, y = np.log(sizes), np.log(times)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    error = float(np.sqrt(residuals @ residuals / max(len(x) - 2, 1) / (centred @ centred)))
    return {"sizes": sizes, "seconds": times, "slope": slope, "standard error": error}


def powers(first: int, last: int) -> list[int]:
    """Ten to the whole and half powers."""
    count = round(2 * math.log10(last / first)) + 1
    return [round(size) for size in np.geomspace(first, last, count)]


def growths(effort: Effort) -> dict[str, Any]:
    """Time of gdmap.ensemble (automatic choice of the engine) against starts, steps and width.

    The step sizes are so small that every start runs straight on to the horizon.
    """
    well = gdmap.GradientDescent(gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1), 1e-9)
    found: dict[str, Any] = {}

    def timed(name: str, runs: list[tuple[int, gdmap.GradientDescent, np.ndarray, int]]) -> None:
        sizes, times, engines = [], [], set()
        for size, map_, starts, steps in runs:
            gdmap.ensemble(map_, starts[: min(len(starts), 1024)], min(steps, 1024))
            best = math.inf
            for _ in range(3):
                begin = time.perf_counter()
                engines.add(gdmap.ensemble(map_, starts, steps).attrs["engine"])
                best = min(best, time.perf_counter() - begin)
                if best > 1:
                    break
            sizes.append(size)
            times.append(best)
        found[name] = growth(sizes, times) | {"engine": sorted(engines)}

    starts = gdmap.gaussian_starts(effort.largest_batch, 1, scale=0.5)
    timed(
        "starts (double well, 1,000 steps)",
        [(count, well, starts[:count], 1000) for count in powers(100, effort.largest_batch)],
    )
    timed(
        "steps (double well, 1,024 starts)",
        [(steps, well, starts[:1024], steps) for steps in powers(1000, effort.most_steps)],
    )
    networks = []
    for width in (2, 3, 4, 6, 8, 12, 16):
        if width <= effort.widest:
            objective = gdmap.LinearNetwork.whitened((width,) * 3, np.diag(np.linspace(1, 0.2, width)))
            few = gdmap.gaussian_starts(512, objective.dim, scale=0.3 / width**0.5)
            networks.append((width, gdmap.GradientDescent(objective, 1e-9), few, 1024))
    timed("width n (linear n-n-n, 512 starts, 1,024 steps)", networks)
    return found


# The whole -------------------------------------------------------------------------------------------------------


def measure(problem: Problem, effort: Effort) -> dict[str, Any]:
    """One row: all arms in turn, `effort.rounds` times."""
    arms, missing = loop_arms(problem, effort)
    own: dict[str | None, Arm] = {}
    for engine in ENGINES:
        try:
            own[engine] = gdmap_arm(problem, effort, engine, next((arm.said for arm in own.values()), None))
        except ValueError as error:
            missing[f"gdmap {engine}"] = str(error).split(";")[0]
    arms = [*own.values(), *arms]
    rates: dict[str, list[float]] = {arm.name: [] for arm in arms}
    spent: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for _ in range(effort.rounds):
        for arm in arms:
            begin = time.perf_counter()
            steps = arm.call()
            spent[arm.name].append(time.perf_counter() - begin)
            rates[arm.name].append(steps / spent[arm.name][-1])
    row: dict[str, Any] = {
        "key": problem.key,
        "objective": problem.title,
        "parameters": problem.objective.dim,
        "step size": problem.long.step_size,
        "flops": problem.cost.flops,
        "flops by XLA": flops_by_xla(problem),
        "transcendentals": problem.cost.transcendentals,
        "arms": {},
        "missing": missing,
    }
    for arm in arms:
        row["arms"][arm.name] = {
            "best steps/s": max(rates[arm.name]),
            "median steps/s": statistics.median(rates[arm.name]),
            "steps/s": rates[arm.name],
            "s": min(spent[arm.name]),
            **arm.said,
        }
    row["difference after 100 steps"] = {engine or "default": difference(problem, engine) for engine in own}
    if problem.short is not None:
        short = row["short run"] = short_run(problem, effort, list(own))
        short["plain JAX s"] = short["starts"] * short["horizon"] / row["arms"]["JAX"]["best steps/s"]
    return row


def show(row: dict[str, Any]) -> None:
    """A row as text."""
    print(f"\n{row['objective']}: {row['parameters']} parameters")
    print(
        f"  {row['flops']} flops a step (XLA counts {row['flops by XLA']:.0f}), {row['transcendentals']} tanh, exp"
    )
    for name, arm in row["arms"].items():
        fates = ", ".join(f"{count} {fate}" for fate, count in arm.get("fates", {}).items())
        engine = f"{arm['engine']}, compilation {arm['compilation s']:.2f} s; {fates}" if fates else ""
        print(
            f"  {name:15}{arm['best steps/s'] / 1e6:12.4g} M steps/s"
            f"{arm['s']:8.2f} s, {arm['starts']} starts to {arm['horizon']}  {engine}"
        )
    for name, reason in row["missing"].items():
        print(f"  {name:15}{reason}")
    for engine, value in row["difference after 100 steps"].items():
        print(f"  {engine}: states differ by at most {value:.1e} from plain JAX after {COMPARED_STEPS} steps")
    short = row.get("short run", {"engines": {}})
    for engine, found in short["engines"].items():
        print(
            f"  short run, {engine}: {short['starts']} starts in {found['s']:.3f} s ({found['starts/s']:.0f} a "
            f"second, {found['mean steps']:.0f} steps each, {found['undecided']} undecided); "
            f"plain JAX would make {short['horizon']} steps in {short['plain JAX s']:.3g} s"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: tries the benchmark, not the speed"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="keys of objectives; 'growth' for the fits")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="ARM", help="leave out torch.compile (minutes)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument(
        "--table", nargs=2, metavar=("JSON", "PAGE"), help="make the page from results, and nothing else"
    )
    arguments = parser.parse_args()
    if arguments.table:
        source, target = map(Path, arguments.table)
        target.write_text(page(json.loads(source.read_text())))
        return
    known = [problem.key for problem in problems()] + ["growth"]
    chosen = arguments.only or known
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    warnings.filterwarnings("ignore", module="torch")
    effort = QUICK if arguments.quick else FULL
    effort = effort._replace(left_out=effort.left_out | frozenset(arguments.without))
    results: dict[str, Any] = {
        "environment": environment(),
        "quick": arguments.quick,
        "load before": load_average(),
    }
    cpu, cores = results["environment"]["cpu"], results["environment"]["cores"]
    peaks = [(fma_peak(), gemm_peak())]
    target = Path(arguments.json) if arguments.json else None
    before = json.loads(target.read_text()) if target is not None and target.exists() else {}
    if before and (before["environment"], before["quick"]) != (results["environment"], results["quick"]):
        parser.error(f"{target} was measured elsewhere, or with --quick: give another file, or remove it")
    rows = {row["key"]: row for row in before.get("rows", [])}
    results["growth"] = before.get("growth", {})
    if before:
        peaks.append((before["peak"].get("vectors", math.nan), before["peak"]["GEMM flop/s"]))

    def write() -> None:
        """What is known so far, row by row: a run that is cut off has not been in vain."""
        vectors, matrices = (
            max((v for v in values if not math.isnan(v)), default=math.nan) for values in zip(*peaks, strict=True)
        )
        peak = matrices if math.isnan(vectors) else vectors
        results["peak"] = {
            "flop/s": peak,
            "by": "GEMM" if math.isnan(vectors) else "fused multiply-adds in registers",
            "GEMM flop/s": matrices,
            "vectors": vectors,
        }
        results["rows"] = [rows[problem.key] for problem in problems() if problem.key in rows]
        for row in results["rows"]:
            for arm in row["arms"].values():
                arm["share of peak"] = arm["best steps/s"] * row["flops"] / peak
        results["load after"] = load_average()
        if target is not None:
            target.write_text(json.dumps(results, indent=1) + "\n")

    for problem in problems():
        if problem.key in chosen:
            rows[problem.key] = measure(problem, effort)
            # The machine may have been busy before: the best that is ever seen is the peak.
            peaks.append((fma_peak(), gemm_peak()))
            show(rows[problem.key])
            write()
    write()
    peak, matrices = results["peak"]["flop/s"], results["peak"]["GEMM flop/s"]
    print(
        f"\nshares of the peak, {peak / 1e9:.0f} Gflop/s ({results['peak']['by']}; GEMM {matrices / 1e9:.0f}); "
        f"{cpu}, {cores} cores"
    )
    for row in results["rows"]:
        shares = ", ".join(f"{name} {arm['share of peak']:.2%}" for name, arm in row["arms"].items())
        print(f"  {row['objective']:24}{shares}")
    if "growth" in chosen:
        results["growth"] = growths(effort)
    for name, fit in results["growth"].items():
        print(
            f"\ntime ~ size^{fit['slope']:.3f} +- {fit['standard error']:.3f}: {name}; {', '.join(fit['engine'])}"
        )
        print(
            "  "
            + ", ".join(f"{size}: {spent:.3g} s" for size, spent in zip(fit["sizes"], fit["seconds"], strict=True))
        )
    write()


if __name__ == "__main__":
    main()

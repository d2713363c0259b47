"""docs/speed.md from the results of the benchmark."""

from typing import Any

PEERS = ("JAX", "PyTorch", "torch.compile", "Numba", "C")
ENVIRONMENT = ("python", "gdmap", "jax", "jaxlib", "numpy", "llvmlite", "numba", "torch", "compiler")


def page(results: dict[str, Any]) -> str:
    """The page, Markdown: rates, shares of the peak, whole calls, growth, and how it was measured."""
    rows, environment = results["rows"], results["environment"]
    engines = list(dict.fromkeys(name for row in rows for name in row["arms"] if name.startswith("gdmap")))
    peers = [name for name in PEERS if any(name in row["arms"] for row in rows)]
    found = ", ".join(f"{name} {environment[name]}" for name in ENVIRONMENT if environment.get(name))
    vectors = f" ({', '.join(environment['vectors'])})" if environment["vectors"] else ""
    parts = [
        "# Speed of ensembles",
        "Made from `docs/speed.json` by `python benchmarks/ensembles.py --table docs/speed.json docs/speed.md`, "
        "the numbers by `python benchmarks/ensembles.py --json docs/speed.json`.",
        f"Measured on {environment['cpu']}{vectors}, {environment['cores']} cores, {environment['system']}, "
        f"device {environment['device']}; {found}. Load average before {shown_load(results['load before'])}, "
        f"after {shown_load(results['load after'])}. Peak {results['peak']['flop/s'] / 1e9:.0f} Gflop/s by "
        f"{results['peak']['by']}; a product of matrices reaches {results['peak']['GEMM flop/s'] / 1e9:.0f}.",
    ]
    if results["quick"]:
        parts.append("**A quick run: it shows that the benchmark works, not how fast anything is.**")
    parts += [
        "## Gradient steps a second",
        "Millions, float64, best of the rounds in which the arms took turns. `gdmap` is the whole call of "
        "`gdmap.ensemble`, fates and all, by engine; the others step and do nothing else. JAX is a plain "
        "`jit(vmap(step))` in a `fori_loop`, PyTorch a loop over `vmap(grad(loss))`; C and Numba are written by "
        f"hand (C: `{environment['flags of C']}`, one trajectory per vector lane, all cores). The last columns "
        f"are ratios of the engine that `gdmap.ensemble` chooses: `{engines[0]}` where it can run the map.",
        table(
            ["objective", *engines, *peers, "/ JAX", *(["/ C"] if "C" in peers else [])],
            [rate_row(row, engines, peers) for row in rows],
        ),
        "## Shares of the peak, and how the runs of gdmap ended",
        "Flops are the additions and multiplications of one step written without anything computed twice (XLA's "
        "own count is beside). Values of `tanh` and `exp` are counted apart and are no part of the share, which "
        "says little where they take the time; a step that is no chain of fused multiply-adds cannot reach the "
        "peak. The difference is the largest between any component of any state and that of "
        "plain JAX after 100 steps. Compilation is the first call less a later one.",
        table(
            ["objective", "flops", "by XLA", "tanh, exp", "engine used", "share", "JAX share",
             *(["C share"] if "C" in peers else []), "starts", "mean steps", "fates", "difference",
             "compilation s"],
            [line for row in rows for line in share_rows(row, engines, "C" in peers)],
        ),
        "## Ordinary calls",
        "An ordinary step size and a short horizon: most starts are done within some hundred steps, and judging "
        "them takes most of the time. Seconds are those of the whole call, compiled beforehand; plain JAX "
        "has no fates and would make all steps to the horizon for every start (from its rate above).",
        table(
            ["objective", "engine used", "starts", "horizon", "mean steps", "undecided", "seconds",
             "starts a second", "plain JAX, seconds"],
            [line for row in rows for line in short_rows(row)],
        ),
    ]  # fmt: skip
    if results["growth"]:
        parts += [
            "## Growth",
            "Slope of log time on log size, least squares, with its standard error; the whole call, every start "
            "to the horizon. A slope below 1 shows what a call costs whatever its size.",
            table(
                ["time against", "engine used", "slope", "standard error", "smallest", "largest"],
                [growth_row(name, fit) for name, fit in results["growth"].items()],
            ),
        ]
    missing = sorted({f"{name}: {reason}" for row in rows for name, reason in row["missing"].items()})
    if missing:
        parts += ["Empty cells: " + "; ".join(missing) + "."]
    return "\n\n".join(parts) + "\n"


def rate_row(row: dict[str, Any], engines: list[str], peers: list[str]) -> list[str]:
    rates = {name: arm["best steps/s"] for name, arm in row["arms"].items()}
    ours = next(rates[name] for name in engines if name in rates)
    ratios = [ratio(ours, rates.get(name)) for name in ("JAX", *(["C"] if "C" in peers else []))]
    return [row["objective"], *(millions(rates.get(name)) for name in (*engines, *peers)), *ratios]


def share_rows(row: dict[str, Any], engines: list[str], with_c: bool) -> list[list[str]]:
    lines = []
    for name in engines:
        if name not in row["arms"]:
            continue
        arm = row["arms"][name]
        fates = ", ".join(f"{count} {fate}" for fate, count in arm["fates"].items())
        compared = [share(row["arms"].get(peer)) for peer in ("JAX", *(["C"] if with_c else []))]
        lines.append(
            [
                row["objective"], f"{row['flops']}", f"{row['flops by XLA']:.0f}", f"{row['transcendentals']}",
                arm["engine"],
                share(arm), *compared, str(arm["starts"]), f"{arm['mean steps']:.3g}", fates,
                f"{row['difference after 100 steps'][name.removeprefix('gdmap ')]:.1e}",
                f"{arm['compilation s']:.2f}",
            ]
        )  # fmt: skip
    return lines


def short_rows(row: dict[str, Any]) -> list[list[str]]:
    short = row.get("short run", {"engines": {}})
    return [
        [
            row["objective"], found["engine"], str(short["starts"]), str(short["horizon"]),
            f"{found['mean steps']:.3g}", str(found["undecided"]), f"{found['s']:.3f}", f"{found['starts/s']:.3g}",
            f"{short['plain JAX s']:.3g}",
        ]
        for found in short["engines"].values()
    ]  # fmt: skip


def growth_row(name: str, fit: dict[str, Any]) -> list[str]:
    ends = [f"{fit['sizes'][end]:,}: {fit['seconds'][end]:.3g} s" for end in (0, -1)]
    return [name, ", ".join(fit["engine"]), f"{fit['slope']:.3f}", f"{fit['standard error']:.3f}", *ends]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def millions(rate: float | None) -> str:
    return "" if rate is None else digits(rate / 1e6)


def ratio(ours: float, other: float | None) -> str:
    return "" if other is None else digits(ours / other)


def share(arm: dict[str, Any] | None) -> str:
    return "" if arm is None else f"{100 * arm['share of peak']:.2g} %"


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shown_load(load: list[float]) -> str:
    return " ".join(map(str, load)) or "unknown"

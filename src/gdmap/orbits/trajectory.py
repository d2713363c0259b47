"""One orbit of a map with what is measured along it: loss, gradient norm, sharpness."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from gdmap.engines.precision import as_floating, float64, for_tracing
from gdmap.engines.xla import block_size, compiled, norms, on_lanes
from gdmap.maps import GradientDescent, Map, RandomMap
from gdmap.spectra import sharpness
from gdmap.spectra.dense import for_each

# Up to this many parameters the sharpness comes from dense Hessians, many at a time.
DENSE_LIMIT = 256
# States held at a time, in bytes, and in number.
CHUNK_BYTES, CHUNK_STATES = 2**26, 4096
# Rounding errors are taken to be at most this multiple of the change when the parameters move by one ulp.
NOISE = 4
# Hessians diagonalised in one call.
GROUP = 16
NEVER = -1


class Quantity(NamedTuple):
    """A recordable quantity: its dimensions besides ``step``, its description, and how it is computed."""

    dims: tuple[str, ...]
    long_name: str
    method: str


DENSE_METHOD = (
    "dense Hessian, symmetric eigensolver; error from its backward error and the change of the Hessian when the "
    "parameters move by one ulp"
)
NORM = "Euclidean norm along the floating-point orbit, relative rounding error below dim eps"
NOISE_METHOD = "floating-point evaluation; error from its change when the parameters move by one ulp"
QUANTITIES = {
    "loss": Quantity((), "loss", NOISE_METHOD),
    "gradient_norm": Quantity((), "Euclidean norm of the gradient", NOISE_METHOD),
    "sharpness": Quantity((), "largest Hessian eigenvalue (sharpness)", ""),
    "alignment": Quantity(
        (),
        "modulus of the cosine between the gradient and the top Hessian eigenvector",
        "dense Hessian; error from the gap to the next eigenvalue",
    ),
    "relative_progress": Quantity(
        (),
        "relative progress (f(x+) - f(x)) / (eta |grad f(x)|^2)",
        "floating-point evaluation; error from those of the losses",
    ),
    "directional_smoothness": Quantity(
        (),
        "directional smoothness <grad f(x), grad f(x) - grad f(x+)> / (eta |grad f(x)|^2)",
        "floating-point evaluation; error from those of the gradients",
    ),
    "step_norm": Quantity((), "Euclidean norm of the next step of the parameters", NORM),
    "parameter_norm": Quantity((), "Euclidean norm of the parameters", NORM),
    "distance": Quantity((), "Euclidean distance of the parameters from the initial ones", NORM),
    "state": Quantity(("component",), "state of the map", "the floating-point orbit itself"),
    "parameters": Quantity(("parameter",), "parameters", "the floating-point orbit itself"),
}
DESCENT = ("relative_progress", "directional_smoothness")
SPECTRAL = ("sharpness", "alignment")
BARS: dict[str, tuple[str, ...]] = {
    name: (f"{name}_error",) for name in ("loss", "gradient_norm", "alignment", *DESCENT)
}
BARS["sharpness"] = ("sharpness_lower", "sharpness_upper")


def trajectory(
    map: Map,  # noqa: A002 - the name of the concept
    state: Any,
    steps: int,
    record: str | Sequence[str] = ("loss", "gradient_norm", "sharpness"),
    every: int = 1,
) -> xr.Dataset:
    """Follow one orbit of ``map`` and record what happens along it.

    With the sharpness beside the stability limit ``2 / eta`` this shows progressive sharpening and the edge of
    stability (Cohen et al. 2021); see `gdmap.plots.plot_trajectory`.

    Parameters
    ----------
    map
        The map, for instance ``GradientDescent(objective, step_size)``. A map that depends on time is iterated
        with its time, from 0.
    state
        Where to begin: a state of shape ``(state_dim,)``, or parameters of shape ``(dim,)``, to which
        ``map.initial_state`` is applied. Its dtype (float64 or float32) is that of every number.
    steps
        The number of steps, at least 1.
    record
        What to record, one name or several; all of it belongs to the state *before* the step of that number:

        ``'loss'``, ``'gradient_norm'``
            ``L(theta)`` and ``||grad L(theta)||``.
        ``'sharpness'``
            The largest eigenvalue of the Hessian: from dense Hessians up to 256 parameters, otherwise by
            `gdmap.sharpness` (Lanczos iteration) at every recorded step, which costs some tens of gradients.
        ``'alignment'``
            ``|<g, q>| / ||g||`` for the gradient ``g`` and a unit top eigenvector ``q``; up to 256 parameters.
        ``'relative_progress'``, ``'directional_smoothness'``
            ``(L(theta+) - L(theta)) / (eta ||g||^2)`` and ``<g, g - g+> / (eta ||g||^2)``, for
            `GradientDescent`: about 0 and ``2 / eta`` at the edge of stability (Ahn, Zhang & Sra 2022).
        ``'step_norm'``, ``'parameter_norm'``, ``'distance'``
            ``||theta+ - theta||``, ``||theta||``, ``||theta - theta_0||``.
        ``'state'``, ``'parameters'``
            The state itself, over ``component``, and the parameters, over ``parameter``.
    every
        Record at every so many steps; the last step is always recorded.

    Returns
    -------
    xarray.Dataset
        Over ``step`` (0, every, 2 every, ..., steps) the recorded quantities with ``units``, ``long_name``,
        ``status`` (*computed*) and ``method``; beside ``sharpness`` its bracket ``sharpness_lower`` and
        ``sharpness_upper``, beside other numbers ``NAME_error``, an estimate of their absolute rounding error.
        ``stability_limit``: the largest curvature at which the map is stable on a quadratic loss, ``2 / eta``
        for gradient descent, NaN where it is not known. A diverged orbit is a result: the attribute
        ``diverged_at`` is the first step whose state is not finite, and from there on everything is NaN. (It
        is absent for other orbits; a finite state may have an infinite loss.) The orbit does not depend on
        ``record`` or ``every``.

    Raises
    ------
    TypeError
        If ``map`` is no map, or the start does not hold real floating-point numbers.
    ValueError
        For a start of the wrong shape or not finite, an unknown quantity, or a number of steps that is not a
        positive integer.
    """
    if isinstance(map, RandomMap):
        raise TypeError(
            f"trajectory does not follow random maps such as {map!r}: step through it with map.step(state, "
            "map.batch(seed, trajectory, step)), or see gdmap.ensemble for where its trajectories end"
        )
    if not isinstance(map, Map):
        raise TypeError(f"map must be a map such as GradientDescent(objective, step_size), got {map!r}")
    names = checked_record(record, map)
    steps, every = checked_count(steps, "steps"), checked_count(every, "every")
    start = checked_start(map, state)
    numbers = np.unique(np.append(np.arange(0, steps, every), steps))
    columns = blank_columns(map, names, numbers, start)
    methods = {}
    diverged_at = NEVER
    observers = observers_of(map, names, start)
    for begin, states, when in orbit_chunks(map, start, numbers):
        diverged_at = when
        rows = slice(begin, begin + len(states))
        for observe in observers if len(states) else ():
            for name, column in observe(states, numbers[rows]).items():
                columns[name][rows] = column
            methods.update(observe.methods)
    dataset = labelled(map, names, numbers, columns, methods)
    dataset.attrs.update(map=repr(map), dtype=str(start.dtype), steps=steps, every=every, status="computed")
    if diverged_at != NEVER:
        dataset.attrs["diverged_at"] = diverged_at
    return dataset


class Orbit(eqx.Module):
    """States at given times, and where the orbit goes on."""

    map: Map

    def __call__(self, state: Any, time: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
        """The states before reaching each of ``targets``; the last state, its time, and when it diverged."""

        def advance(carry: Any, target: Any) -> tuple[Any, Any]:
            def unfinished(carry: Any) -> Any:
                return (carry[1] < target) & (carry[2] == NEVER)

            def one_step(carry: Any) -> Any:
                state, time, _ = carry
                moved, time = update_at(self.map, state, time), time + 1
                return moved, time, jnp.where(jnp.all(jnp.isfinite(moved)), NEVER, time)

            return jax.lax.while_loop(unfinished, one_step, carry), carry[0]

        carry = (state, time, jnp.full_like(time, NEVER))
        (state, time, diverged_at), states = jax.lax.scan(advance, carry, targets)
        return states, state, time, diverged_at


def update_at(map_: Map, state: Any, time: Any) -> Any:
    """The next state of a map that may depend on time; times are 32-bit integers."""
    return map_.update_at(state, jnp.asarray(time, jnp.int32))


def orbit_chunks(map_: Map, start: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, int]]:
    """The finite states at the steps ``numbers``, in chunks, each with its first row and the step of divergence.

    Every chunk is one run of one compiled program; the last is padded by steps of length zero.
    """
    fitting = max(1, CHUNK_BYTES // (start.itemsize * len(start)))
    length = min(CHUNK_STATES, 1 << (fitting.bit_length() - 1))
    orbit = for_tracing(Orbit(map_))
    targets = np.append(numbers[1:], numbers[-1])
    state, time = start, np.asarray(0)
    for begin in range(0, len(numbers), length):
        padded = np.minimum(np.arange(begin, begin + length), len(numbers) - 1)
        with float64():
            states, state, time, diverged_at = compiled(orbit, (state, time, targets[padded]))
            when = int(diverged_at)
        kept = numbers[begin : begin + length]
        finite = len(kept) if when == NEVER else int(np.searchsorted(kept, when))
        yield begin, np.asarray(states)[:finite], when
        if when != NEVER:
            return


class Pointwise(eqx.Module):
    """Everything that is computed at one state, apart from the spectrum."""

    map: Map
    names: tuple[str, ...] = eqx.field(static=True)
    initial: Any
    ulps: Any

    def __call__(self, state: Any, time: Any) -> dict[str, Any]:
        """The recorded quantities at ``state`` by name, with their errors."""
        map_, objective = self.map, self.map.objective
        theta = map_.parameters(state)
        found = {
            "state": lambda: state,
            "parameters": lambda: theta,
            "parameter_norm": lambda: norms(theta),
            "distance": lambda: norms(theta - self.initial),
        }
        values = {name: make() for name, make in found.items() if name in self.names}
        if {"step_norm", *DESCENT}.intersection(self.names):
            after = map_.parameters(update_at(map_, state, time))
        if "step_norm" in self.names:
            values["step_norm"] = norms(after - theta)
        if {"loss", "gradient_norm", *DESCENT}.intersection(self.names):
            here = with_noise(objective, theta, self.ulps)
            values.update({name: value for name, value in here.items() if name != "gradient"})
        if set(DESCENT).intersection(self.names):
            values.update(descent(map_, here, with_noise(objective, after, self.ulps)))
        wanted = {*self.names, *(bar for name in self.names for bar in BARS.get(name, ()))}
        return {name: value for name, value in values.items() if name in wanted}


def with_noise(objective: Any, theta: Any, ulps: Any) -> dict[str, Any]:
    """Loss, gradient and gradient norm at ``theta``, with their changes on a copy moved by an ulp as errors."""
    value_and_gradient = jax.value_and_grad(objective.evaluate)
    loss, gradient = value_and_gradient(theta)
    moved_loss, moved_gradient = value_and_gradient(moved_by_ulps(theta, ulps))
    eps, size = jnp.finfo(theta.dtype).eps, norms(gradient)
    return {
        "loss": loss,
        "loss_error": NOISE * jnp.abs(moved_loss - loss) + eps * jnp.abs(loss),
        "gradient": gradient,
        "gradient_norm": size,
        "gradient_norm_error": NOISE * norms(moved_gradient - gradient) + eps * size,
    }


def descent(map_: Any, here: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Relative progress and directional smoothness of one step of gradient descent, with their errors."""
    gradient, size = here["gradient"], here["gradient_norm"]
    decrease = jnp.asarray(map_.step_size, size.dtype) * size**2
    gradient_error = here["gradient_norm_error"] + after["gradient_norm_error"]
    return {
        "relative_progress": (after["loss"] - here["loss"]) / decrease,
        "relative_progress_error": (here["loss_error"] + after["loss_error"]) / decrease,
        "directional_smoothness": gradient @ (gradient - after["gradient"]) / decrease,
        "directional_smoothness_error": size * gradient_error / decrease,
    }


def moved_by_ulps(theta: Any, ulps: Any) -> Any:
    """``theta`` with every component moved to a neighbouring floating-point number."""
    return jnp.nextafter(theta, jnp.inf * jnp.asarray(ulps, theta.dtype))


class HessianAt(eqx.Module):
    """The Hessian of the objective at the parameters of a state."""

    map: Map

    def __call__(self, state: Any) -> Any:
        """``H(theta)``, shape ``(dim, dim)``."""
        return self.map.objective.hessian(self.map.parameters(state))


class Spectral(eqx.Module):
    """Sharpness and alignment at one state whose Hessian has been diagonalised."""

    map: Map
    names: tuple[str, ...] = eqx.field(static=True)
    ulps: Any

    def __call__(self, state: Any, eigenvalues: Any, vector: Any) -> dict[str, Any]:
        """The sharpness with its bracket, and the alignment with its error; ``vector`` is the top eigenvector."""
        objective = self.map.objective
        theta = self.map.parameters(state)
        moved, eps = moved_by_ulps(theta, self.ulps), jnp.finfo(theta.dtype).eps
        noise = NOISE * norms(objective.hvp(moved, vector) - objective.hvp(theta, vector))
        error = len(theta) * eps * jnp.max(jnp.abs(eigenvalues)) + noise
        top = eigenvalues[-1]
        values = {"sharpness": top, "sharpness_lower": top - error, "sharpness_upper": top + error}
        if "alignment" in self.names:
            gradient = objective.gradient(theta)
            gap = top - eigenvalues[-2] if len(theta) > 1 else jnp.asarray(jnp.inf, theta.dtype)
            size = norms(gradient)
            values["alignment"] = jnp.minimum(jnp.abs(vector @ gradient) / size, 1.0)
            # Davis & Kahan: an eigenvector turns by at most the perturbation over the gap.
            turned = jnp.where(error < gap, error / gap, 1.0)
            noise = NOISE * norms(objective.gradient(moved) - gradient) / size
            values["alignment_error"] = jnp.minimum(turned + noise + eps, 1.0)
        wanted = {variable for name in self.names for variable in (name, *BARS[name])}
        return {name: value for name, value in values.items() if name in wanted}


class Observer(Protocol):
    """Quantities recorded at many states, and the methods of those with a choice of method."""

    methods: dict[str, str]

    def __call__(self, states: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The columns by name."""
        ...


class OnLanes:
    """A function of one state and its time, applied in blocks that fit into memory."""

    def __init__(self, function: Any, start: np.ndarray) -> None:
        self.function = function
        self.block = block_size(traced_bytes(function, start, np.asarray(0)))
        self.methods: dict[str, str] = {}

    def __call__(self, states: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The columns by name."""
        found: dict[str, np.ndarray] = on_lanes(self.function, (states, times), self.block)
        return found


class DenseSpectra:
    """Sharpness and alignment from dense Hessians, a bounded number of them at a time."""

    def __init__(self, map_: Map, names: tuple[str, ...], ulps: np.ndarray, start: np.ndarray) -> None:
        self.hessian_at = HessianAt(map_)
        self.block = block_size(traced_bytes(self.hessian_at, start), largest=64)
        self.held = max(1, CHUNK_BYTES // (start.itemsize * map_.objective.dim**2))
        self.spectral = Spectral(map_, names, ulps)
        self.methods = {"sharpness": DENSE_METHOD}

    def __call__(self, states: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The columns by name; NaN where the Hessian is not finite."""
        parts = [self.columns(states[begin : begin + self.held]) for begin in range(0, len(states), self.held)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def columns(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of states whose Hessians fit into memory together."""
        hessians = on_lanes(self.hessian_at, (states,), self.block)
        finite = np.all(np.isfinite(hessians), axis=(1, 2))
        # Not inside the compiled program: on one thread each, so that the numbers do not depend on the load (and
        # batches of jnp.linalg.eigh started from several threads wait for each other for ever).
        hessians = np.where(finite[:, None, None], hessians, 0.0).astype(states.dtype)
        groups = [hessians[begin : begin + GROUP] for begin in range(0, len(hessians), GROUP)]
        solved = for_each(np.linalg.eigh, groups)
        eigenvalues = np.concatenate([values for values, _ in solved])
        vectors = np.concatenate([vectors[:, :, -1] for _, vectors in solved])
        found = on_lanes(self.spectral, (states, eigenvalues, vectors), self.block)
        return {name: np.where(finite, column, np.nan) for name, column in found.items()}


class OneByOne:
    """The sharpness of one state after the other."""

    def __init__(self, map_: Map) -> None:
        self.map = map_
        self.methods: dict[str, str] = {}

    def __call__(self, states: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The sharpness with its bracket; NaN where the gradient overflows."""
        bounds = np.full((len(states), 3), np.nan)
        for row, state in enumerate(states):
            theta = np.asarray(in_precision(self.map.parameters, state))
            if np.all(np.isfinite(self.map.objective.gradient(theta))):
                bracket = sharpness(self.map.objective, theta)
                bounds[row] = bracket.value, bracket.lower, bracket.upper
                self.methods.setdefault("sharpness", f"at the first step: {bracket.method}")
        return dict(zip(("sharpness", *BARS["sharpness"]), bounds.T, strict=True))


def observers_of(map_: Map, names: tuple[str, ...], start: np.ndarray) -> list[Observer]:
    """What computes the recorded quantities."""
    initial = np.asarray(in_precision(map_.parameters, start))
    dim = map_.objective.dim
    ulps = np.random.default_rng(0).choice([-1.0, 1.0], dim)
    pointwise = tuple(name for name in names if name not in SPECTRAL)
    spectral = tuple(name for name in names if name in SPECTRAL)
    observers: list[Observer] = []
    if pointwise:
        observers.append(OnLanes(Pointwise(map_, pointwise, initial, ulps), start))
    if spectral and dim <= DENSE_LIMIT:
        observers.append(DenseSpectra(map_, spectral, ulps, start))
    elif spectral:
        observers.append(OneByOne(map_))
    return observers


def traced_bytes(function: Callable[..., Any], *arrays: Any) -> int:
    """The size of all intermediate results of ``function``: more than it needs at any one time."""
    with float64():
        trace = jax.make_jaxpr(lambda *arrays: function(*arrays))(*arrays)
    return intermediate_bytes(trace.jaxpr)


def intermediate_bytes(jaxpr: Any) -> int:
    """The size of every result in a jaxpr, those of the programs it calls included."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(variable.aval.size * variable.aval.dtype.itemsize for variable in equation.outvars)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += intermediate_bytes(inner)
    return total


def in_precision(function: Callable[[Any], Any], array: np.ndarray) -> Any:
    """``function(array)`` with JAX in double precision."""
    with float64():
        return function(array)


def blank_columns(
    map_: Map, names: tuple[str, ...], numbers: np.ndarray, start: np.ndarray
) -> dict[str, np.ndarray]:
    """A column of NaN for every variable."""
    lengths = {"component": len(start), "parameter": map_.objective.dim}
    columns = {}
    for name in names:
        shape = (len(numbers), *(lengths[dim] for dim in QUANTITIES[name].dims))
        for variable in (name, *BARS.get(name, ())):
            columns[variable] = np.full(shape, np.nan, start.dtype)
    return columns


def labelled(
    map_: Map,
    names: tuple[str, ...],
    numbers: np.ndarray,
    columns: dict[str, np.ndarray],
    methods: dict[str, str],
) -> xr.Dataset:
    """The columns as a dataset with names, units, methods and the stability limit."""
    variables: dict[str, Any] = {}
    for name in names:
        quantity = QUANTITIES[name]
        for variable in (name, *BARS.get(name, ())):
            what = variable.removeprefix(name).strip("_")
            attributes = {
                "units": "1",
                "long_name": quantity.long_name + BAR_NAMES[what],
                "status": "computed",
                "method": methods.get(name) or quantity.method,
            }
            variables[variable] = (("step", *quantity.dims), columns[variable], attributes)
    limit = np.nan if map_.stability_limit is None else map_.stability_limit
    variables["stability_limit"] = (
        (),
        limit,
        {
            "units": "1",
            "long_name": "largest curvature at which the map is stable on a quadratic loss",
            "status": "computed",
            "method": "2 / step size, relative rounding error below eps"
            if isinstance(map_, GradientDescent)
            else "given by the map"
            if np.isfinite(limit)
            else "not known for this map",
        },
    )
    step = ("step", numbers, {"units": "steps", "long_name": "number of steps taken"})
    return xr.Dataset(variables, coords={"step": step})


BAR_NAMES = {
    "": "",
    "error": ": estimate of the absolute rounding error",
    "lower": ": lower end of its bracket",
    "upper": ": upper end of its bracket",
}


def checked_record(record: str | Sequence[str], map_: Map) -> tuple[str, ...]:
    """The names of what to record, each once, or an error naming one that cannot be recorded."""
    if isinstance(record, str):
        record = [record]
    if not isinstance(record, Sequence) or not all(isinstance(name, str) for name in record):
        raise TypeError(f"record must be a name or a sequence of names, got {record!r}")
    names = tuple(dict.fromkeys(record))
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown or not names:
        raise ValueError(
            f"record knows {', '.join(repr(name) for name in QUANTITIES)}; got "
            f"{', '.join(repr(name) for name in unknown) or 'nothing to record'}"
        )
    for name in DESCENT:
        if name in names and not isinstance(map_, GradientDescent):
            raise ValueError(f"record={name!r} is defined for GradientDescent, not for {type(map_).__name__}")
    if "alignment" in names and map_.objective.dim > DENSE_LIMIT:
        raise ValueError(
            f"record='alignment' needs dense Hessians, which are made up to {DENSE_LIMIT} parameters; this "
            f"objective has {map_.objective.dim}"
        )
    return names


def checked_count(count: Any, name: str) -> int:
    """A positive integer, or an error naming it."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if count >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got {count}")
    return int(count)


def checked_start(map_: Map, state: Any) -> np.ndarray:
    """The initial state as a finite NumPy vector of shape ``(state_dim,)``, made of parameters if need be."""
    start = np.asarray(as_floating(state))
    dim, state_dim = map_.objective.dim, map_.state_dim
    if start.dtype not in (np.float64, np.float32):
        raise TypeError(f"state has dtype {start.dtype}, expected float64 or float32")
    if start.shape not in ((state_dim,), (dim,)):
        shapes = f"({dim},)" if dim == state_dim else f"({state_dim},), or ({dim},) for parameters"
        raise ValueError(f"state has shape {start.shape}, expected {shapes}: pass one flat vector")
    if not np.all(np.isfinite(start)):
        raise ValueError(f"state holds a value that is not finite, first at {np.argmin(np.isfinite(start))}")
    if start.shape != (state_dim,):
        start = np.asarray(in_precision(map_.initial_state, start))
    return start

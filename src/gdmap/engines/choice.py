"""Which engine takes the trajectories of a map from event to event."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from gdmap.engines.strips import BlockedStride
from gdmap.engines.trace import trace_fingerprint
from gdmap.engines.xla import BlockedRun, Tolerances

ENGINES = ("simd", "xla")
KEPT = 32
log = logging.getLogger("gdmap")
_native: OrderedDict[Any, Any] = OrderedDict()
_told: set[str] = set()


def chosen_run(
    step: Callable[[Any, Any], Any],
    dim: int,
    dtype: np.dtype,
    window: int,
    tolerances: Tolerances,
    engine: str | None = None,
) -> Any:
    """The engine for trajectories of ``step(parameter, state)``: native vector kernels where they apply, else XLA.

    Native kernels are for double precision on this processor and for maps that the compiler can translate and that
    stay in its cache. The choice depends on the map, not on how many trajectories there are.

    Raises
    ------
    ValueError
        If ``engine='simd'`` was asked for and does not apply; the message says why.
    """
    native, xla = (
        partial(native_run, step, dim, window, tolerances),
        partial(BlockedRun, step, dim, window, tolerances),
    )
    return _chosen(native, xla, dtype, engine)


def chosen_stride(
    step: Callable[[Any], Any],
    dim: int,
    dtype: np.dtype,
    tolerances: Tolerances,
    escape_radius: float,
    engine: str | None = None,
) -> Any:
    """The engine for the strips of `engines.strips`, chosen as by `chosen_run`."""
    arguments = (step, dim, tolerances, escape_radius)
    return _chosen(partial(native_stride, *arguments), partial(BlockedStride, *arguments), dtype, engine)


def _chosen(native: Callable[[], Any], xla: Callable[[], Any], dtype: np.dtype, engine: str | None) -> Any:
    checked_engine(engine)
    if engine == "xla":
        return xla()
    reason = None if dtype == np.float64 else f"the states are {dtype}, native kernels are for float64"
    if jax.default_backend() != "cpu":
        reason = f"JAX computes on {jax.default_backend()}"
    if reason is None:
        try:
            return native()
        except unsupported() as error:
            reason = str(error)
    if engine == "simd":
        raise ValueError(f"the engine 'simd' cannot run this map: {reason}; leave engine out, or use 'xla'")
    if reason not in _told:
        _told.add(reason)
        log.warning("this map runs on the engine 'xla': %s", reason)
    return xla()


def checked_engine(engine: str | None) -> str | None:
    """The name of an engine, or none for the choice to be made."""
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine must be 'simd', 'xla' or None (chosen by the map), got {engine!r}")
    return engine


def unsupported() -> tuple[type[Exception], ...]:
    """What tells that the native engine does not apply."""
    try:
        from gdmap.engines.simd.flatten import Unsupported
    except ImportError:
        return (ImportError,)
    return (Unsupported, ImportError)


def native_run(step: Callable[[Any, Any], Any], dim: int, window: int, tolerances: Tolerances) -> Any:
    """The native kernels of a map, compiled once for equal maps."""
    from gdmap.engines.simd.run import NativeRun

    key = (trace_fingerprint(step, (), (dim,)), dim, window, tolerances)
    run = _native.pop(key, None) or NativeRun(step, dim, window, tolerances)
    _native[key] = run
    while len(_native) > KEPT:
        _native.popitem(last=False)
    return run


def native_stride(step: Callable[[Any], Any], dim: int, tolerances: Tolerances, escape_radius: float) -> Any:
    """The native kernel for strips of a map."""
    from gdmap.engines.simd.stride import NativeStride

    return NativeStride(step, dim, tolerances, escape_radius)

"""The fates a trajectory can have, and the reasons for them."""

from enum import IntEnum

import numpy as np
import xarray as xr

from gdmap.flags import flag_names


class Fate(IntEnum):
    """Where a trajectory ends. The classes are never merged.

    ``MINIMUM``: loss at the known optimum; or a critical point with positive definite Hessian; or one whose
    null directions are verified tangent to a manifold of equal-loss critical points. ``SADDLE``: a critical
    point with a negative Hessian eigenvalue (maxima included); for a `LinearNetwork` any critical point above
    the optimum. ``PERIODIC``: a confirmed cycle of minimal period 2 or more. ``DIVERGED``: left every bounded
    region, or the update is no longer a finite number (the reason says which). ``UNDECIDED``: none of these
    could be shown, with the reason. ``BOUNDED`` (random maps only): at the horizon the trajectory has not
    converged, and over the second half neither its steps nor its distance from the start had a tendency left.
    Of runs that still move at the horizon, followed further for the verdict alone (`judge_aperiodic`):
    ``CHAOTIC``, a top Lyapunov exponent above zero by four standard errors on an orbit that recurs (a chaotic
    transient longer than eight times the horizon passes for chaos);
    ``QUASIPERIODIC``, positive evidence of motion on an invariant torus, not merely an exponent near zero;
    ``MARGINAL``, at (or on the way to) a fixed point or cycle exactly at a threshold, a multiplier within three
    times its error of the unit circle (those along a family of minima or cycles do not count; exactly at a fold
    the cycle is not found, and the run undecided).
    """

    UNDECIDED = 0
    MINIMUM = 1
    SADDLE = 2
    PERIODIC = 3
    QUASIPERIODIC = 4
    CHAOTIC = 5
    DIVERGED = 6
    MARGINAL = 7
    BOUNDED = 8


class Reason(IntEnum):
    """Why a fate was given, or could not be.

    Of minima: ``KNOWN_OPTIMUM``, ``POSITIVE_DEFINITE_HESSIAN``, ``MANIFOLD_OF_MINIMA``. Of saddles:
    ``NEGATIVE_HESSIAN_EIGENVALUE``, ``CRITICAL_POINT_ABOVE_OPTIMUM``. Of cycles: ``CYCLE_CONFIRMED``. Of
    divergence: ``NORM_KEEPS_GROWING``, ``OVERFLOW`` and ``UPDATE_UNDEFINED`` (not a number at a state of
    moderate size). Of chaos: ``POSITIVE_EXPONENT``. Of quasiperiodic orbits: ``REGULAR_RECURRENCE`` (tangent
    vectors grow by no more than a power of time, smooth averages over two stretches agree, no return within 64
    steps, nor ever better ones at ever doubled times). Of marginal ones: ``MARGINAL_MULTIPLIER``.

    Of undecided runs: ``HORIZON_REACHED`` (still moving: more steps may tell); ``SLOW_CONVERGENCE`` (steps are
    negligible, but no critical point is near enough); ``DEGENERATE_CRITICAL_POINT`` (Newton's method does not
    converge, or flat directions that are no manifold); ``CYCLE_NOT_CONFIRMED`` (the orbit recurs, but no cycle
    closes nearby, as on a slow drift along a family); ``MARGINAL_MULTIPLIER`` (a multiplier too close to the unit
    circle to call); ``NEAR_UNSTABLE_ORBIT`` (close to a point or cycle where the orbit cannot stay);
    ``TOO_LARGE_TO_CONFIRM`` (more than 1,000 dimensions); ``NOT_DIFFERENTIABLE`` (at the point or cycle nearby the
    map or the gradient has no finite derivative to judge by).

    Of random maps: ``INTERPOLATING_MINIMUM`` (above 1,000 dimensions: the gradient of every sample is rounding
    noise, and so is the loss of every sample), ``BEYOND_ESCAPE_RADIUS`` (of divergence), ``NO_TREND`` (of bounded
    trajectories), and undecided: ``STILL_CONVERGING``, ``STILL_GROWING`` (over the second half of the horizon the
    steps shrank, or steps or distances grew, by more than chance allows; ``HORIZON_REACHED``: neither that nor the
    absence of a tendency could be shown).
    """

    HORIZON_REACHED = 0
    KNOWN_OPTIMUM = 1
    POSITIVE_DEFINITE_HESSIAN = 2
    MANIFOLD_OF_MINIMA = 3
    NEGATIVE_HESSIAN_EIGENVALUE = 4
    CRITICAL_POINT_ABOVE_OPTIMUM = 5
    CYCLE_CONFIRMED = 6
    NORM_KEEPS_GROWING = 7
    OVERFLOW = 8
    UPDATE_UNDEFINED = 9
    DEGENERATE_CRITICAL_POINT = 10
    SLOW_CONVERGENCE = 11
    CYCLE_NOT_CONFIRMED = 12
    MARGINAL_MULTIPLIER = 13
    NEAR_UNSTABLE_ORBIT = 14
    TOO_LARGE_TO_CONFIRM = 15
    INTERPOLATING_MINIMUM = 16
    BEYOND_ESCAPE_RADIUS = 17
    NO_TREND = 18
    STILL_CONVERGING = 19
    STILL_GROWING = 20
    POSITIVE_EXPONENT = 21
    REGULAR_RECURRENCE = 22
    NOT_DIFFERENTIABLE = 23


def fate_names(dataset: xr.Dataset) -> np.ndarray:
    """The fates in ``dataset.fate`` as strings, same shape (read from its ``flag_meanings``)."""
    return flag_names(dataset["fate"])


def reason_names(dataset: xr.Dataset) -> np.ndarray:
    """The reasons in ``dataset.reason`` as strings, same shape."""
    return flag_names(dataset["reason"])

"""Small diagrams that several tests look at, each made once."""

from functools import cache

import numpy as np

from gdmap import Function, GradientDescent, bifurcation_diagram, orbit_at, orbit_diagram

WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
# L' = x + x^3 - 0.4 x^5: the 2-cycle x -> -x solves 2 / eta = 1 + x^2 - 0.4 x^4, so it is born subcritically at
# eta = 2 and turns at x^2 = 5 / 4, eta = 2 / 1.625 = 16 / 13.
TURNING = Function(lambda x: x[0] ** 2 / 2 + x[0] ** 4 / 4 - 0.4 * x[0] ** 6 / 6, 1)
FOLD = 16 / 13


# The last one lies beyond the unstable 2-cycle at 1.9 alone.
STARTS = np.array([[0.5], [-1.2], [0.3], [1.6]])


def two_cycles(eta):
    """The 2-cycles ``(x, -x)`` of the turning loss: the stable one beyond the fold, and the unstable one."""
    squares = np.roots([-0.4, 1, 1 - 2 / eta])
    return [np.array([[np.sqrt(square)], [-np.sqrt(square)]]) for square in sorted(squares, reverse=True)]


@cache
def well_diagram():
    """The double well up to its second doubling, the wells being one by symmetry."""
    return bifurcation_diagram(
        GradientDescent(WELL, 0.5),
        bounds=(0.2, 1.25),
        starts=8,
        doublings=1,
        symmetries=(lambda x: -x,),
        observable=lambda x: x[0] ** 2,
    )


@cache
def turning_diagram():
    """The turning loss, begun at the minimum and at both 2-cycles beside the fold, each given twice."""
    at = GradientDescent(TURNING, 1.28)
    cycles = two_cycles(1.28)
    orbits = [orbit_at(at, guess) for guess in ([0.0], *cycles, cycles[0][::-1])]
    return bifurcation_diagram(orbits, bounds=(1.2, 2.05), doublings=0, branch_points=True)


@cache
def well_orbits():
    """Orbits of the double well, fresh starts, of which some and then all diverge."""
    values = np.array([0.5, 1.1, 1.9, 2.05])
    return orbit_diagram(GradientDescent(WELL, 0.5), values, STARTS, samples=16, transient=2000)


@cache
def hysteresis():
    """The turning loss from a start on the stable 2-cycle, up and down."""
    map_ = GradientDescent(TURNING, 1.2)
    values = np.array([1.3, 1.2, 1.24, 1.27])
    return orbit_diagram(map_, values, [[1.3]], samples=16, transient=2000, sweep=["up", "down"])

"""Normal forms of the bifurcations of periodic orbits: the coefficient that decides what is born.

Let ``f = G^p`` with ``x_0`` its fixed point, ``M = Df``, ``B`` and ``C`` its second and third derivatives, ``M q =
mu q``, ``p^T M = mu p^T`` with ``<p, q> = 1``, and ``q_i = DG^i q`` what is carried along the orbit. ``q`` has the
length at which the root mean square of ``|q_0|, ..., |q_{p-1}|`` is 1 (a unit vector for a fixed point), so that a
coefficient does not depend on the point of the cycle that comes first, and ``xi`` is a root mean square
displacement of the cycle. Along ``q`` the map is, on its centre manifold,

    fold (mu = 1)             xi -> xi + a xi^2,                a = <p, B(q, q)> / 2
    period doubling (mu = -1) xi -> -(1 + eps) xi + b xi^3,     b = <p, C(q, q, q) + 3 B(q, h)> / 6
    pitchfork (mu = 1, a = 0) xi -> (1 + eps) xi + b xi^3,      b as above
    Neimark-Sacker            z -> mu z (1 + d |z|^2),
                              d = <p, C(q, q, q*) + 2 B(q, h_11) + B(q*, h_20)> / (2 mu)

with ``h = h_11 = (I - M)^{-1} B(q, q)`` (``B(q, q*)``) and ``h_20 = (mu^2 - M)^{-1} B(q, q)``: Kuznetsov, Elements
of Applied Bifurcation Theory, chapters 4 and 5. No tensor is formed: ``C(q, q, q) + 3 B(q, h)`` is the third
derivative of ``f(x_0 + tau q + tau^2 h / 2)``, carried along the orbit point by point (so nothing is compiled anew
for a period), and the complex forms are Fourier coefficients of such derivatives over four directions.

On a family of orbits the directions along it (columns ``T``, ``M T = T``) are split off: ``q`` and ``p`` are
eigenvectors of ``M`` across it, and ``(I - M)^{-1}`` is solved across it. What ``B(q, q)`` has along the family is
its *drift*: where it does not vanish the state moves along the family, and no small new orbit exists beside this
member of it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eig

from gdmap.engines.xla import on_lanes
from gdmap.maps import Family
from gdmap.orbits.multipliers import return_jacobian

# Directions over which the complex forms are averaged.
ANGLES = np.pi / 4 * np.arange(4)
# A drift below this share of B(q, q) counts as zero.
DRIFT = 1e-6
# A sum below this share of its absolute terms counts as zero: symmetry makes it vanish.
VANISHES = 1e-6


class Jet(eqx.Module):
    """Three derivatives of ``G(x + tau x1 + tau^2/2 x2 + tau^3/6 x3)`` with the parameter moving at ``rate``."""

    family: Family

    def __call__(self, parameter: Any, state: Any, rate: Any, first: Any, second: Any, third: Any) -> Any:
        """Shape ``(3, d)``."""

        def curve(tau: Any) -> Any:
            moved = state + tau * (first + tau * (second / 2 + tau * third / 6))
            return self.family.step(parameter + tau * rate, moved)

        def derivative(function: Any) -> Any:
            return lambda tau: jax.jvp(function, (tau,), (jnp.ones_like(tau),))[1]

        one = derivative(curve)
        two = derivative(one)
        zero = jnp.zeros((), state.dtype)
        value, slope = jax.jvp(two, (zero,), (jnp.ones_like(zero),))
        return jnp.stack([one(zero), value, slope])


class Return(NamedTuple):
    """The return map at the first point of an orbit: what the forms need of it.

    ``along`` and ``across`` are orthonormal columns along and across the family; ``jacobians`` are those of ``G``,
    shape ``(p, d, d)``.
    """

    family: Family
    parameter: float
    points: np.ndarray
    jacobians: np.ndarray
    along: np.ndarray
    across: np.ndarray

    @property
    def jacobian(self) -> np.ndarray:
        """``M``, shape ``(d, d)``."""
        return return_jacobian(self.jacobians)

    def carried(self, vector: np.ndarray) -> np.ndarray:
        """A vector at the first point carried along the orbit by the derivative, shape ``(p, d)``."""
        vectors = [vector]
        for jacobian in self.jacobians[:-1]:
            vectors.append(jacobian @ vectors[-1])
        return np.array(vectors)

    def jets(self, first: np.ndarray, second: np.ndarray | None = None, rate: float = 0.0) -> np.ndarray:
        """Three derivatives of ``f`` along curves with given ones, ``(m, d)`` each; shape ``(m, 3, d)``."""
        first = np.atleast_2d(first)
        lanes = len(first)
        state = np.stack([first, np.zeros_like(first) if second is None else np.atleast_2d(second), 0 * first], 1)
        parameter, rates = np.full(lanes, self.parameter), np.full(lanes, float(rate))
        for point in self.points:
            here = np.broadcast_to(point, first.shape)
            arrays = (parameter, here, rates, state[:, 0], state[:, 1], state[:, 2])
            state = on_lanes(Jet(self.family), arrays, 4)
        return state

    def critical(self, target: complex) -> tuple[complex, np.ndarray, np.ndarray]:
        """The multiplier across the family nearest to ``target`` with ``q`` and ``p``."""
        reduced = self.across.T @ self.jacobian @ self.across
        values, left, right = eig(reduced, left=True, right=True)
        index = int(np.argmin(np.abs(values - target)))
        mu, q, p = values[index], self.across @ right[:, index], self.across @ left[:, index].conj()
        if self.along.shape[1] and abs(mu - 1) > 1e-6:
            q = q + self.along @ (self.along.T @ (self.jacobian @ q) / (mu - 1))
        if abs(mu.imag) == 0:
            q, p = q.real, p.real
        wave = self.carried(q)
        if abs(mu.imag) == 0:
            q = q * np.sign(wave.flat[np.argmax(np.abs(wave))])
        q = q * np.sqrt(len(wave)) / np.linalg.norm(wave)
        return complex(mu), q, p / (p @ q)

    def condition(self, z: complex) -> float:
        """The condition number of ``z I - M`` across the family."""
        size = self.across.shape[1]
        return float(np.linalg.cond(z * np.eye(size) - self.across.T @ self.jacobian @ self.across))

    def quadratic_terms(self, q: np.ndarray, p: np.ndarray) -> float:
        """The sum of the absolute terms, over points and components, that ``<p, B(q, q)> / 2`` is made of."""
        total, state, row = 0.0, self.carried(q), p
        for i in range(len(self.points) - 1, -1, -1):
            here = self._replace(points=self.points[i : i + 1])
            total += float(np.abs(row) @ np.abs(here.jets(state[i])[0, 1])) / 2
            row = row @ self.jacobians[i]
        return total

    def solve(self, z: complex, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``h`` with ``(z I - M) h = rhs``, across the family if ``z`` is 1; what is left over along it."""
        size = self.across.shape[1]
        reduced = z * np.eye(size) - self.across.T @ self.jacobian @ self.across
        h = self.across @ np.linalg.solve(reduced, self.across.T @ rhs)
        left_over = self.along.T @ (rhs + self.jacobian @ h - z * h)
        if self.along.shape[1] and abs(z - 1) > 1e-6:
            h = h + self.along @ (left_over / (z - 1))
            left_over = 0 * left_over
        return h, left_over

    def without(self, target: complex, rhs: np.ndarray) -> np.ndarray:
        """``h`` with ``(I - M) h = rhs`` up to the null direction at a multiplier 1, and orthogonal to it."""
        _, q, p = self.critical(target)
        size = self.across.shape[1]
        reduced = np.eye(size) - self.across.T @ self.jacobian @ self.across
        columns, row = self.across.T @ p, self.across.T @ q
        bordered = np.block([[reduced, columns[:, None]], [row[None], np.zeros((1, 1))]])
        h: np.ndarray = self.across @ np.linalg.solve(bordered, np.append(self.across.T @ rhs, 0.0))[:-1]
        return h


class Form(NamedTuple):
    """A normal form: ``coefficient`` (complex for Neimark-Sacker), the critical pair, the second-order term.

    ``scale`` is the sum of the absolute terms of the coefficient, each times the condition number of the linear
    equations in it: its rounding error is a small multiple of ``eps`` times that. ``bend`` is ``h``: what is born
    lies at ``x_0 + xi q + xi^2 h / 2``. ``drift`` is the share of ``B(q, q)`` along the family; ``quadratic`` is
    ``a`` and ``cubic`` is ``b`` where both are computed (branch points).
    """

    coefficient: complex
    multiplier: complex
    right: np.ndarray
    left: np.ndarray
    bend: np.ndarray
    drift: float = 0.0
    quadratic: float = 0.0
    cubic: float = 0.0
    scale: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether the map has the derivatives that the form needs."""
        values = [np.array([self.coefficient, self.multiplier]), self.right, self.left, self.bend]
        return all(bool(np.all(np.isfinite(value))) for value in values)


def flip_form(at: Return) -> Form:
    """``b`` of a period doubling."""
    mu, q, p = at.critical(-1)
    q, p = q.real, p.real
    _, second, third = at.jets(q)[0]
    h, left_over = at.solve(1, second)
    cubic = float(p @ at.jets(q, h)[0, 2]) / 6
    scale = cubic_scale(at.condition(1), q, p, second, third, h)
    return Form(cubic, mu, q, p, h, share(left_over, second), 0.0, cubic, scale)


def fold_form(at: Return) -> Form:
    """``a`` of a fold."""
    mu, q, p = at.critical(1)
    q, p = q.real, p.real
    second = at.jets(q)[0, 1]
    a, scale = float(p @ second) / 2, float(np.linalg.norm(p) * np.linalg.norm(second)) / 2
    return Form(a, mu, q, p, np.zeros_like(q), share(at.along.T @ second, second), a, 0.0, scale)


def branch_point_form(at: Return, error: float) -> Form:
    """``a`` of a transcritical branch point, or ``b`` where ``a`` vanishes (a pitchfork).

    ``error`` is that of the points: ``a`` vanishes if it is negligible beside the terms that it is the sum of, or
    beside what moving the points by their error makes of it.
    """
    mu, q, p = at.critical(1)
    q, p = q.real, p.real
    _, second, third = at.jets(q)[0]
    a = float(p @ second) / 2
    h = at.without(1, second - 2 * a * q)
    b = float(p @ at.jets(q, h)[0, 2]) / 6
    size = float(np.linalg.norm(p) * np.linalg.norm(second)) / 2
    moved = error * float(np.linalg.norm(p) * np.linalg.norm(third)) / float(np.linalg.norm(q))
    is_pitchfork = abs(a) <= VANISHES * at.quadratic_terms(q, p) + moved
    scale = cubic_scale(1.0, q, p, second, third, h) if is_pitchfork else size
    drift = share(at.along.T @ second, second)
    return Form(b if is_pitchfork else a, mu, q, p, h, drift, 0.0 if is_pitchfork else a, b, scale)


def cubic_scale(
    condition: float, q: np.ndarray, p: np.ndarray, second: np.ndarray, third: np.ndarray, h: np.ndarray
) -> float:
    """The sum of the absolute terms of ``<p, C(q, q, q) + 3 B(q, h)> / 6``."""
    mixed = np.linalg.norm(second) * np.linalg.norm(h) / np.linalg.norm(q)
    return float(np.linalg.norm(p) * (np.linalg.norm(third) + 3 * condition * mixed)) / 6


def neimark_sacker_form(at: Return, multiplier: complex) -> Form:
    """``d`` of a Neimark-Sacker bifurcation; its real part is the first Lyapunov coefficient."""
    mu, q, p = at.critical(multiplier)
    phases = np.exp(1j * ANGLES)
    lines = 2 * np.real(phases[:, None] * q)
    jets = at.jets(lines)
    second = jets[:, 1]
    f11 = second.mean(axis=0) / 2
    f20 = (second * phases[:, None] ** -2).mean(axis=0)
    try:
        h11, left_over = at.solve(1, f11)
        h20, _ = at.solve(mu**2, f20)
    except np.linalg.LinAlgError:
        # At an angle of 0 or of a third of a turn the form does not exist.
        return Form(complex(np.nan), mu, q, p, np.full(len(q), np.nan), 0.0, scale=np.inf)
    bends = 2 * np.real(phases[:, None] ** 2 * h20) + 2 * h11
    third = at.jets(lines, bends)[:, 2]
    f21 = (third * phases[:, None] ** -1).mean(axis=0) / 3
    d = complex(p @ f21) / (2 * mu)
    sizes = np.linalg.norm(lines, axis=1)
    bilinear = float((np.linalg.norm(second, axis=1) / sizes**2).max() * np.linalg.norm(q))
    terms = float(np.linalg.norm(jets[:, 2], axis=1).mean()) / 3
    terms += 2 * bilinear * float(np.linalg.norm(h11)) * at.condition(1)
    terms += bilinear * float(np.linalg.norm(h20)) * at.condition(mu**2)
    return Form(d, mu, q, p, h11, share(left_over, f11), scale=float(np.linalg.norm(p)) * terms / 2)


def slope_of_multiplier(at: Return, form: Form, state_rate: np.ndarray, rate: float) -> complex:
    """The derivative of the critical multiplier along a curve with these rates of ``x_0`` and parameter."""

    def mixed(vector: np.ndarray) -> np.ndarray:
        plus = at.jets(vector + state_rate, rate=rate)[0, 1]
        minus = at.jets(vector - state_rate, rate=-rate)[0, 1]
        return (plus - minus) / 4

    q = form.right
    derivative = mixed(q.real) + 1j * mixed(q.imag) if np.iscomplexobj(q) else mixed(q)
    return complex(form.left @ derivative)


def share(part: np.ndarray, whole: np.ndarray) -> float:
    """The norm of a part relative to the whole; 0 if that is nothing."""
    size = float(np.linalg.norm(whole))
    return float(np.linalg.norm(part)) / size if size > 0 else 0.0

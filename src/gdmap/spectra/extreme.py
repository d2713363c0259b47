"""The largest Hessian eigenvalue at a point (the sharpness)."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from gdmap.bracket import Bracket
from gdmap.objectives import AbstractObjective

DENSE_LIMIT = 1500


def largest_eigenvalue(objective: AbstractObjective, theta: np.ndarray) -> Bracket:
    """The largest eigenvalue of the Hessian of ``objective`` at ``theta`` (status *computed*).

    Up to `DENSE_LIMIT` parameters from the dense Hessian, with the backward error of the symmetric
    eigensolver ``dim eps ||H||`` and four times the change when ``theta`` is moved by units in the last place
    (the Hessian's own rounding). Above it by Lanczos iteration on
    Hessian-vector products: the Ritz value is a lower bound up to rounding, and the upper end adds the residual
    norm (an eigenvalue lies that close; that it is the largest is the usual assumption of the method).
    """
    theta = np.asarray(theta, dtype=float)
    eps = np.finfo(float).eps
    if objective.dim <= DENSE_LIMIT:
        eigenvalues = np.linalg.eigvalsh(objective.hessian(theta))
        value = float(eigenvalues[-1])
        near = [
            float(np.linalg.eigvalsh(objective.hessian(theta + signs * np.spacing(theta)))[-1])
            for signs in np.random.default_rng(0).choice([-1.0, 1.0], (2, objective.dim))
        ]
        error = objective.dim * eps * float(np.abs(eigenvalues).max())
        error += 4 * max(abs(other - value) for other in near)
        return Bracket(value, value - error, value + error, "computed", "dense Hessian, symmetric eigensolver")
    operator = LinearOperator(
        (objective.dim, objective.dim), matvec=lambda v: objective.hvp(theta, np.ravel(v)), dtype=float
    )
    start = np.random.default_rng(0).standard_normal(objective.dim)
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=1e-12)
    value, vector = float(values[0]), vectors[:, 0]
    residual = float(np.linalg.norm(objective.hvp(theta, vector) - value * vector))
    error = objective.dim * eps * abs(value)
    return Bracket(value, value - error, value + residual + error, "computed", "Lanczos, residual bound")

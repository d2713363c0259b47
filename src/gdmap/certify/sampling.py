"""What random draws show about pieces of a loss that were not looked at: upper confidence bounds."""

import math

from scipy import special

from gdmap.bracket import Bracket


def unseen_probability(n_samples: int, n_failures: int = 0, confidence: float = 0.99) -> Bracket:
    """Upper confidence bound on the probability that a new draw fails, from independent draws (Clopper-Pearson).

    Whether a draw fails must be settled by the draw alone, not by the other draws: "its piece is singular", or
    "the verifier refuses its piece". Zero failures then bound the probability of all such pieces together, seen or
    not. "Its piece is not among the pieces listed" is such a property only for draws other than those that made
    the list: use fresh draws, or `missing_mass` for the draws themselves.

    Parameters
    ----------
    n_samples
        Number K of independent draws from the law.
    n_failures
        Number of draws that failed.
    confidence
        Level ``1 - delta``.

    Returns
    -------
    Bracket
        value ``n_failures / K``, lower end 0, upper end the p at which ``n_failures`` or fewer failures have
        probability delta; without failures that is ``1 - delta ** (1 / K)``. Status ``'estimated'``.

    References
    ----------
    C. J. Clopper, E. S. Pearson, Biometrika 26 (1934) 404-413.
    """
    check_counts(n_samples, n_failures, confidence, "n_failures")
    if n_failures == n_samples:
        upper = 1.0
    elif n_failures == 0:
        upper = -math.expm1(math.log1p(-confidence) / n_samples)
    else:
        upper = float(special.betaincinv(n_failures + 1, n_samples - n_failures, confidence))
    return bounded(
        n_failures / n_samples,
        upper * (1 + 1e-12),
        confidence,
        f"Clopper-Pearson upper bound on the probability of a failing draw: {n_failures} of {n_samples} failed",
    )


def missing_mass(n_samples: int, n_singletons: int, confidence: float = 0.99) -> Bracket:
    """Upper confidence bound on the probability that a new draw is a piece that none of the draws has shown.

    With probability at least ``1 - delta``, whatever the law,

        M <= n_singletons / K + (1 + sqrt(2)) sqrt(log(2 / delta) / K).

    Proof: ``M <= E[M] + sqrt(log(2 / delta) / K)`` (McAllester and Ortiz; Berend and Kontorovich); ``E[M]`` is at
    most the mean of Turing's estimator ``n_singletons / K``, which changes by at most ``2 / K`` with one draw and
    so stays above its mean less ``sqrt(2 log(2 / delta) / K)`` (McDiarmid). Each fails with probability delta / 2.

    Parameters
    ----------
    n_samples
        Number K of independent draws from the law.
    n_singletons
        Number of pieces that were drawn exactly once.
    confidence
        Level ``1 - delta``.

    Notes
    -----
    Half the draws held out, and `unseen_probability` of those whose piece the other half has not shown, bound the
    same kind of probability more tightly when it is small.

    References
    ----------
    D. McAllester, R. Schapire, On the convergence rate of Good-Turing estimators, COLT 2000.
    D. McAllester, L. Ortiz, J. Mach. Learn. Res. 4 (2003) 895-911.
    D. Berend, A. Kontorovich, Electron. Commun. Probab. 18 (2013) no. 3.
    """
    check_counts(n_samples, n_singletons, confidence, "n_singletons")
    turing = n_singletons / n_samples
    margin = (1 + math.sqrt(2)) * math.sqrt((math.log(2) - math.log1p(-confidence)) / n_samples)
    return bounded(
        turing,
        (turing + margin) * (1 + 1e-12),
        confidence,
        f"Good-Turing upper bound on the probability of pieces not drawn: {n_singletons} of {n_samples} draws "
        "showed a piece no other draw showed",
    )


def check_counts(n_samples: int, count: int, confidence: float, name: str) -> None:
    """Reject counts that cannot be."""
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")
    if not 0 <= count <= n_samples:
        raise ValueError(f"{name} must lie between 0 and n_samples = {n_samples}, not {count}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, not {confidence}")


def bounded(value: float, upper: float, confidence: float, method: str) -> Bracket:
    """A probability with its upper confidence bound."""
    upper = min(1.0, max(upper, value))
    return Bracket(value=value, lower=0.0, upper=upper, status="estimated", method=method, confidence=confidence)

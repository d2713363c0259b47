"""The standard error of a sum over a stationary series, from the series itself.

A series of block sums ``s_1, ..., s_n`` with mean ``mu len_j`` is modelled as ``e_j + u_j - u_{j+1}`` with
independent ``e_j`` of variance ``a`` and ``u_j`` of variance ``b``, that is with the covariance ``a I + b T``,
``T`` the second difference. Then ``Var(s_1 + ... + s_n) = a n + 2 b``. Long blocks of any series that mixes are of
this form: ``a`` is its long-run variance, and ``b``, of either sign, what blocks have in common with their
neighbours. ``a`` may be 0: then the sums telescope, and the error of the mean falls like ``1/n`` and not like
``1/sqrt(n)``; block means taken for independent would overestimate it by a factor of about ``sqrt(n)``.
"""

from typing import NamedTuple

import numpy as np
from scipy.fft import dst
from scipy.stats import chi2

EPS = float(np.finfo(np.float64).eps)
GRID = 160
# Below so few blocks nothing is merged any more.
FEWEST = 32
# Blocks are merged when the slow half-octaves of the model's residuals have a power as rare as this.
SUSPICIOUS = 0.01


class LongRun(NamedTuple):
    """Errors of sums over series; one entry per series.

    ``mean`` per unit of length, its ``standard_error``, the equivalent degrees of freedom ``freedom`` of the
    error, the number of ``blocks`` left after merging, ``noise`` and ``exchange`` (``a`` and ``b`` per block
    left), and ``fits``, whether the model described these blocks.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray
    blocks: np.ndarray
    noise: np.ndarray
    exchange: np.ndarray
    fits: np.ndarray


def long_run(sums: np.ndarray, lengths: np.ndarray) -> LongRun:
    """`LongRun` of series of block sums, shape ``(series, n)``, over blocks of the given lengths, shape ``(n,)``.

    Neighbouring blocks are merged two by two, down to 32, until the power of the residuals at low frequencies is
    that of the model. The two variances are averaged over their posterior (flat in ``log(a / (a + 2 b))`` and in
    the logarithm of the scale), which covers both ends, ``a = 0`` and ``b = 0``. Where even the longest blocks do
    not fit, the error is enlarged by the excess.
    """
    series = len(sums)
    mean, error, freedom, blocks, noise, exchange = np.zeros((6, series))
    found = LongRun(mean, error, freedom, blocks, noise, exchange, np.zeros(series, bool))
    total = float(lengths.sum())
    found.mean[:] = sums.sum(axis=1) / total
    pending = np.arange(series)
    while pending.size:
        model = _fitted(sums[pending], lengths)
        last = sums.shape[1] < 2 * FEWEST
        done = model.fits | last
        rows = pending[done]
        for field, values in zip(found[1:], model[1:], strict=True):
            field[rows] = values[done]
        pending = pending[~done]
        if last:
            break
        pairs = sums.shape[1] // 2 * 2
        merged = sums[:, :pairs:2] + sums[:, 1:pairs:2]
        halved = lengths[:pairs:2] + lengths[1:pairs:2]
        if sums.shape[1] > pairs:  # the last block joins its neighbour
            merged[:, -1] += sums[:, -1]
            halved[-1] += lengths[-1]
        sums, lengths = merged, halved
    return found


def _fitted(sums: np.ndarray, lengths: np.ndarray) -> LongRun:
    series, n = sums.shape
    total = float(lengths.sum())
    mean = sums.sum(axis=1) / total
    centred = sums - mean[:, None] * lengths
    scale = np.abs(centred).max(axis=1)
    # What is left of constant sums is rounding.
    constant = scale <= 8 * EPS * np.abs(sums).max(axis=1, initial=0.0)
    unit = np.where(scale > 0, scale, 1.0)
    frequency = np.pi * np.arange(1, n + 1) / (n + 1)
    tau = 2 - 2 * np.cos(frequency)
    # In place of rounding alone something that can be fitted.
    y = np.where(constant[:, None], np.resize([1.0, -1.0], n), centred / unit[:, None])
    # Row by row, here and below: no result depends on the other series, not even in its last bit.
    y = np.array([dst(row, type=1, norm="ortho") for row in y])
    ones = dst(np.asarray(lengths, float) * n / total, type=1, norm="ortho")
    # The spectrum a + b tau runs from a at zero to a + 4 b at pi; phi is the share of the former.
    odds = np.concatenate([np.geomspace(1e-3 / n**2, 1.0, GRID), np.geomspace(1.0, 1e3, GRID // 4)[1:]])
    phi = odds / (1 + odds)
    shape = phi[:, None] * (1 - tau / 4) + (1 - phi[:, None]) * tau / 4
    inverse = 1 / shape
    weight = np.sum(inverse * ones**2, axis=1)
    shift = np.array([np.sum(inverse * (row * ones), axis=1) for row in y]) / weight
    Q = np.array([np.sum(inverse * row**2, axis=1) for row in y]) - shift**2 * weight
    Q = np.maximum(Q, 1e-300)
    log_posterior = -0.5 * (np.log(shape).sum(axis=1) + np.log(weight)) - 0.5 * (n - 1) * np.log(Q)
    log_posterior += np.log(np.gradient(np.log(odds)))
    posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    scale2 = Q / (n - 3)
    a, b = phi, (1 - 2 * phi) / 4
    variance = (n * a + 2 * b) * scale2
    expected = (posterior * variance).sum(axis=1)
    second = (posterior * variance**2 * (n - 3) / (n - 5)).sum(axis=1)
    spread = np.maximum(second / expected**2 - 1, 2 / n)
    best = posterior.argmax(axis=1)
    rows = np.arange(series)
    residual = (y - shift[rows, best][:, None] * ones) ** 2 * inverse[best] / scale2[rows, best][:, None]
    fits, excess = _low_power(residual)
    enlarged = np.where(fits | (n >= 2 * FEWEST), 1.0, np.maximum(excess, 1.0))
    floor = EPS * np.abs(sums).sum(axis=1) / total
    error = np.where(constant, 0.0, np.sqrt(expected * enlarged) * unit / total)
    return LongRun(
        mean,
        np.maximum(error, floor),
        np.where(constant, n - 1.0, np.clip(2 / spread, 2.0, n - 1.0)),
        np.full(series, float(n)),
        np.where(constant, 0.0, (posterior * a * scale2).sum(axis=1) * unit**2),
        np.where(constant, 0.0, (posterior * b * scale2).sum(axis=1) * unit**2),
        fits | constant,
    )


def _low_power(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the mean squares of the whitened residuals at low frequencies are those of noise; the largest."""
    n = residual.shape[1]
    counts = sorted({max(4, n // 32), max(8, n // 8)})
    means = np.stack([residual[:, :count].mean(axis=1) for count in counts])
    limits = [[chi2.ppf(q, count) / count for count in counts] for q in (SUSPICIOUS / 2, 1 - SUSPICIOUS / 2)]
    low, high = (np.array(limit)[:, None] for limit in limits)
    return np.all((means >= low) & (means <= high), axis=0), means.max(axis=0)

"""Rules, pre-aggregators and attacks from their formulas, in float64 NumPy."""

import numpy as np


def squared_distances(x):
    return np.square(x[:, None, :] - x[None, :, :]).sum(-1)


def mean(x):
    return x.mean(0)


def median(x):
    return np.median(x, axis=0)


def lower_median(x):
    return np.sort(x, axis=0)[(len(x) - 1) // 2]


def trimmed_mean(x, f):
    return np.sort(x, axis=0)[f : len(x) - f].mean(0)


def mean_of_nearest(x, centre, k):
    """The first rows win among values equally near."""
    nearest = np.argsort(np.abs(x - centre), axis=0, kind="stable")[:k]
    return np.take_along_axis(x, nearest, axis=0).mean(0)


def mean_near_median(x, k):
    """The same about the median of float32 columns; NaN counts as +inf."""
    x = np.where(np.isnan(x), np.float32(np.inf), x)
    ordered, n = np.sort(x, axis=0), len(x)
    centre = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(x - centre), nan=np.inf, posinf=np.inf)
        nearest = np.argsort(apart, axis=0, kind="stable")[:k]
        return np.take_along_axis(x, nearest, axis=0).astype(np.float64).mean(0)


def mea_med(x, f):
    return mean_of_nearest(x, median(x), len(x) - f)


def phocas(x, f):
    return mean_of_nearest(x, trimmed_mean(x, f), len(x) - f)


def sign_majority(x):
    return np.sign(np.sign(x).sum(0))


def krum_scores(x, f):
    distances = squared_distances(x)
    others = [np.sort(np.delete(row, i)) for i, row in enumerate(distances)]
    return np.array([row[: len(x) - f - 2].sum() for row in others])


def krum(x, f):
    return x[np.argmin(krum_scores(x, f))]


def multi_krum(x, f, q=None):
    best = np.argsort(krum_scores(x, f), kind="stable")
    return x[best[: len(x) - f - 2 if q is None else q]].mean(0)


def geometric_median(x, steps=32):
    """A row where no direction is downhill, or Weiszfeld steps from the rows nearest the medoid."""
    distances = np.sqrt(squared_distances(x))
    for row in x:
        away = x - row
        norms = np.linalg.norm(away, axis=1)
        here = norms <= 1e-12 * norms.max()  # means of the same rows differ by rounding
        if np.linalg.norm((away[~here] / norms[~here, None]).sum(0)) < here.sum() - 1e-9:
            return row
    medoid = distances[np.argmin(distances.sum(1))]
    return weiszfeld(x, x[np.argsort(medoid, kind="stable")[: len(x) // 2 + 1]].mean(0), steps)


def weiszfeld(x, z, steps, nu=1e-9, mass=1.0):
    for _ in range(steps):
        weights = mass / np.maximum(np.linalg.norm(x - z, axis=1), nu)
        z = weights @ x / weights.sum()
    return z


def centered_clipping(x, v, tau, iterations):
    for _ in range(iterations):
        difference = x - v
        norms = np.linalg.norm(difference, axis=1, keepdims=True)
        v = v + (difference * np.minimum(1, tau / np.maximum(norms, 1e-300))).mean(0)
    return v


def nnm(x, f):
    nearest = np.argsort(squared_distances(x), axis=1, kind="stable")[:, : len(x) - f]
    return np.stack([x[indices].mean(0) for indices in nearest])


def arc(x, f):
    n = len(x)
    k = 2 * f * (n - f) // n
    norms = np.linalg.norm(x, axis=1)
    threshold = np.sort(norms)[n - k - 1]
    return x * np.minimum(1, threshold / np.maximum(norms, 1e-300))[:, None]


def fltrust(x, root, scale=1.0):
    """The answer, the cosines, the shares of trust."""
    norms, length = np.linalg.norm(x, axis=1), np.linalg.norm(root)
    cosines = x @ root / np.maximum(norms * length, 1e-300)
    trust = np.maximum(cosines, 0)
    shares = trust / max(trust.sum(), 1e-300)
    return shares / np.maximum(norms, 1e-300) @ x * scale * length, cosines, shares


def zeno_scores(x, w, loss, step, rho, mean_square=False):
    squares = np.square(x).mean(1) if mean_square else np.square(x).sum(1)
    return loss(w) - np.array([loss(w - step * g) for g in x]) - rho * squares


def zeno(x, scores, b):
    return x[np.sort(np.argsort(scores, kind="stable")[b:])].mean(0)


def impacts(x, w, measure, step):
    """How much worse each row makes the model that the mean of all gives."""
    without = [measure(w - step * np.delete(x, i, axis=0).mean(0)) for i in range(len(x))]
    return measure(w - step * x.mean(0)) - np.array(without)


def loss_rejection(x, f, *impacts):
    """The mean without the f rows of largest impact, of each kind; and who is left."""
    kept = np.full(len(x), True)
    for impact in impacts:
        kept[np.argsort(-impact, kind="stable")[:f]] = False
    return x[kept].mean(0), kept


def layer_normal(x, own):
    """Layer normalisation with flax's parameters."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x * own["scale"] + own["bias"]


def dense(x, own):
    """A dense layer with flax's parameters."""
    return x @ own["kernel"] + own["bias"]

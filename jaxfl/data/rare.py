"""Samples that no honest client has: the rarest of one class."""

import numpy as np
from jaxtyping import Array

from jaxfl.component import Component, field

COMPONENTS = 30
"""Principal components with a variance of their own; all others share one."""


class RareData(Component):
    """The rarest samples of one class, which only attackers have: for ``EdgeCase``.

    A Gaussian is fitted to the training samples of class ``label``, with a variance for each of
    their 30 largest principal components and one for all others; the ``size`` training samples of
    least density are taken from the training data. Of the test samples of the class as large a
    share, the rarest by the same Gaussian, shows how an attack succeeds; they stay test samples.

    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the
    tails: yes, you really can backdoor federated learning", NeurIPS 2020, take such samples from
    other data sets; densities are of pixels here, and of a network's features there.

    >>> images, labels = np.zeros((5, 2, 2)), np.array([0, 1, 1, 1, 1])
    >>> images[3] = 9
    >>> data = jaxfl.data.from_arrays(images, labels, images, labels)
    >>> data.set_apart(RareData(label=1, size=1)).rare_inputs[0].tolist()
    [[9.0, 9.0], [9.0, 9.0]]
    """

    name = "rare"

    label: int = field(at_least=0)
    """The class whose samples they are."""
    size: int = field(default=100, at_least=1)
    """How many training samples."""

    def choose(
        self,
        inputs: np.ndarray | Array,
        labels: np.ndarray,
        test_inputs: np.ndarray | Array,
        test_labels: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which training samples, and which test samples: indices, the rarest first.

        Raises:
          ValueError: the class has not so many samples, or no test samples; inputs are words.
        """
        own, tested = (
            np.flatnonzero(labels == self.label),
            np.flatnonzero(test_labels == self.label),
        )
        if len(own) <= self.size or not len(tested):
            raise ValueError(
                f"RareData: class {self.label} must have more than size = {self.size} training "
                f"samples, and test samples; it has {len(own)} and {len(tested)}"
            )
        if np.issubdtype(inputs.dtype, np.integer) and inputs.dtype != np.uint8:
            raise ValueError(
                f"RareData needs inputs of numbers, such as images; got {inputs.dtype}"
            )
        x, y = (_flat(part[where]) for part, where in ((inputs, own), (test_inputs, tested)))
        away, test_away = _from_the_middle(x, x), _from_the_middle(x, y)
        count = max(1, round(self.size / len(own) * len(tested)))
        rarest = np.argsort(-away, kind="stable")[: self.size]
        return own[rarest], tested[np.argsort(-test_away, kind="stable")[:count]]


def _flat(inputs: np.ndarray | Array) -> np.ndarray:
    return np.asarray(inputs).reshape(len(inputs), -1).astype(np.float64)


def _from_the_middle(fitted: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Minus twice the log density, up to a constant, by the Gaussian fitted to some points."""
    middle = fitted.mean(axis=0)
    values, vectors = np.linalg.eigh(
        np.cov((fitted - middle).T, bias=True).reshape(len(middle), -1)
    )
    most = max(values[-1], np.finfo(float).tiny)
    values = np.maximum(values, 1e-9 * most)
    kept = min(COMPONENTS, len(values))
    rest = values[: len(values) - kept]
    centred = points - middle
    along = centred @ vectors[:, len(values) - kept :]
    left = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
    own = (along**2 / values[len(values) - kept :]).sum(axis=1)
    return own + (left / rest.mean() if len(rest) else 0)

"""The server's own samples."""

import math

import numpy as np

from jaxfl.component import Component, field


class RootData(Component):
    """Samples for the server: drawn from the training data, and kept from the clients.

    Without ``bias`` they are drawn uniformly. With it, ``floor(size * bias)`` of them are of the
    class ``bias_class``, and the others come from the other classes in equal numbers (to one);
    within a class they are drawn uniformly. bias = 1 / classes has no preference.

    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust federated learning via trust bootstrapping",
    NDSS 2021: size = 100, with and without bias. That clients do not own them, and which class is
    preferred, are as in the authors' code.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> chosen = RootData(size=4, bias=0.5, bias_class=2).draw(labels, 4, np.random.default_rng(0))
    >>> np.bincount(labels[chosen], minlength=4).tolist()
    [1, 1, 2, 0]
    """

    name = "root"

    size: int = field(default=100, at_least=1)
    """How many samples."""
    bias: float | None = field(default=None, at_least=0, at_most=1)
    """Share of them that is of ``bias_class``; none: drawn uniformly."""
    bias_class: int = field(default=1, at_least=0)
    """The class that is preferred."""

    def draw(self, labels: np.ndarray, classes: int, random: np.random.Generator) -> np.ndarray:
        """Which samples the server gets, from the labels ``[N]``: ``[size]`` indices.

        Raises:
          ValueError: there are not so many samples, or not so many of a class.
        """
        if self.size >= len(labels):
            raise ValueError(
                f"RootData: size must be below the number of training samples, {len(labels)}; "
                f"got {self.size}"
            )
        if self.bias is None:
            return random.permutation(len(labels))[: self.size]
        if self.bias_class >= classes or classes < 2:
            raise ValueError(
                f"RootData: bias_class must be one of at least two classes, 0..{classes - 1}; "
                f"got {self.bias_class}"
            )
        # Rounded first: 0.29 * 100 is 28.999999999999996.
        preferred = math.floor(round(self.size * self.bias, 9))
        others = np.arange(self.size - preferred) % (classes - 1)
        wanted = np.bincount(others, minlength=classes - 1)
        wanted = np.insert(wanted, self.bias_class, preferred)
        drawn = []
        for label, count in enumerate(wanted):
            members = random.permutation(np.flatnonzero(labels == label))
            if len(members) < count:
                raise ValueError(
                    f"RootData: {count} of its samples are to be of class {label}; "
                    f"there are {len(members)}"
                )
            drawn.append(members[:count])
        return np.concatenate(drawn)

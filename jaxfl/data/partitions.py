"""How training samples are divided among clients."""

import numpy as np

from jaxfl.component import Component, field


class Partition(Component):
    """A way to divide samples among clients. Abstract."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """The owner of each sample; every client gets at least one."""
        raise NotImplementedError


class IID(Partition):
    """A random permutation cut into equal parts (sizes differ by at most one)."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners = np.arange(len(labels)) % clients
        return random.permutation(owners)


class Dirichlet(Partition):
    """Label skew: each class is divided in proportions drawn from ``Dir(alpha, ..., alpha)``.

    alpha = 0.1 is strong heterogeneity, 10 nearly IID. A client left with nothing takes one
    sample from the largest. Hsu, Qi, Brown, "Measuring the effects of non-identical data
    distribution", 2019.
    """

    alpha: float = field(above=0)

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(clients, self.alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(int)
            for owner, part in enumerate(np.split(members, cuts)):
                owners[part] = owner
        return give_each_one(owners, clients, random)


def give_each_one(owners: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
    """Moves single samples from the largest clients to those that have none."""
    owners = owners.copy()
    count = np.bincount(owners, minlength=clients)
    for empty in np.flatnonzero(count == 0):
        largest = int(np.argmax(count))
        owners[random.choice(np.flatnonzero(owners == largest))] = empty
        count[largest] -= 1
        count[empty] = 1
    return owners

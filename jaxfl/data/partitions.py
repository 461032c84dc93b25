"""How training samples are divided among clients."""

import numpy as np

from jaxfl.component import field
from jaxfl.data.dataset import Dataset, LabelPartition, Partition
from jaxfl.data.dealing import cut, deal, deal_fraction, deal_shards, give_each_one, runs


class IID(LabelPartition):
    """A random permutation cut into equal parts (sizes differ by at most one).

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(IID().assign(labels, 4, random)).tolist()
    [6, 6, 6, 6]
    """

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        return deal(len(labels), clients, random)


class Dirichlet(LabelPartition):
    """Label skew: each class is divided in proportions drawn from ``Dir(alpha, ..., alpha)``.

    alpha = 0.1 is strong heterogeneity, 10 nearly IID. Hsu, Qi, Brown, "Measuring the effects
    of non-identical data distribution", 2019.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> owners = Dirichlet(alpha=0.1).assign(labels, 4, random)
    >>> [np.unique(labels[owners == k]).tolist() for k in range(4)]
    [[0], [1], [1, 2], [0, 1, 2, 3]]
    """

    alpha: float = field(above=0, at_most=1e9)
    """Concentration: small is strong skew."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = random.permutation(np.flatnonzero(labels == label))
            owners[members] = cut(len(members), random.dirichlet(np.full(clients, self.alpha)))
        return give_each_one(owners, clients, random)


class Shards(LabelPartition):
    """Pathological label skew: the samples sorted by label, cut into shards, dealt at random.

    The sort is stable, the ``per_client * n`` shards are equal (to one sample), and each client
    gets ``per_client`` of them, so most clients see at most ``per_client`` labels.

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017: MNIST on n = 100 clients, 200 shards of 300 samples, 2 a client.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> owners = Shards(per_client=1).assign(labels, 4, random)
    >>> [np.unique(labels[owners == k]).tolist() for k in range(4)]
    [[1], [2], [0], [3]]
    """

    per_client: int = field(default=2, at_least=1)
    """Shards that each client gets."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners = deal_shards(labels, clients, self.per_client, random)
        return give_each_one(owners, clients, random)


class SFraction(LabelPartition):
    """SignGuard's scheme: a random fraction s of the samples IID, the rest in sorted shards.

    ``floor(s * N)`` samples drawn at random are dealt evenly; the others are sorted by label
    (stably), cut into 2n equal shards, and each client gets two random ones. s = 1 is IID,
    s = 0 is ``Shards(per_client=2)``.

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering" (SignGuard), ICDCS 2022, section VI-B: n = 50, s in {0.3, 0.5, 0.8}. The authors'
    code takes the first rather than random samples for the IID part.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(SFraction(s=0.5).assign(labels, 4, random)).tolist()
    [7, 5, 6, 6]
    """

    s: float = field(at_least=0, at_most=1)
    """Share of the samples that is dealt evenly."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners, rest = deal_fraction(self.s, len(labels), clients, random)
        owners[rest] = deal_shards(labels[rest], clients, 2, random)
        return give_each_one(owners, clients, random)


class BiasGroups(LabelPartition):
    """FLTrust's bias q: a group of clients per class, samples mostly in their class's group.

    The clients are split at random into C equal groups (to one client), C the number of
    classes. A sample of class l goes to group l with probability q, to each other group with
    probability ``(1 - q) / (C - 1)``; within the group to a client drawn uniformly. q = 1 / C is
    IID, q = 1 gives each client a single class. Needs at least C clients.

    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust federated learning via trust
    bootstrapping", NDSS 2021: n = 100, q = 0.1 (MNIST-0.1) and 0.5 (all other data sets).

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(BiasGroups(q=0.5).assign(labels, 4, random)).tolist()
    [7, 3, 6, 8]
    """

    q: float = field(at_least=0, at_most=1)
    """Probability that a sample goes to its class's group."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        classes = int(labels.max()) + 1
        if clients < classes:
            raise ValueError(
                f"BiasGroups: {classes} classes need a group each, so at least {classes} "
                f"clients; got {clients}"
            )
        group = labels.astype(np.int64)
        if classes > 1:
            elsewhere = random.random(len(labels)) >= self.q
            step = random.integers(1, classes, len(labels))
            group = np.where(elsewhere, (group + step) % classes, group)
        # Client members[g + j * classes] is the j-th of group g.
        members = random.permutation(clients)
        size = (clients - 1 - group) // classes + 1
        owners = members[group + classes * random.integers(0, size)]
        return give_each_one(owners, clients, random)


class GammaSimilarity(LabelPartition):
    """A random fraction gamma of the samples IID, the rest sorted by label, in n runs.

    ``floor(gamma * N)`` samples drawn at random are dealt evenly; the others are sorted by
    label (stably) and cut into n equal runs, the k-th for client k. gamma = 1 is IID, 0 gives
    each client one label or a few neighbouring ones.

    Karimireddy et al., "SCAFFOLD", ICML 2020 (there "s % similarity"); Gonzalez et al., "ByzFL:
    research framework for robust federated learning", 2025 (there "gamma similarity").

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(GammaSimilarity(gamma=0.5).assign(labels, 4, random)).tolist()
    [6, 6, 6, 6]
    """

    gamma: float = field(at_least=0, at_most=1)
    """Share of the samples that is dealt evenly."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners, rest = deal_fraction(self.gamma, len(labels), clients, random)
        rest = rest[np.argsort(labels[rest], kind="stable")]
        owners[rest] = runs(len(rest), clients)
        return give_each_one(owners, clients, random)


class QuantityDirichlet(LabelPartition):
    """Quantity skew: sizes in proportions drawn from ``Dir(alpha, ..., alpha)``, labels IID.

    Li, Diao, Chen, He, "Federated learning on non-IID data silos: an experimental study", ICDE
    2022: n = 10, alpha = 0.5.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(QuantityDirichlet(alpha=0.5).assign(labels, 4, random)).tolist()
    [5, 1, 12, 6]
    """

    alpha: float = field(default=0.5, above=0, at_most=1e9)
    """Concentration: small is strong skew."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        owners = cut(len(labels), random.dirichlet(np.full(clients, self.alpha)))
        return give_each_one(random.permutation(owners), clients, random)


class QuantityLogNormal(LabelPartition):
    """Quantity skew: sizes in proportion to ``exp(sigma * z)``, z standard normal; labels IID.

    sigma = 0 gives equal sizes. Acar et al., "Federated learning based on dynamic
    regularization" (FedDyn), ICLR 2021: n = 100, sigma = 0.3 for unbalanced data.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> np.bincount(QuantityLogNormal(sigma=1.0).assign(labels, 4, random)).tolist()
    [5, 4, 9, 6]
    """

    sigma: float = field(default=0.3, at_least=0, at_most=100)
    """Spread of the sizes' logarithms."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        normal = random.standard_normal(clients)
        # A common factor cancels; taking out the largest keeps exp from overflowing.
        shares = np.exp(self.sigma * (normal - normal.max()))
        owners = cut(len(labels), shares / shares.sum())
        return give_each_one(random.permutation(owners), clients, random)


class Minority(LabelPartition):
    """Two kinds of clients: a minority has the upper half of the classes, the others the lower.

    ``max(round(share * n), 1)`` random clients share the samples of the upper classes evenly, the
    rest those of the lower ones: what fairness is for, and what robust rules take for an attack.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> random = np.random.default_rng(0)
    >>> owners = Minority().assign(labels, 4, random)
    >>> [np.unique(labels[owners == k]).tolist() for k in range(4)]
    [[1], [0, 1], [2, 3], [0]]
    """

    share: float = field(default=0.15, above=0, below=1)
    """Share of the clients that are the minority."""

    def assign(self, labels: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        few = min(max(round(self.share * clients), 1), clients - 1)
        order, classes = random.permutation(clients), np.unique(labels)
        upper = np.isin(labels, classes[len(classes) // 2 :])
        owners = np.zeros(len(labels), np.int64)
        for members, group in ((upper, order[:few]), (~upper, order[few:])):
            if len(group):
                owners[members] = group[deal(int(members.sum()), len(group), random)]
        return give_each_one(owners, clients, random)


class Natural(Partition):
    """The division that the data comes with: client k owns what the k-th ``client_id`` owns.

    Clients are numbered in the sorted order of their ids. The data set must have ``client_ids``
    and exactly as many different ones as there are clients.

    >>> x, y, ids = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), np.array([7, 9, 9, 7])
    >>> data = jaxfl.data.from_arrays(x, y, x, y, client_ids=ids)
    >>> Natural().divide(data, 2, np.random.default_rng(0)).tolist()
    [0, 1, 1, 0]
    """

    def divide(self, data: Dataset, clients: int, random: np.random.Generator) -> np.ndarray:
        if data.client_ids is None:
            raise ValueError(f"Natural: {data.name} has no client_ids")
        unique, owners = np.unique(data.client_ids, return_inverse=True)
        if len(unique) != clients:
            raise ValueError(
                f"Natural: {data.name} has {len(unique)} clients of its own; got clients={clients}"
            )
        return owners

"""Dealing samples to clients: what several partitions are made of."""

import math

import numpy as np


def deal(samples: int, clients: int, random: np.random.Generator) -> np.ndarray:
    """Owners of samples dealt at random, as evenly as can be."""
    return random.permutation(np.arange(samples) % clients)


def deal_fraction(
    fraction: float, samples: int, clients: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Owners of all samples, filled for a random fraction dealt evenly; the others, ascending."""
    shuffled = random.permutation(samples)
    even = math.floor(fraction * samples)
    owners = np.empty(samples, np.int64)
    owners[shuffled[:even]] = np.arange(even) % clients
    return owners, np.sort(shuffled[even:])


def deal_shards(
    labels: np.ndarray, clients: int, per_client: int, random: np.random.Generator
) -> np.ndarray:
    """Owners of samples sorted by label and cut into shards dealt at random."""
    dealt = deal(clients * per_client, clients, random)
    owners = np.empty(len(labels), np.int64)
    owners[np.argsort(labels, kind="stable")] = dealt[runs(len(labels), clients * per_client)]
    return owners


def runs(samples: int, parts: int) -> np.ndarray:
    """The part of each sample when a list is cut into equal parts (to one sample), ascending."""
    return np.arange(samples) * parts // samples if samples else np.arange(0)


def cut(samples: int, shares: np.ndarray) -> np.ndarray:
    """The owner of each sample of a list cut at the floor of the cumulative shares."""
    cuts = (np.cumsum(shares)[:-1] * samples).astype(np.int64)
    return np.searchsorted(cuts, np.arange(samples), side="right")


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


def held_out(
    name: str, owners: np.ndarray, share: float, clients: int, seed: int
) -> np.ndarray | None:
    """Which samples their owners hold out: in all, the same number for every partition.

    Raises:
      ValueError: the share is none, or leaves a client nothing; names the data.
    """
    if not share:
        return None
    if not 0 < share < 1:
        raise ValueError(f"{name}: client_test must be at least 0 and below 1; got {share!r}")
    random = np.random.default_rng([seed, 1])
    shuffled = np.lexsort((random.random(len(owners)), owners))
    count = np.bincount(owners, minlength=clients + 1)[:clients]
    ends = np.floor(np.cumsum(count) * share + 0.5).astype(int)
    own = np.diff(ends, prepend=0)
    if np.any(own >= count):
        raise ValueError(
            f"{name}: client_test = {share} leaves client {int(np.argmax(own >= count))} "
            "no sample to train on"
        )
    start = np.cumsum(count) - count
    held = np.zeros(len(owners), bool)
    # The first of each client's samples in the random order.
    owner = owners[shuffled]
    rank = np.arange(len(owners)) - np.append(start, count.sum())[owner]
    held[shuffled[rank < np.append(own, 0)[owner]]] = True
    return held

"""Graphs of clients, as symmetric matrices, for laws under which neighbours fall together."""

from typing import Any

import numpy as np

from jaxfl.arguments import integer, numbers, share


def adjacency(graph: Any, n: int | None = None, name: str = "graph") -> np.ndarray:
    """An adjacency matrix [n, n], of 0 and 1 or of weights, from an array or a networkx graph.

    Raises:
      ValueError: it is not square, symmetric, finite, at least 0, and 0 on the diagonal; or not of
        n clients.

    >>> adjacency([[0, 1], [1, 0]]).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if hasattr(graph, "nodes") and hasattr(graph, "edges"):
        places = {node: i for i, node in enumerate(graph.nodes)}
        matrix = np.zeros((len(places), len(places)))
        for a, b, weight in graph.edges(data="weight", default=1.0):
            matrix[places[a], places[b]] = matrix[places[b], places[a]] = weight
    else:
        matrix = numbers(graph, name)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or (n is not None and len(matrix) != n):
        raise ValueError(
            f"{name} must be a matrix of {'n' if n is None else n} clients by as many; got shape "
            f"{matrix.shape}"
        )
    fine = np.isfinite(matrix).all() and (matrix >= 0).all() and not np.diagonal(matrix).any()
    if not fine or not np.array_equal(matrix, matrix.T):
        raise ValueError(
            f"{name} must be symmetric, with numbers that are at least 0 and 0 on the diagonal"
        )
    return matrix


def ring(n: int) -> np.ndarray:
    """Everybody has two neighbours.

    Raises:
      ValueError: n is no integer of at least 3.

    >>> ring(4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    n = integer(n, "ring: n", 3)
    after = np.roll(np.eye(n), 1, axis=1)
    return after + after.T


def nearest_neighbours(histograms: Any, k: int) -> np.ndarray:
    """Clients of similar data are neighbours: each and the k with the nearest label shares.

    Nearness is the total variation distance between the clients' shares of labels; two clients are
    neighbours if either has the other among its k nearest.

    Args:
      histograms: samples of each label at each client, [n, classes].
      k: neighbours of each client.

    Raises:
      ValueError: no such matrix, a client without samples, or k no integer from 1 to n - 1.

    >>> nearest_neighbours([[9, 1], [8, 2], [0, 10]], k=1)[0].tolist()
    [0.0, 1.0, 0.0]
    """
    counts = numbers(histograms, "histograms")
    if counts.ndim != 2 or (counts < 0).any() or not (counts.sum(axis=1) > 0).all():
        raise ValueError(
            "histograms must be a matrix [n, classes] of counts, with samples at every client; "
            f"got shape {counts.shape}"
        )
    n = len(counts)
    k = integer(k, "k", 1, n - 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    distances = np.abs(shares[:, None] - shares[None]).sum(axis=2) / 2
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    matrix = np.zeros((n, n))
    np.put_along_axis(matrix, nearest, 1.0, axis=1)
    return np.maximum(matrix, matrix.T)


def block_model(groups: Any, inside: float, between: float, seed: int = 0) -> np.ndarray:
    """A stochastic block model: two clients are neighbours with a probability by their groups.

    Args:
      groups: the group of each client, [n].
      inside: probability of two of one group.
      between: probability of two of different groups.
      seed: of the draws.

    Raises:
      ValueError: a probability outside [0, 1].

    >>> block_model([0, 0, 1], inside=1.0, between=0.0)[0].tolist()
    [0.0, 1.0, 0.0]
    """
    for name, value in (("inside", inside), ("between", between)):
        share(value, name)
    labels = np.asarray(groups)
    likely = np.where(labels[:, None] == labels[None, :], inside, between)
    drawn = np.triu(np.random.default_rng(seed).random(likely.shape) < likely, 1)
    return (drawn | drawn.T).astype(np.float64)


def is_circulant(matrix: np.ndarray) -> bool:
    """Whether turning all clients on by one leaves the graph as it is."""
    return np.array_equal(matrix, np.roll(matrix, (1, 1), axis=(0, 1)))

"""The same aggregation rules elsewhere: ByzFL, plain PyTorch, NumPy.

All are optional (``pip install jaxfl[peers]``) and imported where they are used. ByzFL imports
torchvision and seaborn for its data sets and plots; empty stand-ins let its aggregators load
where these are missing, or of another release than torch.
"""

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from benchmarks.timing import installed

LIMIT_BYTES = 12e9
"""Rivals that would need more memory than this are not run."""
LIMIT_SUBSETS = 20_000
"""Rivals that would look at more subsets of clients than this are not run."""


def byzfl() -> Any:
    """The module ``byzfl``, or None where it is not installed."""
    if not installed("byzfl"):
        return None
    for name in ("torchvision", "seaborn"):
        sys.modules.setdefault(name, MagicMock())
    return importlib.import_module("byzfl")


def byzfl_rule(rule: str, pre: tuple[str, ...], n: int, f: int, d: int) -> Callable | str:
    """A call that takes a tensor ``[n, d]``, or why there is none."""
    peer = byzfl()
    if peer is None:
        return "not installed"
    if "NNM" in pre and n * (n - f) * d * 4 > LIMIT_BYTES:
        return f"needs {n * (n - f) * d * 4 / 1e9:.0f} GB"
    if rule in ("MDA", "SMEA") and math.comb(n, f) > LIMIT_SUBSETS:
        return f"{math.comb(n, f):.0e} subsets"
    with_f = {"TrMean", "Krum", "MultiKrum", "MDA", "MoNNA", "Meamed", "CAF", "SMEA", "NNM", "ARC"}
    stages = [
        getattr(peer, name)(f=f) if name in with_f else getattr(peer, name)()
        for name in (*pre, rule)
    ]

    def call(updates: Any) -> Any:
        for stage in stages:
            updates = stage(updates)
        return updates

    return call


def torch_rule(rule: str, f: int) -> Callable | None:
    """The rule in a few PyTorch calls, as a user would write it; None where it takes more."""
    if not installed("torch"):
        return None
    torch: Any = importlib.import_module("torch")

    def krum_scores(x: Any) -> Any:
        distances = torch.square(torch.cdist(x, x))
        return torch.topk(distances, len(x) - f - 1, largest=False).values.sum(dim=1)

    def multi_krum(x: Any) -> Any:
        best = torch.topk(krum_scores(x), len(x) - f - 2, largest=False).indices
        return x[best].mean(dim=0)

    def mean_of_nearest_norms(x: Any) -> Any:
        kept = torch.argsort(torch.linalg.vector_norm(x, dim=1))[f : len(x) - f]
        return x[kept].mean(dim=0)

    rules = {
        "Average": lambda x: x.mean(dim=0),
        "Median": lambda x: torch.median(x, dim=0).values,
        "TrMean": lambda x: torch.sort(x, dim=0).values[f : len(x) - f].mean(dim=0),
        "Krum": lambda x: x[torch.argmin(krum_scores(x))],
        "MultiKrum": multi_krum,
        "TNBS": mean_of_nearest_norms,
    }
    return rules.get(rule)


def numpy_rule(rule: str, f: int) -> Callable | None:
    """The rule in a few NumPy calls; None where it takes more."""

    def krum_scores(x: np.ndarray) -> np.ndarray:
        squares = np.square(x).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2 * x @ x.T
        return np.sort(distances, axis=1)[:, : len(x) - f - 1].sum(axis=1)

    def multi_krum(x: np.ndarray) -> np.ndarray:
        return x[np.argsort(krum_scores(x))[: len(x) - f - 2]].mean(axis=0)

    def mean_of_nearest_norms(x: np.ndarray) -> np.ndarray:
        kept = np.argsort(np.linalg.norm(x, axis=1))[f : len(x) - f]
        return x[kept].mean(axis=0)

    rules = {
        "Average": lambda x: x.mean(axis=0),
        "Median": lambda x: np.median(x, axis=0),
        "TrMean": lambda x: np.sort(x, axis=0)[f : len(x) - f].mean(axis=0),
        "Krum": lambda x: x[np.argmin(krum_scores(x))],
        "MultiKrum": multi_krum,
        "TNBS": mean_of_nearest_norms,
    }
    return rules.get(rule)

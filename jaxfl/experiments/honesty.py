"""Who is honest in the runs of a cell, by a law: the table ``[honesty]``.

    [honesty]
    law = { name = "clusters", groups = [0, 0, 1, 1, 1], corruption = [0.3, 0.0] }
    sets = 64

Each seed is run with so many honest sets, all in one program; the others attack.
"""

import dataclasses
import functools
import inspect
import json
from typing import Any

import jax
import numpy as np

from jaxfl.arguments import integer
from jaxfl.component import Component, convert
from jaxfl.registry import build, check_keys, unknown
from jaxfl.robustness import (
    Law,
    barrier_clipping,
    expected_mean,
    gibbs_mean,
    log_odds_median,
    mass_quantile,
    ring,
    tail_risk,
    weighted_trimming,
)

DEFAULTS: dict[str, Any] = {"sets": 64, "level": 1.0}
"""What stands for keys of ``honesty`` that a file leaves out."""
KNOWN = ("law", *DEFAULTS)
BY_CLIENT = ("probabilities", "groups", "external")
"""Fields of laws with one number for each client."""
COUNTS = ("byzantine", "budget")
"""Fields of laws with a number of clients."""
_RULES = (expected_mean, log_odds_median, barrier_clipping, weighted_trimming, gibbs_mean)
LEARNED = {
    "aggregator": {make.__name__: make for make in _RULES},
    "fairness": {tail_risk.__name__: tail_risk},
}
"""What ``aggregator.learned`` and ``fairness.learned`` may name: of ``jaxfl.robustness``."""


@dataclasses.dataclass(frozen=True)
class Honesty:
    """A law of the honest set, and how many sets are drawn from it for each seed."""

    law: Law
    sets: int
    level: float
    """Probability with which rules' ``f`` is to hold, where a file leaves it out."""

    @property
    def covered(self) -> int:
        """The least number of Byzantine clients that is exceeded with a probability of at most
        ``1 - level``.
        """
        return _covered(self.law, self.level)

    def masks(self, seed: int) -> np.ndarray:
        """The honest sets of a seed, [sets, clients]: the same for every cell."""
        return np.asarray(self.law.sample(jax.random.key(seed), self.sets))

    @staticmethod
    def run_seed(seed: int, number: int) -> int:
        """The seed of one run, which decides the first model, the batches and what attackers draw:
        every set has its own, the same for every cell.
        """
        return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def read_honesty(table: Any, clients: int) -> Honesty:
    """What the table ``[honesty]`` says.

    Raises:
      ValueError: a key is missing or unknown, or a value has the wrong type or range.
    """
    if not isinstance(table, dict):
        raise ValueError(f"honesty must be a table; got {table!r}")
    check_keys(table, KNOWN, "honesty.")
    if "law" not in table:
        raise ValueError("honesty.law is missing")
    table = DEFAULTS | table
    level = table["level"]
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level <= 1:
        raise ValueError(f"honesty.level must be a number above 0 and at most 1; got {level!r}")
    law = _law(json.dumps(table["law"]), clients)
    return Honesty(law, integer(table["sets"], "honesty.sets", 1), float(level))


def is_learned(value: Any) -> bool:
    """Whether a part is to be made for the law."""
    return isinstance(value, dict) and "learned" in value


def learned_part(key: str, table: dict[str, Any], honesty: Honesty | None) -> Component:
    """What a table such as ``{ learned = "barrier_clipping" }`` under this key makes for the law.

    Raises:
      ValueError: there is no law, or an unknown name or key, or a wrong value.
    """
    name, rest = table["learned"], {k: v for k, v in table.items() if k not in ("learned", "label")}
    if honesty is None:
        raise ValueError(f"{key}.learned = {name!r} needs honesty.law, to be learned from")
    if not isinstance(name, str) or name not in LEARNED[key]:
        raise ValueError(f"{key}.learned: {unknown(name, LEARNED[key])}")
    parameters = dict(inspect.signature(LEARNED[key][name]).parameters)
    del parameters["law"]
    check_keys(rest, parameters, f"{key}.")
    given = {k: convert(key, k, parameters[k].annotation, v) for k, v in rest.items()}
    try:
        return _learned(key, name, honesty.law, tuple(given.items()))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@functools.lru_cache(maxsize=256)
def _learned(key: str, name: str, law: Law, given: tuple[tuple[str, Any], ...]) -> Component:
    return LEARNED[key][name](law, **dict(given))


@functools.lru_cache(maxsize=256)
def _covered(law: Law, level: float) -> int:
    if level == 1:
        return law.most_byzantine
    return round(mass_quantile(law, np.ones(law.clients), level))


@functools.lru_cache(maxsize=256)
def _law(text: str, clients: int) -> Law:
    """The law of a table as JSON: laws of many clients take a while to be checked."""
    table = json.loads(text)
    if isinstance(table, dict):
        table = {k: _for_clients(k, v, clients) for k, v in table.items() if k != "label"}
        if table.get("name") == "uniform_sets":
            table = {"n": clients} | table
    law = build(Law, table, "honesty.law")
    if law.clients != clients:
        raise ValueError(f"honesty.law is of {law.clients} clients, data.clients = {clients}")
    return law


def _for_clients(key: str, value: Any, clients: int) -> Any:
    """A field of a law as the class takes it.

    A list with a number for each of several equal parts of the clients stands for one with a
    number for each client, a share for a number of clients, ``"ring"`` for that graph.
    """
    if key in BY_CLIENT and isinstance(value, list) and value and clients % len(value) == 0:
        return np.repeat(value, clients // len(value)).tolist()
    if key in COUNTS and isinstance(value, float) and 0 < value < 1:
        return round(value * clients)
    if key == "graph" and isinstance(value, str):
        if value != "ring":
            raise ValueError(f"honesty.law.graph: {unknown(value, ('ring',))}; or write a matrix")
        return ring(clients)
    return value

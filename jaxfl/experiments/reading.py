"""From a TOML table to the parts of a cell."""

import inspect
import json
from collections.abc import Callable
from typing import Any

from jaxfl.aggregators import Aggregator
from jaxfl.arguments import integer, truth
from jaxfl.attacks import Attack
from jaxfl.clients import ClientAlgorithm
from jaxfl.component import Component, convert
from jaxfl.data import SOURCES, Partition, RareData, RootData
from jaxfl.devices import WAYS
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.honesty import LEARNED, Honesty, is_learned, learned_part, read_honesty
from jaxfl.fairness import Fairness
from jaxfl.federation import Federation
from jaxfl.models import Model
from jaxfl.optimizers import Optimizer
from jaxfl.participation import Participation
from jaxfl.plan import AUTOMATIC, check_storage
from jaxfl.privacy import Privacy
from jaxfl.registry import build, check_keys, unknown
from jaxfl.smoothing import CRFL

PARTS: dict[str, type[Component]] = {
    "algorithm": ClientAlgorithm,
    "optimizer": Optimizer,
    "participation": Participation,
    "privacy": Privacy,
    "fairness": Fairness,
    "smoothing": CRFL,
    "attack": Attack,
    "aggregator": Aggregator,
}
"""Keys of the tables that describe parts of a federation, and their kinds."""
NUMBERS = (
    "rounds",
    "evaluate_every",
    "checkpoint_every",
    "seed",
    "client_chunk",
    "byzantine",
    "byzantine_per_round",
)
KNOWN = (
    "title",
    *NUMBERS,
    "devices",
    "way",
    "storage",
    "signs",
    "attacks_share_program",
    "noise_order",
    "honesty",
    "validation",
    *PARTS,
    "data",
    "model",
    "sweep",
    "tune",
    "findings",
)
"""Keys that an experiment may have."""
REQUIRED = ("data", "model", "rounds")
DEFAULTS: dict[str, Any] = {
    "evaluate_every": 10,
    "checkpoint_every": 100,
    "seed": 0,
    "devices": AUTOMATIC,
    "way": WAYS[0],
    "storage": AUTOMATIC,
    "signs": False,
    "attacks_share_program": False,
    "validation": 0,
    **{key: getattr(Federation(), key) for key in ("byzantine", "noise_order")},
}
"""What stands for keys that a file leaves out, where it is a value."""
DATA_DEFAULTS: dict[str, Any] = {"clients": 10, "partition": "iid", "client_test": 0}
"""The same of the keys of ``data``."""


Build = Callable[..., Any]
"""``build``, or what answers as it does."""


def build_once() -> Build:
    """``build`` that answers equal tables once: cells of a grid share most of their parts."""
    built: dict[tuple[Any, ...], Any] = {}

    def once(kind: type[Component], table: Any, where: str, *, f: int = 0) -> Any:
        key = kind, json.dumps(table, default=repr), where, f
        if key not in built:
            built[key] = build(kind, table, where, f=f)
        return built[key]

    return once


def read_cell(table: dict[str, Any], seeds: tuple[int, ...], build: Build) -> Cell:
    """The cell that a table without ``sweep`` and ``tune`` describes.

    Args:
      table: keys are those of ``KNOWN``.
      seeds: the seeds that the cell is run with.
      build: what makes components of tables, see ``build_once``.

    Raises:
      ValueError: a key is missing or unknown, or a value has the wrong type or range.
    """
    for key in REQUIRED:
        if key not in table:
            raise ValueError(f"{key} is missing")
    data, source, arguments = _source(table["data"])
    measured = "client_test" in data or "fairness" in table
    table, data = DEFAULTS | table, DATA_DEFAULTS | data
    clients = integer(data["clients"], "data.clients", 1)
    honesty = read_honesty(table["honesty"], clients) if "honesty" in table else None
    federation = _federation(table, clients, honesty, build)
    chunk = table.get("client_chunk")
    return Cell(
        labels={},
        federations=(federation,),
        model=build(Model, table["model"], "model"),
        data=(source, arguments),
        clients=clients,
        partition=build(Partition, data["partition"], "data.partition"),
        root=build(RootData, data["root"], "data.root") if "root" in data else None,
        rare=build(RareData, data["rare"], "data.rare") if "rare" in data else None,
        rounds=integer(table["rounds"], "rounds", 1),
        evaluate_every=integer(table["evaluate_every"], "evaluate_every", 1),
        checkpoint_every=integer(table["checkpoint_every"], "checkpoint_every", 1),
        client_test=_share(data["client_test"], "data.client_test"),
        validation=_share(table["validation"], "validation"),
        seeds=seeds,
        honesty=honesty,
        devices=_devices(table["devices"]),
        way=_way(table["way"]),
        storage=_storage(table["storage"]),
        signs=truth(table["signs"], "signs"),
        client_chunk=None if chunk is None else integer(chunk, "client_chunk", 1),
        client_accuracy=measured,
    )


def _source(value: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The table ``data``, the name of its data set and the arguments of that set's function."""
    data = {"name": value} if isinstance(value, str) else value
    if not isinstance(data, dict):
        raise ValueError(f"data must be a name or a table; got {data!r}")
    source = data.get("name")
    if not isinstance(source, str) or source not in SOURCES:
        raise ValueError(f"data.name: {unknown(source, SOURCES)}")
    parameters = inspect.signature(SOURCES[source]).parameters
    known = ("name", "clients", "partition", "root", "rare", "client_test", *parameters)
    check_keys(data, known, "data.")
    arguments = {
        key: convert("data", key, parameters[key].annotation, value)
        for key, value in data.items()
        if key in parameters
    }
    return data, source, arguments


def _federation(
    table: dict[str, Any], clients: int, honesty: Honesty | None, build: Build
) -> Federation:
    byzantine = integer(table["byzantine"], "byzantine", 0)
    if honesty is not None and byzantine:
        raise ValueError("byzantine follows from honesty.law: leave it out")
    if byzantine > clients:
        raise ValueError(f"byzantine must be at most data.clients = {clients}; got {byzantine}")
    # What the attack and the rule know of f follows from who takes part: they are built last.
    last = ("attack", "aggregator")
    parts: dict[str, Any] = {
        key: learned_part(key, table[key], honesty) for key in LEARNED if is_learned(table.get(key))
    }
    parts |= {
        key: build(kind, table[key], key)
        for key, kind in PARTS.items()
        if key in table and key not in (*last, *parts)
    }
    participation = parts.get("participation", Federation().participation)
    participation.check(clients)
    # The expected number of Byzantine clients in a round, rounded up.
    assumed = byzantine if honesty is None else honesty.covered
    f = -(-assumed * participation.expected(clients) // clients)
    if "byzantine_per_round" in table:
        if table["byzantine_per_round"] != "expected":
            f = integer(table["byzantine_per_round"], "byzantine_per_round", 0)
        parts["byzantine_per_round"] = f
    given = [key for key in last if key in table and key not in parts]
    parts |= {key: build(PARTS[key], table[key], key, f=f) for key in given}
    byzantine = byzantine if honesty is None else honesty.law.most_byzantine
    return Federation(byzantine=byzantine, noise_order=table["noise_order"], **parts)


def _devices(value: Any) -> int | str:
    if isinstance(value, str) and value not in ("all", AUTOMATIC):
        raise ValueError(f'devices must be an integer, "all" or "auto"; got {value!r}')
    return value if isinstance(value, str) else integer(value, "devices", 1)


def _way(value: Any) -> str:
    if value not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}; got {value!r}")
    return value


def _storage(value: Any) -> str:
    check_storage(value)
    return value


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number; got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1; got {value!r}")
    return float(value)

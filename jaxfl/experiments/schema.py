"""From a TOML file to cells that can be run, with every mistake found before anything runs."""

import copy
import dataclasses
import inspect
import itertools
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxfl import data as data_sources
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.attacks import Attack
from jaxfl.clients import ClientAlgorithm
from jaxfl.component import Component, convert
from jaxfl.data import Dataset, FederatedData, Partition
from jaxfl.federation import Federation
from jaxfl.models import Model
from jaxfl.optimizers import Optimizer
from jaxfl.participation import Participation
from jaxfl.privacy import MessagePrivacy
from jaxfl.registry import build, unknown

SOURCES = {
    "digits": data_sources.digits,
    "synthetic": data_sources.synthetic,
    "mnist": data_sources.mnist,
    "fashion_mnist": data_sources.fashion_mnist,
}
PARTS: dict[str, type[Component]] = {
    "algorithm": ClientAlgorithm,
    "optimizer": Optimizer,
    "participation": Participation,
    "privacy": MessagePrivacy,
    "attack": Attack,
    "aggregator": Aggregator,
}
KEYS = ("title", "rounds", "evaluate_every", "seed", "byzantine", "noise", "client_chunk")
KNOWN = (*KEYS, *PARTS, "data", "model", "sweep")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of a grid."""

    labels: dict[str, str]
    """Axis of the sweep to this cell's value on it."""
    federation: Federation
    model: Model
    data: tuple[str, dict[str, Any]]
    clients: int
    partition: Partition
    rounds: int
    evaluate_every: int
    seeds: tuple[int, ...]
    client_chunk: int | None

    def load(self) -> Dataset:
        """The data set, read from where it lies."""
        name, arguments = self.data
        return SOURCES[name](**arguments)

    def divide(self, dataset: Dataset) -> list[FederatedData]:
        """The data divided anew for every seed."""
        return [dataset.split(self.partition, self.clients, seed) for seed in self.seeds]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of cells."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    axes: tuple[str, ...]


def packaged() -> list[str]:
    """Names of the experiments that come with jaxfl."""
    files = resources.files("jaxfl.experiments").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load(name_or_file: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of this name or file, after ``key.path=value`` overrides.

    Raises:
      ValueError: no such experiment, no TOML, an unknown key, a wrong type or value.
    """
    path = Path(name_or_file)
    if name_or_file in packaged():
        text = (resources.files("jaxfl.experiments") / f"{name_or_file}.toml").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise ValueError(f"no experiment and no file: {unknown(name_or_file, packaged())}")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name_or_file} is not valid TOML: {error}") from None
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ValueError(f"--set wants KEY=VALUE; got {override!r}")
        _assign(table, key.strip(), _toml_value(value.strip()))
    return parse(path.stem, table)


def parse(name: str, table: dict[str, Any]) -> Experiment:
    """The experiment that a TOML table describes."""
    _known(table, KNOWN, "")
    sweep = table.pop("sweep", {})
    if not isinstance(sweep, dict):
        raise ValueError("sweep must be a table of lists")
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"sweep.{key} must be a list of at least one value; got {values!r}")
    seeds = sweep.pop("seed", [table.get("seed", 0)])
    seeds = tuple(_integer(s, "seed", 0) for s in seeds)
    axes = tuple(sweep)
    cells, shown = [], []
    for choice in itertools.product(*sweep.values()):
        cell_table = copy.deepcopy(table)
        for key, value in zip(axes, choice, strict=True):
            _assign(cell_table, key, value)
        _known(cell_table, KNOWN, "")
        cell = _cell(cell_table, seeds)
        cells.append(cell)
        shown.append([_label(cell, key, value) for key, value in zip(axes, choice, strict=True)])
    cells = [
        dataclasses.replace(cell, labels=dict(zip(axes, labels, strict=True)))
        for cell, labels in zip(cells, shown, strict=True)
    ]
    title = table.get("title", name)
    return Experiment(name=name, title=title, cells=tuple(cells), axes=axes)


def _cell(table: dict[str, Any], seeds: tuple[int, ...]) -> Cell:
    for key in ("data", "model", "rounds"):
        if key not in table:
            raise ValueError(f"{key} is missing")
    data = {"name": table["data"]} if isinstance(table["data"], str) else table["data"]
    if not isinstance(data, dict):
        raise ValueError(f"data must be a name or a table; got {data!r}")
    source = data.get("name")
    if source not in SOURCES:
        raise ValueError(f"data.name: {unknown(source, SOURCES)}")
    parameters = inspect.signature(SOURCES[source]).parameters
    _known(data, ("name", "clients", "partition", *parameters), "data.")
    arguments = {
        key: convert("data", key, parameters[key].annotation, value)
        for key, value in data.items()
        if key in parameters
    }
    clients = _integer(data.get("clients", 10), "data.clients", 1)
    byzantine = _integer(table.get("byzantine", 0), "byzantine", 0)
    if byzantine > clients:
        raise ValueError(f"byzantine must be at most data.clients = {clients}; got {byzantine}")
    parts: dict[str, Any] = {
        key: build(kind, table[key], key)
        for key, kind in PARTS.items()
        if key in table and key not in ("attack", "aggregator")
    }
    participation = parts.get("participation", Federation().participation)
    cohort = participation.cohort(clients)
    # The expected number of Byzantine clients in a cohort, rounded up.
    f = -(-byzantine * cohort // clients)
    parts |= {
        key: build(PARTS[key], table[key], key, f=f)
        for key in ("attack", "aggregator")
        if key in table
    }
    rounds = _integer(table["rounds"], "rounds", 1)
    chunk = table.get("client_chunk")
    return Cell(
        labels={},
        federation=Federation(
            byzantine=byzantine, **parts, **({"noise": table["noise"]} if "noise" in table else {})
        ),
        model=build(Model, table["model"], "model"),
        data=(source, arguments),
        clients=clients,
        partition=build(Partition, data.get("partition", "iid"), "data.partition"),
        rounds=rounds,
        evaluate_every=_integer(table.get("evaluate_every", 10), "evaluate_every", 1),
        seeds=seeds,
        client_chunk=None if chunk is None else _integer(chunk, "client_chunk", 1),
    )


def _label(cell: Cell, key: str, value: Any) -> str:
    """How a value on an axis of the sweep is called in tables and plots."""
    part = {"attack": cell.federation.attack, "aggregator": cell.federation.aggregator}.get(key)
    return str(value) if part is None else describe(part)


def describe(component: Component) -> str:
    """A component in a few words: its name and the numbers that are not its defaults."""
    if isinstance(component, Pipeline):
        return " + ".join(describe(c) for c in (*component.pre, component.rule))
    shown = []
    for field in dataclasses.fields(component):  # pyright: ignore[reportArgumentType]
        value = getattr(component, field.name)
        if isinstance(value, Component):
            shown.append(describe(value))
        elif field.name != "f" and value != field.default:
            shown.append(f"{field.name} {value:g}" if hasattr(value, "ndim") else f"{value}")
    name = "No attack" if type(component).__name__ == "NoAttack" else type(component).__name__
    return f"{name} ({', '.join(shown)})" if shown else name


def _assign(table: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if isinstance(inner, str):
            inner = table[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise ValueError(f"{path}: {parent} is not a table")
        table = inner
    table[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _known(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where}{key}: {unknown(key, known)}")


def _integer(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}; got {value!r}")
    return value

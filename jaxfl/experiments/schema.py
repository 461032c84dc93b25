"""From a TOML file to cells that can be run, with every mistake found before anything runs."""

import copy
import dataclasses
import importlib
import itertools
import math
import sys
import tomllib
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from jaxfl.arguments import seed_of, truth
from jaxfl.experiments.cells import Cell
from jaxfl.experiments.labels import brief, describe
from jaxfl.experiments.limits import check_grid
from jaxfl.experiments.reading import DEFAULTS, KNOWN, build_once, read_cell
from jaxfl.registry import check_keys, unknown

DESCRIBED = ("attack", "aggregator", "algorithm", "privacy", "fairness", "smoothing")
"""Parts that tables call by their class and the numbers that are not its defaults."""

NAMING = ("learned", "label")
"""Keys of a value that say what tables call it."""

GRIDS = ("sweep", "tune")
"""Tables from dotted keys to lists of values."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of cells."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    axes: tuple[str, ...]
    table: dict[str, Any]
    """The TOML table with all overrides applied."""
    candidates: tuple[str, ...]
    """What ``tune`` chooses among, in words; one empty entry without it."""
    modules: tuple[str, ...] = ()
    """Folders of the user's own modules: the file's, and the one that jaxfl was started in."""
    reduced: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The file's table ``[reduced]``, which is no part of what runs."""


def packaged() -> list[str]:
    """Names of the experiments that come with jaxfl."""
    files = resources.files("jaxfl.experiments").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def overview(name: str) -> tuple[str, int, int]:
    """Title, cells and seeds of a packaged experiment, read from its table: no cell is built."""
    table = read(packaged_file(name))
    sweep = dict(_grid(table, "sweep"))
    seeds = len(sweep.pop("seed", [0]))
    return table.get("title", name), math.prod(map(len, sweep.values())), seeds


def packaged_file(name: str) -> Path:
    """Where a packaged experiment is."""
    return Path(str(resources.files("jaxfl.experiments") / f"{name}.toml"))


def load(name_or_file: str, overrides: Sequence[str] = (), *, reduced: bool = False) -> Experiment:
    """The experiment of this name or file, after ``key.path=value`` overrides.

    ``reduced`` first makes the changes that the file's own table ``[reduced]`` lists, which cut
    it down to minutes on a laptop.

    Raises:
      ValueError: no such experiment, no TOML, an unknown key, a wrong type or value.
    """
    path = Path(name_or_file)
    if name_or_file in packaged():
        path = packaged_file(name_or_file)
    elif path.is_dir():
        raise ValueError(f"{path} is a folder; an experiment is a TOML file")
    elif not path.is_file() and (path.suffix or len(path.parts) > 1):
        raise ValueError(f"{path}: no such file; jaxfl list names what comes with jaxfl")
    elif not path.is_file():
        raise ValueError(f"no experiment and no file: {unknown(name_or_file, packaged())}")
    table = read(path)
    changes = table.pop("reduced", {})
    if not isinstance(changes, dict):
        raise ValueError(f"reduced must be a table of keys and values; got {changes!r}")
    if reduced and not changes:
        raise ValueError(f"{name_or_file} has no reduced version")
    given = [override.partition("=") for override in overrides]
    for override, (key, separator, _) in zip(overrides, given, strict=True):
        if not separator or not key.strip():
            raise ValueError(f"--set wants KEY=VALUE; got {override!r}")
    asked = {key.strip(): toml_value(value.strip(), f"--set {key}") for key, _, value in given}
    for key, value in ((changes if reduced else {}) | asked).items():
        grid, dot, axis = key.partition(".")
        if grid in GRIDS and dot:  # an axis is one key, dots and all
            _assign(table, grid, {**_table(table, grid), axis: value})
        else:
            _assign(table, key, value)
    for key in asked:
        _check_effect(table, key)
    modules = (str(path.resolve().parent), str(Path.cwd()))
    importable(modules)
    return dataclasses.replace(parse(path.stem, table), modules=modules, reduced=changes)


def importable(folders: Sequence[str]) -> None:
    """Puts folders last on the path, so that ``name = "module:Class"`` is found there."""
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    importlib.invalidate_caches()


def _check_effect(table: dict[str, Any], key: str) -> None:
    """Refuses a change of what the grid sets anew in every cell."""
    for grid in GRIDS:
        for axis in _table(table, grid):
            if f"{key}.".startswith(f"{axis}."):
                raise ValueError(
                    f"--set {key} has no effect: {axis} takes its values from [{grid}]; "
                    f"set {grid}.{axis} to a list"
                )


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
      ValueError: it is not TOML, or empty.
      OSError: it cannot be read.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: also numbers, dates and encodings
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if not table:
        raise ValueError(f"{path} is empty; jaxfl show quickstart prints an experiment")
    return table


def parse(name: str, table: dict[str, Any]) -> Experiment:
    """The experiment that a TOML table describes.

    Raises:
      ValueError: an unknown key, a wrong type or value.
    """
    check_keys(table, KNOWN, "")
    resolved, table = table, copy.deepcopy(table)
    sweep, tune = _grid(table, "sweep"), _grid(table, "tune")
    check_grid({axis: values for axis, values in sweep.items() if axis != "seed"}, tune)
    seeds = _seeds(sweep.pop("seed", None), table.get("seed", DEFAULTS["seed"]))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"sweep.seed must not name a seed twice; got {list(seeds)}")
    if tune and not table.get("validation"):
        raise ValueError("tune chooses on held-out samples: set validation to a share, such as 0.1")
    candidates = [_assigned(table, tune, choice) for choice in itertools.product(*tune.values())]
    choices = list(itertools.product(*sweep.values()))
    build = build_once()
    cells = [
        _tuned([read_cell(_assigned(c, sweep, choice), seeds, build) for c in candidates], tune)
        for choice in choices
    ]
    cells = _labelled(cells, tuple(sweep), choices)
    truth(table.get("attacks_share_program", False), "attacks_share_program")
    title = table.get("title", name)
    if not isinstance(title, str):
        raise ValueError(f"title must be a string; got {title!r}")
    if any(unicodedata.category(letter) == "Cc" for letter in title):
        raise ValueError(f"title must be one line without control characters; got {title!r}")
    return Experiment(
        name=name,
        title=title,
        cells=tuple(cells),
        axes=tuple(sweep),
        table=resolved,
        candidates=tuple(
            ", ".join(f"{key} {brief(value)}" for key, value in zip(tune, choice, strict=True))
            for choice in itertools.product(*tune.values())
        ),
    )


def _seeds(several: list[Any] | None, alone: Any) -> tuple[int, ...]:
    """Those of ``sweep.seed``, or else the one of ``seed``."""
    if several is not None:
        return tuple(seed_of(seed, "sweep.seed") for seed in several)
    if isinstance(alone, list):
        raise ValueError(f"seed must be an integer; sweep.seed takes a list; got {alone!r}")
    return (seed_of(alone),)


def _table(table: dict[str, Any], name: str) -> dict[str, Any]:
    grid = table.get(name, {})
    if not isinstance(grid, dict):
        raise ValueError(f"{name} must be a table of lists; got {grid!r}")
    return grid


def _grid(table: dict[str, Any], name: str) -> dict[str, list[Any]]:
    """``[sweep]`` or ``[tune]``, taken out of the table: dotted paths to lists of values."""
    grid = _table(table, name)
    table.pop(name, None)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name}.{key} must be a list of at least one value; got {values!r}")
    return grid


def _assigned(table: dict[str, Any], grid: dict[str, list[Any]], choice: Sequence[Any]) -> dict:
    table = copy.deepcopy(table)
    for key, value in zip(grid, choice, strict=True):
        _assign(table, key, copy.deepcopy(value))
    check_keys(table, KNOWN, "")
    return table


def _tuned(cells: Sequence[Cell], tune: dict[str, list[Any]]) -> Cell:
    """One cell of all its candidates, which must differ in leaves of the federation only."""
    first = cells[0]
    for cell in cells:
        same = dataclasses.replace(cell, federations=first.federations) == first
        shape = jax.tree.structure(cell.federation) == jax.tree.structure(first.federation)
        if not (same and shape):
            raise ValueError(
                f"tune: only numbers that do not shape the program, such as "
                f"optimizer.learning_rate, can be tuned; got {', '.join(tune)}"
            )
    return dataclasses.replace(first, federations=tuple(cell.federation for cell in cells))


def _labelled(
    cells: Sequence[Cell], axes: tuple[str, ...], choices: Sequence[Sequence[Any]]
) -> list[Cell]:
    """The cells with their names in tables and plots; ``f`` is shown where it tells them apart."""

    def label(cell: Cell, axis: str, value: Any, with_f: bool) -> str:
        named = isinstance(value, dict) and not value.keys().isdisjoint(NAMING)
        part = getattr(cell.federation, axis) if axis in DESCRIBED and not named else None
        return brief(value) if part is None else describe(part, with_f=with_f)

    double = ""
    for with_f in (False, True):
        named = [
            {axis: label(cell, axis, v, with_f) for axis, v in zip(axes, choice, strict=True)}
            for cell, choice in zip(cells, choices, strict=True)
        ]
        texts = [" / ".join(labels.values()) for labels in named]
        double = next((text for text in texts if texts.count(text) > 1), "")
        if not double:
            return [dataclasses.replace(c, labels=n) for c, n in zip(cells, named, strict=True)]
    raise ValueError(f"sweep: two cells are both {double}")


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


def toml_value(text: str, where: str) -> Any:
    """What a text means as a TOML value; itself where it is a bare word.

    Raises:
      ValueError: it begins as a table, a list or a string, and is none; names ``where``.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:
        if text.startswith(("{", "[", "'", '"')):
            raise ValueError(f"{where}: {text} is not valid TOML: {error}") from None
        return text

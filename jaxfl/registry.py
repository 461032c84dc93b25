"""Names of components, for TOML files, the command line and the contract tests.

They follow from the classes that the packages export: a component of ours is one class, and one
line in the ``__init__`` of its package. ``"package.module:Class"`` names a user's own.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from jaxfl import (
    aggregators,
    attacks,
    clients,
    fairness,
    models,
    optimizers,
    participation,
    preaggregators,
    privacy,
    robustness,
    smoothing,
)
from jaxfl.component import Component
from jaxfl.data import RareData, RootData, partitions
from jaxfl.pretraining import PublicTexts

C = TypeVar("C", bound=Component)


def name_of(cls: type[Component]) -> str:
    """What a component is called in TOML: its own attribute ``name``, or ``TrimmedMean`` as
    ``trimmed_mean``.
    """
    # Not an inherited one: a subclass is another component.
    name = vars(cls).get("name")
    if isinstance(name, str):
        return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def exported(kind: type[C], package: ModuleType) -> dict[str, type[C]]:
    """The concrete classes of a kind that a package exports, by name.

    They come in the order of their files, and in a file in that of their definitions. A kind
    without subclasses is its own only member.
    """
    members = [
        cls
        for attribute, cls in vars(package).items()
        if not attribute.startswith("_")
        and inspect.isclass(cls)
        and issubclass(cls, kind)
        and cls is not kind
        and not inspect.isabstract(cls)
    ]
    named = {name_of(cls): cls for cls in sorted(members or [kind], key=_place)}
    if len(named) < len(members):
        raise ValueError(f"{package.__name__}: two of {members} have the same name")
    return named


def _place(cls: type) -> tuple[str, int]:
    return cls.__module__, list(vars(sys.modules[cls.__module__])).index(cls.__name__)


AGGREGATORS = exported(aggregators.Aggregator, aggregators)
PREAGGREGATORS = exported(aggregators.PreAggregator, preaggregators)
ATTACKS = exported(attacks.Attack, attacks)
REGISTRY: dict[type[Component], Mapping[str, type[Component]]] = {
    aggregators.Aggregator: AGGREGATORS,
    aggregators.PreAggregator: PREAGGREGATORS,
    attacks.Attack: ATTACKS,
    clients.ClientAlgorithm: exported(clients.ClientAlgorithm, clients),
    optimizers.Optimizer: exported(optimizers.Optimizer, optimizers),
    optimizers.Schedule: exported(optimizers.Schedule, optimizers),
    participation.Participation: exported(participation.Participation, participation),
    privacy.Privacy: exported(privacy.Privacy, privacy),
    privacy.QuantileClip: exported(privacy.QuantileClip, privacy),
    privacy.BandedNoise: exported(privacy.BandedNoise, privacy),
    fairness.Fairness: exported(fairness.Fairness, fairness),
    smoothing.CRFL: exported(smoothing.CRFL, smoothing),
    models.Model: exported(models.Model, models),
    models.Base: {name_of(PublicTexts): PublicTexts},
    partitions.Partition: exported(partitions.Partition, partitions),
    RootData: {name_of(RootData): RootData},
    robustness.Law: exported(robustness.Law, robustness),
    RareData: {name_of(RareData): RareData},
}


def build(kind: type[Component], table: Any, where: str, *, f: int = 0) -> Any:
    """A component from a TOML value: ``"krum"`` or ``{name = "krum", f = 10}``.

    Args:
      kind: the abstract class wanted, a key of ``REGISTRY``.
      table: the value.
      where: its path in the file, for errors.
      f: what a field ``f`` is filled with where the table leaves it out.

    Raises:
      ValueError: an unknown name or key, with the nearest valid one; a wrong type or range.
    """
    names = REGISTRY[kind]
    if isinstance(table, str):
        table = {"name": table}
    if not isinstance(table, dict) or (len(names) > 1 and "name" not in table):
        raise ValueError(f"{where}: write a name or a table with a name; got {table!r}")
    cls = find(kind, table.get("name", next(iter(names))), where)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    values = {}
    for key, value in table.items():
        if key == "name":
            continue
        if key not in fields:
            raise ValueError(f"{where}.{key}: {unknown(key, fields)}")
        values[key] = _value(cls._hints[key], value, f"{where}.{key}", f)
    if "f" in fields and "f" not in values and fields["f"].default is dataclasses.MISSING:
        values["f"] = f
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs {', '.join(missing)}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # TypeError: a method that it must have is missing
        raise ValueError(f"{where}: {error}") from None


def find(kind: type[Component], name: Any, where: str) -> type[Component]:
    """The class of this name, or the user's class at ``package.module:Class``."""
    names = REGISTRY[kind]
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a user's module can raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{where}: cannot import {name!r}: {reason}") from error
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            raise ValueError(f"{where}: {name!r} is not a {kind.__name__}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise ValueError(f"{where}: {cls.__name__} is abstract: it does not define {missing}")
        return cls
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"{where}: {unknown(name, names)}")
    return names[name]


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises ValueError for the first key that is not known; ``where`` goes before it."""
    known = list(known)
    for key in table:
        if key not in known:
            raise ValueError(f"{where}{key}: {unknown(key, known)}")


def unknown(name: Any, known: Mapping[str, Any] | Iterable[str]) -> str:
    """``unknown name 'krumm'; did you mean 'krum'?``, or all names where none is near."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"unknown name {name!r}; {hint}"


def _value(hint: Any, value: Any, where: str, f: int) -> Any:
    """Builds nested components; leaves everything else to the class's own checks."""
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[0] in REGISTRY:
        if not isinstance(value, list):
            raise ValueError(f"{where}: write a list; got {value!r}")
        kind = typing.get_args(hint)[0]
        return tuple(build(kind, v, f"{where}[{i}]", f=f) for i, v in enumerate(value))
    for option in (hint, *typing.get_args(hint)):
        if option in REGISTRY and (isinstance(value, dict) or _names_one(option, value)):
            return build(option, value, where, f=f)
    return value


def _names_one(kind: type[Component], value: Any) -> bool:
    return isinstance(value, str) and (":" in value or value in REGISTRY[kind])

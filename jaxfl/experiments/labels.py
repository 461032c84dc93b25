"""Components and TOML values in a few words, for tables and plots."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxfl.aggregators import Pipeline
from jaxfl.component import Component


def brief(value: Any) -> str:
    """A TOML value in a table of results."""
    if not isinstance(value, dict):
        return str(value)
    if "label" in value:
        return str(value["label"])
    rest = (f"{key} {brief(v)}" for key, v in value.items() if key != "name")
    return " ".join([*([str(value["name"])] if "name" in value else []), *rest])


def describe(component: Component, *, with_f: bool = False) -> str:
    """A component in a few words: its name and the numbers that are not its defaults."""
    if isinstance(component, Pipeline):
        stages = (*component.pre, component.rule)
        return " + ".join(describe(stage, with_f=with_f) for stage in stages)
    shown = []
    for field in dataclasses.fields(component):  # pyright: ignore[reportArgumentType]
        value = getattr(component, field.name)
        if isinstance(value, Component):
            shown.append(describe(value, with_f=with_f))
        elif isinstance(value, tuple) and any(isinstance(part, Component) for part in value):
            shown += [describe(part, with_f=with_f) for part in value]
        elif with_f if field.name == "f" else value != field.default:
            number = f"{value:g}" if getattr(value, "ndim", None) == 0 else str(value)
            shown.append(f"{field.name} {number}")
    name = "No attack" if type(component).__name__ == "NoAttack" else type(component).__name__
    return f"{name} ({', '.join(shown)})" if shown else name


def named(axis: str, label: str) -> str:
    """A label that says what it is of where it is a bare number."""
    try:
        float(label)
    except ValueError:
        return label
    return f"{axis.split('.')[-1]} {label}"


def place(
    labels: Mapping[str, str], nameless: str = "-", across: str = "attack"
) -> tuple[str, str]:
    """Row and column of a cell in a table: one axis across, if the cell is on it, the rest down."""
    rest = " / ".join(named(axis, value) for axis, value in labels.items() if axis != across)
    column = named(across, labels[across]) if across in labels else "accuracy"
    return rest or nameless, column

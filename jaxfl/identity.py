"""What a program is made of, as text: equal for equal programs in any process, else different."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import platform
import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfl.devices import Device
from jaxfl.models.objective import Objective

VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy", "jax_privacy")
"""Packages whose version tells their code."""
NO_EFFECT = ("cache", "log", "traceback")
"""Words in names of JAX's settings that do not change what a program computes."""


class Unknown(Exception):  # noqa: N818 - no error: the program is not kept
    """A part of a program that cannot be told from another by a description."""


def describe(value: Any) -> Any:
    """A value as nested tuples of texts, equal for equal values in any process.

    Raises:
      Unknown: it has code that no version tells, or is of a kind that has no description.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        return tuple(map(describe, value))
    if isinstance(value, dict):
        return tuple((describe(key), describe(inner)) for key, inner in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes().hex()
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, type | types.FunctionType):
        return _global(value)
    if isinstance(value, Objective):  # all else in it follows from these
        frozen = value.frozen.digest
        return describe((value.factory, value.loss_function, value.shapes, frozen))
    if dataclasses.is_dataclass(value) and _package(value) == "jaxfl":
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return _global(type(value)), describe(fields)
    text = repr(value)
    if _package(value) not in VERSIONED or " at 0x" in text:
        raise Unknown(text)
    return _global(type(value)), text


def nodes(structure: Any) -> Iterator[Any]:
    """Every node of a pytree: its type, what is static in it, and how many children."""
    node, children = structure.node_data(), structure.children()
    yield None if node is None else describe(node), len(children)
    for child in children:
        yield from nodes(child)


def kind_of(leaf: Any) -> tuple[Any, ...]:
    """Shape and type of an array."""
    kind = getattr(leaf, "dtype", type(leaf).__name__)
    return np.shape(leaf), str(kind), bool(getattr(leaf, "weak_type", False))


def _package(value: Any) -> str:
    """The package of a class, a function, or a value's class."""
    named = value if isinstance(value, type | types.FunctionType) else type(value)
    return named.__module__.partition(".")[0]


def _global(named: Any) -> str:
    """A class or function of jaxfl, a package of ``VERSIONED`` or Python, by its name."""
    if _package(named) not in ("jaxfl", "builtins", "collections", *VERSIONED):
        raise Unknown(repr(named))
    module = sys.modules[named.__module__]
    if inspect.isfunction(named) and getattr(module, named.__qualname__, None) is not named:
        raise Unknown(repr(named))  # a local function may close over anything
    return f"{named.__module__}:{named.__qualname__}"


def surroundings(device: Device) -> tuple[Any, ...]:
    """What else decides how a program compiles here: code, versions, settings, flags, machine."""
    settings = jax.config.values  # pyright: ignore[reportAttributeAccessIssue]
    return (
        _source(),
        tuple(map(version, VERSIONED)),
        platform.python_version(),
        tuple(
            (key, repr(value))
            for key, value in sorted(settings.items())
            if not any(word in key for word in NO_EFFECT)
        ),
        tuple((key, os.environ.get(key, "")) for key in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
        (device.platform, device.device_kind, device.id, jax.device_count()),
        device.client.platform_version,
        _machine(),
    )


@functools.cache
def _source() -> str:
    """The sum over jaxfl's own source."""
    package = importlib.import_module("jaxfl")
    root = Path(str(package.__file__)).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return total.hexdigest()


@functools.cache
def _machine() -> tuple[Any, ...]:
    """The processor and what it can do: a home folder may be shared by unlike machines."""
    facts: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        facts = sorted({line for line in lines if line.startswith(wanted)})
    return platform.machine(), platform.processor(), os.cpu_count(), *facts

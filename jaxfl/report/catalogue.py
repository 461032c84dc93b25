"""Every component of the registry in words."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxfl.component import Component
from jaxfl.registry import REGISTRY, unknown

WIDTH = 80
_CITATION = re.compile(r"[A-Z][^\"().:;]*( et al\.)?, \"")
"""Authors, then a quoted title, at the start of a line."""


def catalogue(name: str | None = None) -> str:
    """All components, by kind; or one, with its whole docstring.

    Raises:
      ValueError: no component has this name.
    """
    if name is None:
        return "\n".join(_kinds())
    known = {key: cls for names in REGISTRY.values() for key, cls in names.items()}
    if name not in known:
        raise ValueError(unknown(name, known))
    cls = known[name]
    return f"{name} = {signature(cls)}\n\n{inspect.getdoc(cls)}"


def signature(cls: type[Component]) -> str:
    """The class with its fields and their defaults: ``Krum(f)``."""
    shown = []
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        default = field.default
        if default is dataclasses.MISSING:
            shown.append(field.name)
        else:
            shown.append(f"{field.name}={_default(default)}")
    return f"{cls.__name__}({', '.join(shown)})"


def paper(cls: type[Component]) -> str:
    """The paper that the docstring cites, or nothing."""
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        lines = paragraph.splitlines()
        for i in range(len(lines)):
            rest = " ".join(lines[i:])
            if _CITATION.match(rest):
                return rest.rstrip(".")
    return ""


def _kinds() -> Iterator[str]:
    for kind, names in REGISTRY.items():
        yield f"{kind.__name__}"
        for name, cls in names.items():
            yield from _wrapped(f"{name} = {signature(cls)}", "  ")
            first = (inspect.getdoc(cls) or "").split("\n\n")[0]
            yield from _wrapped(" ".join(first.split()), "      ")
            if paper(cls):
                yield from _wrapped(paper(cls), "      ")
        yield ""


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _default(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.item():g}" if value.ndim == 0 else str(value.tolist())
    if isinstance(value, Component):
        return type(value).__name__
    return repr(value)

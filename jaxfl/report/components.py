"""Every component of the registry in words."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxfl.aggregators import Aggregator, PerLayer, Pipeline, PreAggregator
from jaxfl.aggregators.mixing import with_f
from jaxfl.component import Component
from jaxfl.registry import ATTACKS, REGISTRY, unknown
from jaxfl.report.markdown import as_markdown
from jaxfl.types import Spec

WIDTH = 80
_CITATION = re.compile(r"[A-ZÀ-Þ][^\"().:;]*( et al\.)?, \"")
"""Authors, then a quoted title, at the start of a line."""


def listing(name: str | None = None) -> str:
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


def sentence(cls: type[Component], start: str) -> str:
    """What the docstring says after a word like "Needs" or "Cost:", up to the sentence's end."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    found = re.search(rf"\b{start} (.*?)(?:\.(?=\s|$)|;)", text)
    return found[1].replace("``", "`") if found else ""


def memory(cls: type[Aggregator]) -> str:
    """The shapes of what a rule remembers, for K clients, cohorts of n and d parameters."""
    if cls in (PerLayer, Pipeline):
        return "the rule's"
    sizes = {5: "n", 7: "K", 11: "d"}
    # Its defaults, not those of its example: the table shows what a rule remembers as it comes.
    rule = with_f(cls, 1)
    shape = jax.eval_shape(lambda: rule.init(Spec(population=7, cohort=5, dim=11)))
    leaves = [leaf.shape for leaf in jax.tree.leaves(shape)]
    named = ["[" + ", ".join(sizes.get(size, str(size)) for size in leaf) + "]" for leaf in leaves]
    return ", ".join(named) or "none"


def rules_table() -> str:
    """Every rule and pre-aggregator in Markdown: name, needs, cost, memory, paper."""
    lines = [("rule", "needs", "cost", "memory", "paper")]
    for name, cls in {**REGISTRY[Aggregator], **REGISTRY[PreAggregator]}.items():
        remembered = memory(cls) if issubclass(cls, Aggregator) else "none"
        title = f"`{cls.__name__}` ({name})"
        needs, cost = sentence(cls, "Needs"), sentence(cls, "Cost:")
        lines.append((title, needs, cost, remembered, paper(cls)))
    return as_markdown(lines)


def attacks_table() -> str:
    """Every attack in Markdown: name, threat model, what it does, paper."""
    lines: list[tuple[str, ...]] = [("attack", "controls", "knows", "does", "paper")]
    for name, cls in ATTACKS.items():
        does = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        cells = (f"`{cls.__name__}` ({name})", *cls.threat(), does.replace("``", "`"), paper(cls))
        lines.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return as_markdown(lines)


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

"""The generated parts of the documentation: the reference of experiment files, the public names.

``python -m jaxfl.report.reference docs`` writes them.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxfl
import jaxfl.accounting
from jaxfl.component import Component, Scalar
from jaxfl.data import SOURCES, RootData
from jaxfl.devices import WAYS
from jaxfl.experiments.cells import KNOWN, PARTS
from jaxfl.experiments.findings import METRICS
from jaxfl.experiments.schema import overview, packaged
from jaxfl.federation import Federation
from jaxfl.plan import AUTOMATIC
from jaxfl.registry import REGISTRY, name_of
from jaxfl.report.components import attacks_table, rules_table, signature
from jaxfl.state import STORAGES

HEADER = """# Experiment files

<!-- Written by `python -m jaxfl.report.reference docs`; a test compares it. -->

An experiment is a TOML file. `jaxfl list` names those that come with jaxfl, `jaxfl show NAME`
prints one, `jaxfl run NAME_OR_FILE --set KEY=VALUE` changes keys by their dotted path. Unknown
keys, wrong types and values out of range are errors, found before anything runs.

A *part* is written as its name, `aggregator = "median"`, or as a table with its fields,
`aggregator = { name = "krum", f = 10 }`; a field whose default is "needed" must be given. A field
`f` that is needed and left out is the number of Byzantine clients expected in a round.
`name = "package.module:Class"` takes a class that does not come with jaxfl. A *number* is
swept and tuned without a new compilation; fields of other types shape the program.
"""
TOP: dict[str, tuple[str, str, str, str]] = {
    "title": ("string", "the file's name", "", "What tables and plots are headed with."),
    "rounds": ("integer", "needed", "at least 1", "Rounds of training."),
    "evaluate_every": ("integer", "10", "at least 1", "Rounds between evaluations."),
    "checkpoint_every": ("integer", "100", "at least 1", "Rounds between checkpoints."),
    "seed": (
        *("integer", "0", "at least 0"),
        "Of the division of the data, of the model and of all draws; a list as `sweep.seed`.",
    ),
    "client_chunk": (
        *("integer", "chosen for the backend and the model", "at least 1"),
        "How many clients are vmapped at once.",
    ),
    "devices": (
        *('integer, `"all"` or `"auto"`', AUTOMATIC, "at least 1"),
        "How many devices the clients are mapped over; auto: every core of a CPU for models that "
        "convolve, else one. Results are equal to rounding.",
    ),
    "way": (
        *("string", "shard_map", ", ".join(WAYS)),
        "How several devices share a round: see `jaxfl.devices`.",
    ),
    "storage": (
        *("string", AUTOMATIC, ", ".join((AUTOMATIC, *STORAGES))),
        "Where a round has its updates: see [many clients](performance.md#many-clients).",
    ),
    "byzantine": (
        *("integer", "0", "from 0 to `data.clients`"),
        "How many clients of the population are Byzantine; which ones, the seed decides.",
    ),
    "byzantine_per_round": (
        *('integer or `"expected"`', "as it happens", "at least 0"),
        "How many of them are in every cohort of `uniform` participation.",
    ),
    "noise_order": (
        *("string", "noise_then_attack", "noise_then_attack, attack_then_noise"),
        "Whether `message` privacy comes before the attack or after it.",
    ),
    "validation": (
        *("number", "0", "at least 0, below 1"),
        "Share of the training samples held out for choosing; `tune` needs it.",
    ),
    "model": ("part", "needed", "", "See [Model](#model)."),
    "data": ("name or table", "needed", "", "See [data](#data)."),
    "sweep": (
        *("table of lists", "no axes", "at least one value each"),
        "Dotted keys and their values; every combination is a cell of the grid.",
    ),
    "tune": (
        *("table of lists", "nothing", "at least one value each"),
        "As `sweep`, but of numbers only: the value with the best accuracy on held-out samples "
        "is chosen for each defence, over all that it cannot know: `attack` and what is below it, "
        "`byzantine`, `byzantine_per_round` and `noise_order`.",
    ),
    "findings": ("list of tables", "none", "", "Claims to be judged: see [findings](#findings)."),
    "reduced": (
        *("table", "none", ""),
        "Dotted keys and values that `--reduced` sets, to cut the experiment down.",
    ),
}
FINDINGS: tuple[tuple[str, str, str, str, str], ...] = (
    ("claim", "string", "needed", "", "What is claimed."),
    ("better", "table", "needed", "", "Labels (axis to value) of the cells that have more."),
    ("than", "table", "needed", "", "Labels of the cells that have less; all else is equal."),
    ("metric", "string", "accuracy", ", ".join(METRICS), "What is compared."),
    ("where", "table", "{}", "", "Labels that both cells have."),
    ("by", "number", "0", "", "How much more, in percentage points."),
    ("why", "string", "", "", "What explains it if it does not come out."),
)
DATA: tuple[tuple[str, str, str, str, str], ...] = (
    ("name", "string", "needed", ", ".join(SOURCES), "The data set."),
    ("clients", "integer", "10", "at least 1", "The population."),
    ("partition", "part", "iid", "", "How it is divided: see [Partition](#partition)."),
    ("root", "table", "none", "", "The server's own samples: see [RootData](#rootdata)."),
    ("client_test", "number", "0", "at least 0, below 1", "Share that each client holds out."),
)
TYPES = {int: "integer", float: "number", bool: "true or false", str: "string"}
COLUMNS = ("key", "type", "default", "range", "meaning")


def experiments_page() -> str:
    """The whole of ``docs/experiments.md``."""
    parts = {
        key: ("part", _part_default(key), "", f"See [{kind.__name__}]({_anchor(kind)}).")
        for key, kind in PARTS.items()
    }
    top = TOP | parts
    missing = set(KNOWN) - set(top)
    assert not missing, f"keys without a text: {sorted(missing)}"
    order = (*KNOWN, "reduced")
    pieces = [HEADER, "## The file\n", _table((key, *top[key]) for key in order), "\n## data\n"]
    pieces.append(f"{_table(DATA)}\n\nOther keys are the arguments of the data set:\n")
    pieces += [_source(name, source) for name, source in SOURCES.items()]
    pieces += ["\n## findings\n\nEach `[[findings]]` is one claim.\n", _table(FINDINGS)]
    pieces += ["\n## Packaged experiments\n", "| name | what | cells |\n| --- | --- | --- |"]
    for name in packaged():
        title, cells, _ = overview(name)
        pieces.append(f"| `{name}` | {title} | {cells:,} |")
    for kind, names in REGISTRY.items():
        pieces.append(f"\n## {kind.__name__}\n")
        pieces += [_component(name, cls) for name, cls in names.items()]
    return "\n".join(pieces).rstrip() + "\n"


OWN_PARTS = (
    ("jaxfl.aggregators.base", "needs_more_than"),
    ("jaxfl.attacks.informed", "mean_of_known"),
    ("jaxfl.component", "capability"),
    ("jaxfl.component", "field"),
    ("jaxfl.numerics.order", "smallest"),
    ("jaxfl.types", "Aggregated"),
    ("jaxfl.types", "Info"),
    ("jaxfl.types", "Spec"),
)
"""What the tutorials use besides, by module."""


def public_page() -> str:
    """The whole of ``docs/public_api.md``."""
    lines = [
        "# What is public",
        "",
        "<!-- Written by `python -m jaxfl.report.reference docs`; a test compares it. -->",
        "",
        "Public are the names below; the keys of [experiment files](experiments.md); the commands",
        "and options of `jaxfl`; and the files of a run's folder. A change that breaks them is",
        "named in the changelog. Everything else may change at any time; the API reference of the",
        "site (`make docs`) shows some of it.",
    ]
    for title, found in public_names().items():
        rows = [f"| `{name}` | {first_sentence(value)} |" for name, value in found.items()]
        lines += ["", f"## {title}", "", "| name | what it is |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def public_names() -> dict[str, dict[str, Any]]:
    """The public names and what they name, in alphabetical order, by where they are."""
    found = {
        f"From {module.__name__}": {
            name: getattr(module, name) for name in module.__all__ if not name.startswith("_")
        }
        for module in (jaxfl, jaxfl.data, jaxfl.models, jaxfl.accounting, jaxfl.robustness)
    }
    found["For parts of one's own"] = {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module, name in OWN_PARTS
    }
    return {
        title: dict(sorted(names.items(), key=lambda pair: pair[0].lower()))
        for title, names in found.items()
    }


def first_sentence(value: Any) -> str:
    """The first paragraph of the docstring, for a cell of a table."""
    return _cell((inspect.getdoc(value) or "").split("\n\n")[0])


def field_docs(cls: type) -> dict[str, str]:
    """The strings below a class's fields: what they mean, by name; inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (isinstance(base, type) and issubclass(base, Component)) or base is Component:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            text = after.value.value if _is_text(after) else ""  # pyright: ignore
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and text:
                found[line.target.id] = text
    return found


def write(docs: Path) -> None:
    """Writes all generated parts into the folder."""
    (docs / "experiments.md").write_text(experiments_page())
    (docs / "public_api.md").write_text(public_page())
    path = docs / "components.md"
    text = path.read_text()
    for name, table in (("rules", rules_table()), ("attacks", attacks_table())):
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda m, t=table: m[1] + t + m[2], text)
    path.write_text(text)


def _is_text(node: Any) -> bool:
    value = getattr(getattr(node, "value", None), "value", None)
    return type(node).__name__ == "Expr" and isinstance(value, str)


def _part_default(key: str) -> str:
    """What a federation has where the file names no such part, as a file writes it."""
    default = getattr(Federation(), key)
    if default is None:
        return "none"
    given = {f.name: f.default for f in dataclasses.fields(type(default))}
    changed = [n for n in given if repr(getattr(default, n)) != repr(given[n])]
    values = "".join(f", {n} = {_value(getattr(default, n))}" for n in changed)
    name = name_of(type(default))
    return f'`{{ name = "{name}"{values} }}`' if values else f"`{name}`"


def _component(name: str, cls: type[Component]) -> str:
    text = [f"\n### {name}\n", f"`{signature(cls)}`. {first_sentence(cls)}\n"]
    docs, hints = field_docs(cls), typing.cast(Any, cls)._hints
    rows = []
    for f in dataclasses.fields(typing.cast(Any, cls)):
        default = "needed" if f.default is dataclasses.MISSING else _value(f.default)
        rows.append((f.name, _type(hints[f.name]), default, _range(f.metadata), docs.get(f.name)))
    return "\n".join(text) + (f"\n{_table(rows)}" if rows else "\nNo fields.")


def _source(name: str, source: Any) -> str:
    arguments = inspect.signature(source).parameters.values()
    shown = ", ".join(f"`{a.name} = {_value(a.default)}`" for a in arguments)
    return f"- `{name}`: {first_sentence(source)}" + (f" Keys: {shown}." if shown else "")


def _table(rows: Any) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [(f"`{row[0]}`", *(_cell(str(cell or "")) for cell in row[1:])) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _anchor(kind: type) -> str:
    return f"#{kind.__name__.lower()}"


def _type(hint: Any) -> str:
    if hint == Scalar:
        return "number"
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(typing.get_args(hint)[0])}"
    if hint in TYPES:
        return TYPES[hint]
    if options := typing.get_args(hint):
        scalar = set(typing.get_args(Scalar)) <= set(options)
        gone = {type(None), *(typing.get_args(Scalar) if scalar else ())}
        inside = [o for o in options if o not in gone]
        return " or ".join((["number"] if scalar else []) + [_type(o) for o in inside])
    known = isinstance(hint, type) and (hint in REGISTRY or hint is RootData)
    return f"[{hint.__name__}]({_anchor(hint)})" if known else getattr(hint, "__name__", str(hint))


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, Component):
        return repr(value)
    if hasattr(value, "ndim"):
        return f"{value.item():g}" if value.ndim == 0 else str(value.tolist())
    return str(value)


def _range(metadata: Mapping[str, Any]) -> str:
    if choices := metadata.get("choices"):
        return ", ".join(map(str, choices))
    bounds = metadata.get("bounds", {})
    return ", ".join(f"{kind.replace('_', ' ')} {bound:g}" for kind, bound in bounds.items())


if __name__ == "__main__":
    write(Path(sys.argv[1]))

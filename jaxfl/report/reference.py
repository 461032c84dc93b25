"""The generated parts of the documentation: the reference of experiment files, the public names,
tables of kept results; and what follows from the project's address.

``python -m jaxfl.report.reference docs`` writes them.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxfl.component import Component, Scalar
from jaxfl.data import SOURCES
from jaxfl.experiments.reading import KNOWN, PARTS
from jaxfl.experiments.schema import overview, packaged
from jaxfl.federation import Federation
from jaxfl.registry import REGISTRY, name_of
from jaxfl.report.address import write_address
from jaxfl.report.components import attacks_table, rules_table, signature
from jaxfl.report.keys import Rows, data_keys, file_keys, findings_keys, honesty_keys
from jaxfl.report.markdown import as_markdown
from jaxfl.report.public import cell, first_sentence, public_page
from jaxfl.report.quoted import write_quoted
from jaxfl.report.replications import replications_page, repository_results

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
HONESTY = """
`[honesty]` draws who is Byzantine from a law of honest sets; `byzantine` is left out. All sets of a
cell are one program, and rules are compared set by set: `honest_sets.md`, `honest_sets.csv` and
`honest_pairs.csv` have the expected accuracy and loss, their 0.95 quantile, the mean beyond it and
the worst, with 95 % intervals. In `law`, a list of numbers by client may have one for each of
several equal parts of the clients, `byzantine` and `budget` may be shares below 1, `graph` may be
`"ring"`, and `label` is what tables call the law. `aggregator = { learned = "barrier_clipping" }`
is the rule that the function of that name in `jaxfl.robustness` makes for the law, with that
function's arguments; so are `expected_mean`, `log_odds_median`, `weighted_trimming` and
`gibbs_mean`. `fairness = { learned = "tail_risk", alpha = 0.9 }` trains on the mean loss of the
worst of the law's sets.
""".strip()
TYPES = {int: "integer", float: "number", bool: "true or false", str: "string"}
COLUMNS = ("key", "type", "default", "range", "meaning")


def experiments_page() -> str:
    """The whole of ``docs/experiments.md``."""
    parts = {
        key: ("part", _part_default(key), "", f"See [{kind.__name__}]({_anchor(kind)}).")
        for key, kind in PARTS.items()
    }
    top = file_keys() | parts
    order = (*KNOWN, "reduced")
    pieces = [HEADER, "## The file\n", _table((key, *top[key]) for key in order), "\n## data\n"]
    pieces.append(_keys(data_keys()) + "\n\nOther keys are the arguments of the data set:\n")
    pieces += [_source(name, source) for name, source in SOURCES.items()]
    pieces += [f"\n## honesty\n\n{HONESTY}\n", _keys(honesty_keys())]
    pieces += ["\n## findings\n\nEach `[[findings]]` is one claim.\n", _keys(findings_keys())]
    pieces += ["\n## Packaged experiments\n", "| name | what | cells |\n| --- | --- | --- |"]
    for name in packaged():
        title, cells, _ = overview(name)
        pieces.append(f"| `{name}` | {title} | {cells:,} |")
    for kind, names in REGISTRY.items():
        pieces.append(f"\n## {kind.__name__}\n")
        pieces += [_component(name, cls) for name, cls in names.items()]
    return "\n".join(pieces).rstrip() + "\n"


def field_docs(cls: type) -> dict[str, str]:
    """The strings below a class's fields: what they mean, by name; inherited ones included.

    ``f``, the same in all rules, is explained here.
    """
    found = {"f": "How many of the rows may be Byzantine."}
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
    """Writes all generated parts into the folder, and the project's address beside it."""
    (docs / "experiments.md").write_text(experiments_page())
    (docs / "public_api.md").write_text(public_page())
    (docs / "replications.md").write_text(replications_page(repository_results()))
    path = docs / "components.md"
    text = path.read_text()
    for name, table in (("rules", rules_table()), ("attacks", attacks_table())):
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda m, t=table: m[1] + t + m[2], text)
    path.write_text(text)
    write_address(docs.parent)
    write_quoted(docs.parent, repository_results())


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


def _keys(rows: Rows) -> str:
    return _table((key, *row) for key, row in rows.items())


def _table(rows: Any) -> str:
    lines = [(f"`{row[0]}`", *(cell(str(part or "")) for part in row[1:])) for row in rows]
    return as_markdown([COLUMNS, *lines])


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
    known = isinstance(hint, type) and hint in REGISTRY
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

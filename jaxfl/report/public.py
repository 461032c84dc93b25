"""What is public: the page that lists it.

``python -m jaxfl.report.reference docs`` writes it.
"""

import importlib
import inspect
from typing import Any

import jaxfl
import jaxfl.accounting
import jaxfl.profiling
import jaxfl.robustness

MODULES = (jaxfl, jaxfl.data, jaxfl.models, jaxfl.accounting, jaxfl.profiling, jaxfl.robustness)
OWN_PARTS = (
    ("jaxfl.aggregators.base", "needs_more_than"),
    ("jaxfl.attacks.informed", "mean_of_known"),
    ("jaxfl.component", "capability"),
    ("jaxfl.component", "field"),
    ("jaxfl.fairness", "Weighed"),
    ("jaxfl.numerics.order", "smallest"),
    ("jaxfl.types", "Aggregated"),
    ("jaxfl.types", "Batch"),
    ("jaxfl.types", "Info"),
    ("jaxfl.types", "Spec"),
)
"""What the tutorials use besides, by module."""
OTHERS_LOOPS = (
    ("jaxfl.integrations.server", "RobustServer"),
    ("jaxfl.torch", "aggregate"),
    ("jaxfl.torch", "aggregate_models"),
    ("jaxfl.torch", "inspect"),
    ("jaxfl.torch", "inspect_models"),
)
"""What serves loops of other libraries, by module."""


def public_page() -> str:
    """The whole of ``docs/public_api.md``."""
    lines = [
        "# What is public",
        "",
        "<!-- Written by `python -m jaxfl.report.reference docs`; a test compares it. -->",
        "",
        "Public are the names below; the keys of [experiment files](experiments.md); the commands",
        "and options of `jaxfl`; and the files of a run's folder. A change that breaks them is",
        "named in the changelog; so are `RobustStrategy` and `ClassicRobustStrategy` of",
        "`jaxfl.integrations.flower`, which needs Flower. Everything else may change at any time;",
        "the API reference of the site (`make docs`) shows some of it.",
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
        for module in MODULES
    }
    for title, names in (
        ("For parts of one's own", OWN_PARTS),
        ("In others' loops", OTHERS_LOOPS),
    ):
        found[title] = {
            f"{module}.{name}": getattr(importlib.import_module(module), name)
            for module, name in names
        }
    return {
        title: dict(sorted(names.items(), key=lambda pair: pair[0].lower()))
        for title, names in found.items()
    }


def first_sentence(value: Any) -> str:
    """The first paragraph of the docstring, for a cell of a table."""
    return cell((inspect.getdoc(value) or "").split("\n\n")[0])


def cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")

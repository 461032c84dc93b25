"""The keys of experiment files that are no fields of parts: what each means, what stands for it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxfl.data import SOURCES
from jaxfl.devices import WAYS
from jaxfl.experiments import honesty
from jaxfl.experiments.findings import METRICS, Finding
from jaxfl.experiments.reading import DATA_DEFAULTS, DEFAULTS, REQUIRED
from jaxfl.plan import AUTOMATIC
from jaxfl.privacy.deployment import ATTACK_FIRST, NOISE_FIRST
from jaxfl.state import STORAGES

Texts = dict[str, tuple[str, str, str]]
"""By key its type, its range and its meaning."""
Rows = dict[str, tuple[str, str, str, str]]
"""The same with the default, second."""

KEYS: Texts = {
    "title": ("string", "", "What tables and plots are headed with."),
    "rounds": ("integer", "at least 1", "Rounds of training."),
    "evaluate_every": ("integer", "at least 1", "Rounds between evaluations."),
    "checkpoint_every": ("integer", "at least 1", "Rounds between checkpoints."),
    "seed": (
        *("integer", "at least 0"),
        "Of the division of the data, of the model and of all draws; `sweep.seed` takes a list.",
    ),
    "client_chunk": ("integer", "at least 1", "How many clients are vmapped at once."),
    "devices": (
        *('integer, `"all"` or `"auto"`', "at least 1"),
        "How many devices the clients are mapped over; auto: every core of a CPU for models that "
        "convolve, else one. Results are equal to rounding.",
    ),
    "way": ("string", ", ".join(WAYS), "How several devices share a round: see `jaxfl.devices`."),
    "storage": (
        *("string", ", ".join((AUTOMATIC, *STORAGES))),
        "Where a round has its updates: see [many clients](performance.md#many-clients).",
    ),
    "signs": (
        *("true or false", ""),
        "Whether every round counts the signs of what was sent: the shares of coordinates that "
        "are positive and negative, of honest and Byzantine messages, in the log and `signs.png`.",
    ),
    "attacks_share_program": (
        *("true or false", ""),
        "Whether attacks that do not learn are branches of one program, compiled once for each "
        "defence: for grids of many attacks on small models. Results are equal to rounding.",
    ),
    "byzantine": (
        *("integer", "from 0 to `data.clients`"),
        "How many clients of the population are Byzantine; which ones, the seed decides.",
    ),
    "byzantine_per_round": (
        *('integer or `"expected"`', "at least 0"),
        "How many of them are in every cohort of `uniform` participation.",
    ),
    "noise_order": (
        *("string", f"{NOISE_FIRST}, {ATTACK_FIRST}"),
        "Whether `message` privacy comes before the attack or after it.",
    ),
    "honesty": (
        *("table", ""),
        "Who is honest is drawn from a law, many sets for each seed: see [honesty](#honesty).",
    ),
    "validation": (
        *("number", "at least 0, below 1"),
        "Share of the training samples held out for choosing; `tune` needs it.",
    ),
    "model": ("part", "", "See [Model](#model)."),
    "data": ("name or table", "", "See [data](#data)."),
    "sweep": (
        *("table of lists", "at least one value each"),
        "Dotted keys and their values; every combination is a cell of the grid.",
    ),
    "tune": (
        *("table of lists", "at least one value each"),
        "As `sweep`, but of numbers only: the value with the best accuracy on held-out samples "
        "is chosen for each defence, over all that it cannot know: `attack` and what is below it, "
        "`byzantine`, `byzantine_per_round` and `noise_order`.",
    ),
    "findings": ("list of tables", "", "Claims to be judged: see [findings](#findings)."),
    "reduced": (
        *("table", ""),
        "Dotted keys and values that `--reduced` sets, to cut the experiment down.",
    ),
}
DATA: Texts = {
    "name": ("string", ", ".join(SOURCES), "The data set."),
    "clients": ("integer", "at least 1", "The population."),
    "partition": ("part", "", "How it is divided: see [Partition](#partition)."),
    "root": ("table", "", "The server's own samples: see [RootData](#rootdata)."),
    "rare": ("table", "", "Samples that only attackers have: see [RareData](#raredata)."),
    "client_test": ("number", "at least 0, below 1", "Share that each client holds out."),
}
HONESTY: Texts = {
    "law": ("part", "", "The law of the honest set: see [Law](#law)."),
    "sets": (
        *("integer", "at least 1"),
        "How many honest sets are drawn for each seed: runs of one program. Each has its own first "
        "model, batches and attack noise, the same in every cell.",
    ),
    "level": (
        *("number", "above 0, at most 1"),
        "`f`, where a rule leaves it out, is the least number of Byzantine clients that holds with "
        "this probability; 1: as many as can occur.",
    ),
}
FINDINGS: Texts = {
    "claim": ("string", "", "What is claimed."),
    "better": (
        "table or number",
        "",
        "Labels (axis to value) of the cells that have more; or a number that is more, in the "
        "unit that verdicts give the metric in (mostly percent).",
    ),
    "than": (
        "table or number",
        "",
        "Labels of the cells that have less; all else is equal. With more axes than `better`, one "
        "cell is the measure of many. Or a number that is less.",
    ),
    "metric": ("string", ", ".join(METRICS), "What is compared."),
    "where": (
        "table",
        "",
        "Labels that both cells have; `{ not = LABEL }` is any label of the axis but that one.",
    ),
    "by": ("number", "", "How much more: in percentage points, for lifespan in rounds."),
    "why": ("string", "", "What explains it if it does not come out."),
}
LEFT_OUT = {
    "title": "the file's name",
    "client_chunk": "chosen for the backend and the model",
    "byzantine_per_round": "as it happens",
    "honesty": "the seed decides",
    "sweep": "no axes",
    "tune": "nothing",
    "findings": "none",
    "reduced": "none",
    "root": "none",
    "rare": "none",
}
"""What it means to leave out a key for which no value stands."""


def file_keys() -> Rows:
    """The keys at the top of a file."""
    return _with_defaults(KEYS, dict.fromkeys(REQUIRED, "needed") | DEFAULTS)


def data_keys() -> Rows:
    """The keys of ``data``."""
    return _with_defaults(DATA, {"name": "needed"} | DATA_DEFAULTS)


def honesty_keys() -> Rows:
    """The keys of ``honesty``."""
    return _with_defaults(HONESTY, {"law": "needed"} | honesty.DEFAULTS)


def findings_keys() -> Rows:
    """The keys of a claim, which are the fields of ``Finding``."""
    defaults = {}
    for field in dataclasses.fields(Finding):
        make = field.default_factory
        default = field.default if make is dataclasses.MISSING else make()
        defaults[field.name] = "needed" if default is dataclasses.MISSING else default
    return _with_defaults(FINDINGS, defaults)


def _with_defaults(texts: Texts, defaults: Mapping[str, Any]) -> Rows:
    unknown = set(defaults) - set(texts)
    assert not unknown, f"keys without a text: {sorted(unknown)}"
    return {
        key: (kind, str(defaults[key] if key in defaults else LEFT_OUT[key]), span, meaning)
        for key, (kind, span, meaning) in texts.items()
    }

"""A run as one HTML file that needs nothing else: tables, curves, heat maps, what was run."""

import json
import math
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from jaxfl.attacks import NoAttack
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.labels import describe
from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.tables import caption, named, privacy_statements

MOST_POINTS = 400
"""Of a curve: more than there are pixels for would only make the file large."""
Run = tuple[Path, Experiment, Sequence[Result]]
"""A finished run: its folder, what it was, and what came out."""


def write_page(path: Path, runs: Sequence[Run]) -> None:
    """Writes the report of finished runs."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    here = resources.files("jaxfl.report")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    ).from_string((here / "page.html").read_text())
    told = [_told(*run) for run in runs]
    text = template.render(
        title=" · ".join(run["title"] for run in told),
        made=f"Made by jaxfl {told[-1]['version']}; "
        f"{sum(len(results) for _, _, results in runs)} cells.",
        runs=told,
        data=[_data(*run) for run in runs],
        plotly=Markup(get_plotlyjs()),
        script=Markup((here / "page.js").read_text()),
    )
    write_aside(path, text.encode())


def _told(folder: Path, experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """What is said of a run in words."""
    file = folder / "environment.json"
    environment = json.loads(file.read_text()) if file.is_file() else {}
    threats = {
        describe(attack): "controls {}, knows {}".format(*attack.threat_model)
        for attack in (cell.federation.attack for cell in experiment.cells)
        if not isinstance(attack, NoAttack)
    }
    return {
        "title": experiment.title,
        "version": environment.get("packages", {}).get("jaxfl", ""),
        "said": [
            (
                "What was stated, and what came out",
                [verdict.replace("**", "") for verdict in verdicts(experiment, results)],
            ),
            ("Privacy", privacy_statements(experiment)),
            (
                "What a Byzantine client controls and knows",
                [f"{name}: {threat}" for name, threat in threats.items()],
            ),
        ],
        "command": shlex.join(map(str, environment.get("command", []))),
        "environment": json.dumps(environment, indent=1),
        "experiment": tomli_w.dumps(experiment.table),
    }


def _data(folder: Path, experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """The numbers of a run, as the page's script reads them."""
    return {
        "name": folder.name,
        "title": experiment.title,
        "caption": caption(experiment),
        "cells": [_cell(experiment, result) for result in results],
    }


def _cell(experiment: Experiment, result: Result) -> dict[str, Any]:
    labels, parts = dict(result.cell.labels), result.cell.federation
    attack = labels.pop("attack", None) or describe(parts.attack)
    rest = " / ".join(named(axis, value) for axis, value in labels.items())
    at = _places(len(result.rounds))
    accuracy = result.accuracy[:, at] if result.accuracy.size else np.zeros((1, 0))
    return {
        "dataset": result.cell.data[0],
        "attack": attack,
        "defence": labels.get("aggregator") or describe(parts.aggregator),
        "row": rest or experiment.name,
        "status": result.status,
        "final": _number(result.final),
        "spread": _number(result.spread),
        "rounds": result.rounds[at].tolist(),
        "mean": _numbers(np.mean(accuracy, axis=0)),
        "low": _numbers(np.min(accuracy, axis=0)),
        "high": _numbers(np.max(accuracy, axis=0)),
        "selection": _selection(result),
        "histogram": None if result.histogram is None else result.histogram.tolist(),
    }


def _selection(result: Result) -> dict[str, Any] | None:
    """Rates of selection over rounds; None of a rule that selects nobody."""
    if result.selection is None or not np.isfinite(result.selection).any():
        return None
    honest, malicious = map(_numbers, result.selection)
    return {"rounds": result.selection_rounds.tolist(), "honest": honest, "malicious": malicious}


def _places(length: int) -> np.ndarray:
    """Which of so many points of a curve are drawn: the last always."""
    return np.unique(np.linspace(length - 1, 0, min(length, MOST_POINTS)).astype(int))


def _number(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]

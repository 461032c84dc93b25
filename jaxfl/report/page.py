"""A run as one HTML file that needs nothing else: tables, curves, heat maps, what was run."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import jaxfl
from jaxfl.component import Component
from jaxfl.experiments.commit import ELSEWHERE
from jaxfl.experiments.environment import environments
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.labels import describe, named
from jaxfl.experiments.ranking import place_of, rankings
from jaxfl.experiments.results import Result
from jaxfl.experiments.schema import Experiment
from jaxfl.experiments.written import as_toml
from jaxfl.files import write_aside
from jaxfl.report import backdoors
from jaxfl.report.grid import in_percent
from jaxfl.report.ranking import WORDS, caption, entries, header, heading, is_ranked
from jaxfl.report.tables import is_tuned, measured, privacy_statements, threats

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
    names = _names(runs)
    told = [{"name": name, **_told(*run)} for name, run in zip(names, runs, strict=True)]
    text = template.render(
        title=" · ".join(dict.fromkeys(run["title"] for run in told)),
        made=f"Made by jaxfl {jaxfl.__version__}; "
        f"{sum(len(results) for _, _, results in runs)} cells.",
        runs=told,
        data=[
            {"name": name, **_data(experiment, results)}
            for name, (_, experiment, results) in zip(names, runs, strict=True)
        ],
        plotly=Markup(get_plotlyjs()),
        script=Markup((here / "page.js").read_text()),
    )
    write_aside(path, text.encode(errors="replace"))


def _names(runs: Sequence[Run]) -> list[str]:
    """What runs are called: their folders, whole where two end alike."""
    paths = [folder.resolve() for folder, _, _ in runs]
    ends = Counter(path.name for path in paths)
    return [path.name if ends[path.name] == 1 else str(path) for path in paths]


def _told(folder: Path, experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """What is said of a run in words."""
    ran = environments(folder)
    return {
        "title": experiment.title,
        "said": [
            (
                "What was stated, and what came out",
                list(map(str, verdicts(experiment, results))),
            ),
            ("Privacy", privacy_statements(experiment)),
            ("What a Byzantine client controls and knows", threats(experiment)),
        ],
        "command": "\n".join(shlex.join(map(str, env.get("command") or [])) for env in ran),
        "environment": "\n".join(json.dumps(env, indent=1) for env in ran),
        "experiment": as_toml(experiment.table),
    }


def _data(experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """The numbers of a run, as the page's script reads them."""
    ranked = rankings(experiment, results) if is_ranked(experiment) else []
    ranks = {
        (ranking.setting, entry.defence): rank
        for ranking in ranked
        for rank, entry in enumerate(ranking.defences)
    }
    cells, done = len(experiment.cells), sum(r.reason != ELSEWHERE for r in results)
    return {
        "title": experiment.title,
        "caption": f"{measured(experiment)}. {f'{done} of {cells} cells so far. ' * (done < cells)}"
        "Epsilon, what was tuned and why a cell did not run stand in its tip.",
        "rankings": [
            {
                "title": heading(experiment, ranking),
                "header": header(experiment),
                "words": WORDS,
                "rows": entries(experiment, ranking),
                "caption": caption(experiment, ranking),
            }
            for ranking in ranked
        ],
        "backdoors": backdoors.CAPTION,
        "cells": [
            _cell(experiment, result) | {"rank": ranks.get(place_of(result.cell.labels))}
            for result in results
        ],
    }


def _cell(experiment: Experiment, result: Result) -> dict[str, Any]:
    labels, parts = dict(result.cell.labels), result.cell.federations[result.chosen]
    attack = labels.pop("attack", None) or _fixed(parts.attack, "attack", labels)
    rest = " / ".join(named(axis, value) for axis, value in labels.items())
    alike = [named(axis, value) for axis, value in labels.items() if axis != "aggregator"]
    at = _places(len(result.rounds))
    accuracy = np.nan_to_num(result.accuracy[:, at]) if result.accuracy.size else np.zeros((1, 0))
    return {
        "dataset": result.cell.data[0],
        "attack": attack,
        "defence": labels.get("aggregator") or _fixed(parts.aggregator, "aggregator", labels),
        "row": rest or experiment.name,
        "setting": " / ".join(alike),
        "status": result.status,
        "text": in_percent(result.status, result.final, result.spread),
        "tuned": experiment.candidates[result.chosen] if is_tuned(experiment) else "",
        "epsilon": _number(result.epsilon),
        "covered": result.guaranteed == "yes",
        "final": _number(result.final),
        "spread": _number(result.spread),
        "success": _number(result.attack_success),
        "backdoor": backdoors.of_result(result),
        "rounds": result.rounds[at].tolist(),
        "mean": _numbers(np.mean(accuracy, axis=0)),
        "low": _numbers(np.min(accuracy, axis=0)),
        "high": _numbers(np.max(accuracy, axis=0)),
        "selection": _selection(result),
        "histogram": None if result.histogram is None else result.histogram.tolist(),
    }


def _fixed(component: Component, axis: str, labels: dict[str, str]) -> str:
    """A part that no axis names; without its numbers where an axis goes over one of them."""
    swept = any(label.startswith(f"{axis}.") for label in labels)
    return type(component).__name__ if swept else describe(component)


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

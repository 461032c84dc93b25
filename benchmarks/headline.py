"""The headline goal of expected robustness, judged on finished runs of ``expected-mnist`` or alike.

``python -m benchmarks.headline RUN [RUN ...] [--out FILE]``. A run is its folder, or what is kept
of it (``results/NAME``), also of a grid of which some cells are missing. For each law (and
partition): the ranking by expected and by worst accuracy, and Kendall's tau between them. For each
rule that is no baseline: in how many laws it has a higher expected accuracy than each baseline (a
rule behind NNM or Bucketing), each under the attack that is worst for it, by paired 95 % intervals
over the same honest sets, and in how many a significantly lower one. The goal: higher than all
baselines in at least four of six laws, significantly lower than any in none. Writes JSON.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.timing import Report
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.kept import is_kept, read_kept
from jaxfl.experiments.over_sets import (
    Labels,
    Outcome,
    Pair,
    Standing,
    concordance,
    pairs,
    standings,
    standings_of,
)
from jaxfl.experiments.schema import Experiment

BASELINES = ("NNM", "Bucketing")
"""How labels of what is to be beaten begin."""
ENOUGH = 4
"""Laws."""


def is_baseline(rule: str) -> bool:
    return rule.startswith(BASELINES)


def gains(found: Sequence[Pair], rule: str) -> dict[str, tuple[float, float, float]]:
    """How much more accuracy a rule has than each baseline: the difference and its interval."""
    gained = {}
    for pair in found:
        difference = pair.difference
        if pair.rule == rule and is_baseline(pair.than):
            gained[pair.than] = (difference.value, difference.low, difference.high)
        elif pair.than == rule and is_baseline(pair.rule):
            gained[pair.rule] = (-difference.value, -difference.high, -difference.low)
    return gained


def judged(found: Sequence[Pair], rule: str) -> str:
    """What one law says: ``higher`` or ``lower`` (significantly), ``above`` or ``below``."""
    gained = gains(found, rule).values()
    if not gained:
        raise ValueError(f"the run has no baseline: no rule begins with {' or '.join(BASELINES)}")
    if any(high < 0 for _, _, high in gained):
        return "lower"
    if all(low > 0 for _, low, _ in gained):
        return "higher"
    return "above" if all(value > 0 for value, _, _ in gained) else "below"


def of_law(found: Sequence[Standing]) -> dict[str, Any]:
    """Everything about one law, for the file."""
    both = pairs(found)
    rows = [
        {
            "rule": s.rule,
            "attack": s.attack,
            "place": s.place,
            "worst place": s.worst_place,
            "worst": s.worst,
            **{k: v for k, v in dataclasses.asdict(s.summary).items() if k != "worst"},
            "against baselines": None if is_baseline(s.rule) else gains(both, s.rule),
            "verdict": None if is_baseline(s.rule) else judged(both, s.rule),
        }
        for s in found
    ]
    return {"rules": rows, "tau": concordance(found) if len(found) > 1 else None}


def verdicts(laws: dict[Labels, dict[str, Any]]) -> Report:
    """Rules by what the laws say of them."""
    words = ("higher", "above", "below", "lower")
    report = Report("laws in which a rule is, against the best baseline", ("rule", *words, "goal"))
    counts: dict[str, dict[str, int]] = {}
    for law in laws.values():
        for row in law["rules"]:
            if row["verdict"] is not None:
                own = counts.setdefault(row["rule"], dict.fromkeys(words, 0))
                own[row["verdict"]] += 1
    for rule, own in counts.items():
        reached = own["higher"] + own["above"] >= ENOUGH and own["lower"] == 0
        numbers = (str(own[word]) for word in words)
        report.rows.append((rule, *numbers, "reached" if reached else "not reached"))
    return report


def read(path: Path) -> tuple[Experiment, dict[Labels, list[Standing]], str]:
    """The experiment, its standings, and how much of it there is, of a run or of what is kept."""
    if not is_kept(path):
        experiment, results = read_results(path)
        return experiment, standings(results), f"{len(results)} cells"
    kept = read_kept(path)
    ran = [cell for cell in kept.cells if cell.last]
    found = standings_of([Outcome(cell.labels, np.nan_to_num(cell.last)) for cell in ran])
    asked = kept.experiment
    return asked, found, f"{len(kept.cells)} of {len(asked.cells)} cells kept"


def main() -> None:
    """Prints the verdicts, and writes all numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or results/NAME")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    console, facts = Console(width=160), {}
    for path in options.runs:
        experiment, by_law, size = read(path)
        laws = {labels: of_law(found) for labels, found in by_law.items()}
        apart = {tuple(p for p in labels if p[0] != "honesty.law") for labels in laws}
        for rest in sorted(apart):
            chosen = {k: v for k, v in laws.items() if set(rest) <= set(k)}
            console.print(f"{path}, {size}: {', '.join(' '.join(pair) for pair in rest)}")
            verdicts(chosen).show(console)
        facts[str(path)] = {
            "experiment": experiment.title,
            "sets": len(experiment.cells[0].draws),
            "size": size,
            "laws": [{"labels": dict(labels), **law} for labels, law in laws.items()],
        }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

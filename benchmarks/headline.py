"""The headline goal of expected robustness, judged on runs of ``expected-headline`` or alike.

``python -m benchmarks.headline RUN [RUN ...] [--out FILE]``. A run is its folder, or what is kept
of it (``results/NAME``), also of a grid of which some cells are missing. Rankings and pairs are in
the run's own tables (``honest_sets.md``); here, for each rule that is no baseline: in how many laws
it has a higher expected accuracy than each baseline (a rule behind NNM or Bucketing), each under
the attack that is worst for it, by paired 95 % intervals over the same honest sets, and in how many
a significantly lower one. The goal: higher than all baselines in at least four of six laws,
significantly lower than any in none. Writes JSON.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.timing import Report, save
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.kept import is_kept, read_kept
from jaxfl.experiments.over_sets import (
    Labels,
    Outcome,
    Pair,
    Standing,
    outcomes,
    pairs,
    standings,
)

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


def of_law(found: Sequence[Standing]) -> dict[str, dict[str, Any]]:
    """What one law says of each rule that is no baseline, for the file."""
    both = pairs(found)
    return {
        s.rule: {
            "attack": s.attack,
            "verdict": judged(both, s.rule),
            "against baselines": gains(both, s.rule),
        }
        for s in found
        if not is_baseline(s.rule)
    }


def verdicts(laws: Sequence[dict[str, dict[str, Any]]]) -> Report:
    """Rules by what the laws say of them."""
    words = ("higher", "above", "below", "lower")
    report = Report("laws in which a rule is, against the best baseline", ("rule", *words, "goal"))
    for rule in dict.fromkeys(rule for law in laws for rule in law):
        said = [law[rule]["verdict"] for law in laws if rule in law]
        reached = said.count("higher") + said.count("above") >= ENOUGH and "lower" not in said
        numbers = (str(said.count(word)) for word in words)
        report.rows.append((rule, *numbers, "reached" if reached else "not reached"))
    return report


def read(path: Path) -> tuple[list[Outcome], str]:
    """What came out of a run, or of what is kept of one, and how much of it there is."""
    if not is_kept(path):
        _, results = read_results(path)
        return outcomes(results), f"{len(results)} cells"
    kept = read_kept(path)
    return kept.outcomes, f"{len(kept.cells)} of {len(kept.experiment.cells)} cells kept"


def main() -> None:
    """Prints the verdicts, and writes what they rest on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or results/NAME")
    parser.add_argument("--out", type=Path, help="the JSON file")
    options = parser.parse_args()
    console, facts = Console(width=160), {}
    for path in options.runs:
        found, size = read(path)
        laws = {labels: of_law(order) for labels, order in standings(found).items()}
        for rest in dict.fromkeys(map(besides_law, laws)):
            console.print(f"{path}, {size}: {', '.join(' '.join(pair) for pair in rest)}")
            verdicts([v for k, v in laws.items() if besides_law(k) == rest]).show(console)
        of_laws = [{"labels": dict(labels), "rules": law} for labels, law in laws.items()]
        facts[str(path)] = {"size": size, "laws": of_laws}
    if options.out:
        save(options.out, facts)


def besides_law(labels: Labels) -> Labels:
    """What else the grid goes over, such as the partition."""
    return tuple(pair for pair in labels if pair[0] != "honesty.law")


if __name__ == "__main__":
    main()

"""The ranking of defences, for the terminal, as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from jaxfl.experiments.labels import named
from jaxfl.experiments.ranking import Ranked, Worst
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.markdown import as_markdown

FILES = ("ranking.csv", "ranking.md")
LEAST = 6
"""Attacks, none among them, from which defences are ranked over them."""
SHOWN = 20
"""Lines of the terminal's table."""
HEADER = (
    *("rank", "defence", "worst", "under", "mean"),
    *("worst of those that try it", "under", "ms a round", "attacks"),
)
COLUMNS = (
    *("worst", "worst_ci95", "worst_attack", "mean", "mean_ci95"),
    *("knowing", "knowing_ci95", "knowing_attack", "ms_a_round", "attacks"),
)
CAPTION = (
    "Test accuracy in % after the last round, ± half of the 95 % interval over seeds, 0 where a "
    "run diverged; by the worst attack; the mean over attacks, none among them; the time of a "
    "round of one run without attack, its share of compiling included"
)


def attacks(experiment: Experiment) -> int:
    """How many attacks the experiment's grid goes over; 1 where it goes over none."""
    return len({cell.labels.get("attack") for cell in experiment.cells})


def is_ranked(experiment: Experiment) -> bool:
    """Whether the experiment is a grid over so many attacks that a ranking says more than it."""
    return attacks(experiment) >= LEAST


def called(entry: Ranked, name: str) -> str:
    """The defence in a few words; that of a grid over nothing else by the experiment's name."""
    return " / ".join(named(axis, label) for axis, label in entry.defence) or name


def entries(experiment: Experiment, found: Sequence[Ranked]) -> list[list[str]]:
    """The ranking as text, without its header."""
    return [
        [str(place), called(entry, experiment.name), *_numbers(entry)]
        for place, entry in enumerate(found, 1)
    ]


def ranking_table(experiment: Experiment, found: Sequence[Ranked]) -> Table:
    """``entries`` for the terminal: the first of them, and the last."""
    lines = entries(experiment, found)
    table = Table(title=escape(experiment.title), caption=CAPTION)
    for place, name in enumerate(HEADER):
        table.add_column(name, justify="left" if place in (1, 3, 6) else "right")
    for line in lines[: SHOWN - 1] if len(lines) > SHOWN else lines:
        table.add_row(*map(escape, line))
    if len(lines) > SHOWN:
        table.add_row("", f"{len(lines) - SHOWN} more", *[""] * 7)
        table.add_row(*map(escape, lines[-1]))
    return table


def markdown(experiment: Experiment, found: Sequence[Ranked]) -> str:
    """``entries`` as a Markdown table."""
    body = as_markdown([HEADER, *entries(experiment, found)])
    return f"### {experiment.title}\n\n{body}\n\n{CAPTION}.\n"


def as_csv(experiment: Experiment, found: Sequence[Ranked]) -> str:
    """``entries`` in shares of one, one line a defence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes = [axis for axis in experiment.axes if axis != "attack"]
    writer.writerow(["rank", *axes, *COLUMNS])
    for place, entry in enumerate(found, 1):
        labels = dict(entry.defence)
        knowing = entry.knowing or Worst(math.nan, math.nan, "")
        shares = (entry.worst.accuracy, entry.worst.interval, entry.mean, entry.interval)
        shares += (knowing.accuracy, knowing.interval, entry.cost)
        worst, worst_ci, mean, mean_ci, least, least_ci, cost = map(_share, shares)
        numbers = (worst, worst_ci, entry.worst.attack, mean, mean_ci)
        numbers += (least, least_ci, knowing.attack, cost, entry.attacks)
        writer.writerow([place, *(labels.get(axis, "") for axis in axes), *numbers])
    return text.getvalue()


def write_ranking(folder: Path, experiment: Experiment, found: Sequence[Ranked]) -> None:
    """``ranking.csv`` and ``ranking.md``."""
    for name, content in zip(FILES, (as_csv, markdown), strict=True):
        write_aside(folder / name, content(experiment, found).encode())


def _numbers(entry: Ranked) -> list[str]:
    knowing = entry.knowing
    return [
        _percent(entry.worst.accuracy, entry.worst.interval),
        entry.worst.attack,
        _percent(entry.mean, entry.interval),
        "-" if knowing is None else _percent(knowing.accuracy, knowing.interval),
        "-" if knowing is None else knowing.attack,
        "-" if math.isnan(entry.cost) else f"{entry.cost:.1f}",
        str(entry.attacks),
    ]


def _percent(share: float, interval: float) -> str:
    return f"{100 * share:.1f}" + ("" if math.isnan(interval) else f" ± {100 * interval:.1f}")


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"

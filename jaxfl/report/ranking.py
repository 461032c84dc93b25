"""The rankings of defences, for the terminal, as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from jaxfl.attacks import NoAttack
from jaxfl.experiments.labels import named
from jaxfl.experiments.ranking import Ranked, Ranking, Worst
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report.markdown import as_markdown
from jaxfl.report.tables import is_tuned

FILES = ("ranking.csv", "ranking.md")
LEAST = 5
"""Attacks from which defences are ranked over them."""
SHOWN = 20
"""Lines of the terminal's table."""
COLUMNS = (
    *("rank", "defence", "worst", "under", "mean"),
    *("worst of those that know it", "under", "ms a round"),
)
IN_CSV = (
    *("worst", "worst_ci95", "worst_attack", "mean", "mean_ci95"),
    *("knowing", "knowing_ci95", "knowing_attack", "ms_a_round", "attacks"),
)
WORDS = (1, 3, 6, 8)
"""Columns that have words in them."""
CAPTION = (
    "Test accuracy in % after the last round, ± half of the 95 % interval over seeds; a run that "
    "diverged counts 0. By the worst attack; the mean over attacks; the worst of the attacks that "
    "try the defence or are made for it; the time that a round of one run without attack ran, "
    "its share of evaluations included"
)


def attacks(experiment: Experiment) -> int:
    """How many attacks the experiment's grid goes over, of which none is not one."""
    attacked = [c for c in experiment.cells if not isinstance(c.federation.attack, NoAttack)]
    return len({cell.labels.get("attack") for cell in attacked})


def is_ranked(experiment: Experiment) -> bool:
    """Whether the experiment is a grid over so many attacks that a ranking says more than it."""
    return attacks(experiment) >= LEAST


def heading(experiment: Experiment, ranking: Ranking) -> str:
    """The title, and the setting where there may be several."""
    setting = " / ".join(named(axis, label) for axis, label in ranking.setting)
    return f"{experiment.title}: {setting}" if setting else experiment.title


def caption(experiment: Experiment, ranking: Ranking) -> str:
    """What the numbers are, over which attacks, and which defences are not there yet."""
    tuned = "; tuned on held-out samples" if is_tuned(experiment) else ""
    said = f"{CAPTION}{tuned}. Over {len(ranking.attacks)} attacks"
    if ranking.left_out:
        said += f"; left out, as not all defences have them: {', '.join(ranking.left_out)}"
    if ranking.unfinished:
        said += f". Not ranked, as cells are still to be run: {', '.join(ranking.unfinished)}"
    return f"{said}."


def header(experiment: Experiment) -> list[str]:
    """The names of the columns of ``entries``."""
    return [*COLUMNS, *(["tuned"] if is_tuned(experiment) else [])]


def entries(experiment: Experiment, ranking: Ranking) -> list[list[str]]:
    """The ranking as text, without its header."""
    lines = []
    for place, entry in enumerate(ranking.defences, 1):
        choice = [experiment.candidates[entry.chosen]] if is_tuned(experiment) else []
        lines.append([str(place), entry.defence or experiment.name, *_numbers(entry), *choice])
    return lines


def ranking_table(experiment: Experiment, ranking: Ranking) -> Table:
    """``entries`` for the terminal: the first of them, and the last."""
    lines = entries(experiment, ranking)
    table = Table(
        title=escape(heading(experiment, ranking)), caption=escape(caption(experiment, ranking))
    )
    names = header(experiment)
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place in WORDS else "right")
    for line in lines[: SHOWN - 1] if len(lines) > SHOWN else lines:
        table.add_row(*map(escape, line))
    if len(lines) > SHOWN:
        table.add_row("", f"{len(lines) - SHOWN} more", *[""] * (len(names) - 2))
        table.add_row(*map(escape, lines[-1]))
    return table


def markdown(experiment: Experiment, found: Sequence[Ranking], level: str = "###") -> str:
    """``entries`` as Markdown tables under headings of this level."""
    pieces = []
    for ranking in found:
        body = as_markdown([header(experiment), *entries(experiment, ranking)])
        said = caption(experiment, ranking)
        pieces.append(f"{level} {heading(experiment, ranking)}\n\n{body}\n\n{said}\n")
    return "\n".join(pieces)


def as_csv(experiment: Experiment, found: Sequence[Ranking]) -> str:
    """``entries`` in shares of one, one line a setting and defence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes = [axis for axis in experiment.axes if axis not in ("attack", "aggregator")]
    writer.writerow([*axes, "rank", "aggregator", *IN_CSV])
    for ranking in found:
        setting = dict(ranking.setting)
        for place, entry in enumerate(ranking.defences, 1):
            knowing = entry.knowing or Worst(math.nan, math.nan, "")
            writer.writerow(
                [
                    *(setting.get(axis, "") for axis in axes),
                    *(place, entry.defence),
                    *(_share(entry.worst.accuracy), _share(entry.worst.interval)),
                    *(entry.worst.attack, _share(entry.mean), _share(entry.interval)),
                    *(_share(knowing.accuracy), _share(knowing.interval), knowing.attack),
                    *(_share(entry.cost), len(ranking.attacks)),
                ]
            )
    return text.getvalue()


def write_ranking(folder: Path, experiment: Experiment, found: Sequence[Ranking]) -> None:
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
    ]


def _percent(share: float, interval: float) -> str:
    return f"{100 * share:.1f}" + ("" if math.isnan(interval) else f" ± {100 * interval:.1f}")


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"

"""Kept results as a page: papers' tables with ours, and what else was really run."""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jaxfl
from jaxfl.experiments.difference import SAID, changes
from jaxfl.experiments.kept import Cell, Kept, read_kept
from jaxfl.experiments.labels import brief, place
from jaxfl.experiments.ranking import rankings
from jaxfl.experiments.recalled import results_of
from jaxfl.experiments.reported import (
    METRICS,
    Compared,
    Pairs,
    Reported,
    beside_papers,
    unpaired,
)
from jaxfl.experiments.results import Result
from jaxfl.experiments.scales import REDUCED, as_told_now, scale_of
from jaxfl.experiments.schema import packaged_file, read
from jaxfl.report import backdoors, over_sets
from jaxfl.report.grid import in_percent, lines_of
from jaxfl.report.markdown import as_markdown
from jaxfl.report.progress import duration
from jaxfl.report.ranking import is_ranked
from jaxfl.report.ranking import markdown as ranking_markdown
from jaxfl.report.tables import is_tuned, stated

SELECTED = "Share of honest / of Byzantine messages that were taken, in %."
FAR = 5.0
"""Points from which a difference asks for a reason."""
REASONS = "reasons.md"
"""Beside kept results, written by hand: what explains the differences, and how that was found."""
HEADER = """# Replications

<!-- Written by `python -m jaxfl.report.reference docs` from `results/`; a test compares it. -->

What was really run, kept in the repository's folder `results/`: the experiment, the environment
and one line a cell. Of papers' tables ours stands beside theirs, which are in brackets, and below
are the differences; those of 5 points and more are bold. `jaxfl reproduce NAME` prints the tables
that are not too wide for a terminal, the ranking and what came out of claims; when, where and why
is said here alone.
"""


def repository_results() -> Path:
    """The folder of kept results in the repository of this installation."""
    return Path(jaxfl.__file__).parent.parent / "results"


def replications_page(folder: Path) -> str:
    """The page of all kept results in a folder."""
    found = sorted(path.parent for path in folder.glob("*/cells.jsonl"))
    return "\n".join([HEADER, *map(_section, found)]).rstrip() + "\n"


def is_far(cell: Compared) -> bool:
    """Whether the difference asks for a reason; that of a run that diverged does."""
    return not abs(cell.difference) < FAR


def beside(reported: Reported, found: Sequence[Compared]) -> list[list[tuple[str, bool]]]:
    """Ours and, in brackets, theirs, with whether they are far apart: header, a line per row."""
    return _laid_out(reported, found, lambda c: f"{c.ours:.1f} ({c.theirs:.1f})")


def apart(reported: Reported, found: Sequence[Compared]) -> list[list[tuple[str, bool]]]:
    """The differences and, in brackets, our last accuracy, laid out as ``beside``."""

    def text(cell: Compared) -> str:
        last = in_percent(cell.status, cell.last / 100)
        return f"{cell.difference:+.1f}{'*' if cell.within else ''} ({last})"

    return _laid_out(reported, found, text)


APART = (
    "Ours less theirs in points, starred where that is within the 95 % interval of our seeds (one "
    "seed has none); in brackets our test accuracy after the last round in %"
)
"""What ``apart`` says."""


def _laid_out(
    reported: Reported, found: Sequence[Compared], text: Callable[[Compared], str]
) -> list[list[tuple[str, bool]]]:
    columns = [column for column in reported.columns if any(c.column == column for c in found)]
    cells = {(c.row, c.column): c for c in found}
    table = [[(name, False) for name in (reported.axes[0], *columns)]]
    for row in dict.fromkeys(c.row for c in found):
        line = [(row, False)]
        for column in columns:
            cell = cells.get((row, column))
            line.append(("-", False) if cell is None else (text(cell), is_far(cell)))
        table.append(line)
    return table


def verdict(reported: Reported, kept: Kept, found: Sequence[Compared]) -> list[str]:
    """How near ours are to theirs, in words."""
    metric, _ = METRICS[reported.metric]
    rounds = kept.table.get("rounds", math.nan)
    epochs = rounds / reported.rounds_an_epoch
    long = f" ({epochs:.3g} of the paper's epochs)" if epochs > 0 else ""
    lines = [f"{metric} in %; ours: {_scale(kept)}{long}; theirs: {reported.scale}"]
    near = sum(abs(c.difference) <= 1 for c in found)
    far = sum(map(is_far, found))
    lines.append(
        f"{len(found)} cells: {near} within 1 point, {len(found) - near - far} within "
        f"{FAR:g}, {far} farther"
    )
    spread = [c.within for c in found if c.within is not None]
    if spread:
        lines.append(f"{sum(spread)} of {len(spread)} within the 95 % interval of our seeds")
    return lines


def reduction(path: Path, kept: Kept) -> list[str]:
    """What a scale changes, in one sentence; nothing of a whole experiment.

    A title can have numbers of the whole one: the experiment as it comes with jaxfl now is
    compared, not what its file says of the reduced version.
    """
    name, scale = scale_of(path)
    if scale is None:
        return []
    whole = {k: v for k, v in read(packaged_file(name)).items() if k not in (*SAID, "reduced")}
    ours = {k: v for k, v in kept.table.items() if k not in SAID}
    changed = [
        f"`{key}` {_in_short(here)} ({_in_short(there)})"
        for key, there, here in changes(whole, ours)
    ]
    word = "Reduced" if scale == REDUCED else "Changed"
    return [f"{word} (the whole one's in brackets): {', '.join(changed)}"] if changed else []


def _in_short(value: Any) -> str:
    """A value of a table; of a list how many it has."""
    if isinstance(value, list):
        return f"{len(value)} value{'s' if len(value) != 1 else ''}"
    return brief(value)


def _section(path: Path) -> str:
    """What is kept in a folder; where it cannot be read, what is damaged."""
    try:
        kept = as_told_now(path, read_kept(path))
        text = _told(path, kept)
        damaged = kept.damaged
    except ValueError as error:
        text, damaged = "", (str(error),)
    here = f"{path.parent}{os.sep}"
    named = [f"**Not shown:** {' '.join(said.split()).replace(here, '')}.\n" for said in damaged]
    return "\n".join([f"\n## {path.name}\n", *named, *([text] if text else [])])


def _told(path: Path, kept: Kept) -> str:
    """All that is known of what is kept in a folder."""
    name, _ = scale_of(path)
    said = [str(kept.table.get("title", name)), *reduction(path, kept)]
    parts = [f"{'. '.join(said)}. {_where(kept)}\n"]
    pairs = beside_papers(kept, name)
    for reported, found in pairs:
        said = f"{'. '.join(verdict(reported, kept, found))}. {reported.source}"
        for table, caption in ((beside, said), (apart, APART)):
            lines = [
                [f"**{t}**" if far else t for t, far in line] for line in table(reported, found)
            ]
            parts += [as_markdown(lines), f"\n{caption}.\n"]
    results = results_of(kept)
    if is_ranked(kept.experiment):
        parts.append(ranking_markdown(kept.experiment, rankings(kept.experiment, results), "####"))
    for lines, caption in own(kept, results, pairs):
        parts += [as_markdown(lines), f"\n{caption}\n"]
    parts += [told.lstrip()] if (told := stated(kept.experiment, results)) else []
    if over_sets.has_sets(kept.experiment):
        parts.append(over_sets.markdown(kept.experiment, kept.outcomes))
    reasons = path / REASONS
    return "\n".join([*parts, *([reasons.read_text().strip(), ""] if reasons.is_file() else [])])


def own(kept: Kept, results: Sequence[Result], pairs: Pairs) -> list[tuple[list[list[str]], str]]:
    """Tables of ours, attacks across where they are swept, all else down; and what they say.

    Accuracies of cells beside which no paper's numbers stand, what they were tuned to, and who was
    selected by rules that choose; backdoors of all ``results``.
    """
    rest, experiment = unpaired(kept, pairs), kept.experiment
    accuracy = f"Test accuracy after the last round in %, 0 where a run diverged; {_scale(kept)}"
    accuracies = _lines(rest.cells, _percent)
    if is_tuned(experiment) and accuracies:
        accuracy += "; tuned on held-out samples"
        ran = [cell for cell in rest.cells if cell.last]
        tuned = {place(cell.labels)[0]: experiment.candidates[cell.candidate] for cell in ran}
        header, *lines = accuracies
        accuracies = [[*header, "tuned"], *([*line, tuned.get(line[0], "-")] for line in lines)]
    choosing = {place(cell.labels)[0] for cell in rest.cells if _chose(cell)}
    chosen = [cell for cell in rest.cells if place(cell.labels)[0] in choosing]
    planted = backdoors.entries(experiment, results) if results else []
    tables = (
        (accuracies, f"{accuracy}."),
        (_lines(chosen, _selected), SELECTED),
        (_telling(planted), backdoors.CAPTION),
    )
    return [(lines, caption) for lines, caption in tables if lines]


def _lines(cells: Sequence[Cell], text: Callable[[Cell], str]) -> list[list[str]]:
    """Texts of cells as a table; nothing where there is none."""
    return _telling(lines_of((cell.labels, text(cell)) for cell in cells)) if cells else []


def _telling(lines: list[list[str]]) -> list[list[str]]:
    """A table without the lines in which nothing stands; nothing where there are no others."""
    telling = [line for line in lines[1:] if set(line[1:]) != {"-"}]
    return [lines[0], *telling] if telling else []


def _percent(cell: Cell) -> str:
    return in_percent(cell.status, cell.final)


def _chose(cell: Cell) -> bool:
    """Whether the rule left anything out; once a run has diverged every rule does."""
    shares = (cell.honest_selected, cell.malicious_selected)
    return cell.status == "done" and any(share < 1 for share in shares)


def _selected(cell: Cell) -> str:
    shares = (cell.honest_selected, cell.malicious_selected)
    if not any(map(math.isfinite, shares)):
        return "-"
    return " / ".join(f"{100 * share:.0f}" if math.isfinite(share) else "-" for share in shares)


def _scale(kept: Kept) -> str:
    by_set = "honesty" in kept.table
    runs = max(len(cell.last if by_set else cell.seeds) for cell in kept.cells)
    what = "honest set" if by_set else "seed"
    return f"{kept.table.get('rounds')} rounds, {runs} {what}{'s' if runs > 1 else ''}"


def _where(kept: Kept) -> str:
    """What is there yet; when, on what and how long it ran."""
    cells = (
        "" if kept.whole else f"{len(kept.cells)} of {len(kept.experiment.cells)} cells so far. "
    )
    return cells + " ".join(_run(kept, run) for run in range(len(kept.environments)))


def _run(kept: Kept, run: int) -> str:
    env = kept.environments[run]
    took = duration(sum(cell.seconds for cell in kept.cells if cell.run == run))
    day = env.get("started", "an unknown day")[:10]
    machine = f"{env.get('processor', 'a processor not recorded')}, {env.get('cores', '?')} cores"
    on = [_jax(part) for part in (env, *env.get("resumed", []))]
    versions = f"{on[0]}, Python {env.get('python', '?')}"
    versions += "".join(f", then on {b}" for a, b in itertools.pairwise(on) if a != b)
    return f"Run on {day} in {took} ({machine}; {versions})."


def _jax(environment: dict[str, Any]) -> str:
    return f"jax {environment.get('packages', {}).get('jax', '?')}"

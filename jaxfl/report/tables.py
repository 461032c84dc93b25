"""Result tables: for the terminal, as Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from jaxfl.accounting import statement
from jaxfl.attacks import NoAttack
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.labels import describe
from jaxfl.experiments.results import FAIRNESS, Result
from jaxfl.experiments.schema import Experiment
from jaxfl.files import write_aside
from jaxfl.report import backdoors
from jaxfl.report.grid import in_percent, pivot, worst
from jaxfl.report.markdown import as_markdown


def entries(experiment: Experiment, results: Sequence[Result]) -> list[list[str]]:
    """The table as text: header, then one line per defence, with the worst over the attacks."""
    rows, columns, cells = pivot(experiment, results)
    many = len(columns) > 1
    tuned = is_tuned(experiment)
    private = any(result.epsilons is not None for result in results)
    header = ["", *columns, *(["worst"] if many else []), *(["tuned"] if tuned else [])]
    header += ["epsilon"] if private else []
    table = [header]
    for row in rows:
        line = [cells.get((row, column)) for column in columns]
        means = ((r.cell.labels["attack"], r.status, r.final) for r in line if r)
        least = [worst(means)] if many else []
        chosen = [experiment.candidates[r.chosen] for r in line if r and r.reason is None]
        choice = [chosen[0] if chosen else "-"] if tuned else []
        spent = [_epsilon([r for r in line if r is not None])] if private else []
        table.append([row, *(_entry(r) for r in line), *least, *choice, *spent])
    return table


def is_tuned(experiment: Experiment) -> bool:
    """Whether there is a choice of what defences are tuned to."""
    return len(experiment.candidates) > 1


def measured(experiment: Experiment) -> str:
    """What the numbers are."""
    cell = experiment.cells[0]
    runs, what = len(cell.draws), "seeds" if cell.honesty is None else "honest sets"
    several = f"mean ± deviation over {runs} {what}, 0 of those that diverged"
    return f"Test accuracy in % after the last round; {several if runs > 1 else f'one {what[:-1]}'}"


def caption(experiment: Experiment) -> str:
    """What the numbers are, and those of privacy and tuning beside them."""
    text = measured(experiment)
    deltas = {c.federation.privacy.delta for c in experiment.cells if c.federation.private}
    if deltas:
        text += f"; epsilon at delta {', '.join(f'{d:g}' for d in sorted(deltas))}"
        text += ", starred where the mechanism does not cover all"
    if is_tuned(experiment):
        text += "; tuned on held-out samples"
    return text + "."


def result_table(experiment: Experiment, results: Sequence[Result]) -> Table:
    """``entries`` for the terminal, coloured by accuracy."""
    header, *lines = entries(experiment, results)
    table = Table(title=escape(experiment.title), caption=caption(experiment))
    for number, name in enumerate(header):
        bold = "bold" if name == "worst" else None
        table.add_column(escape(name), justify="right" if number else "left", style=bold)
    for line in lines:
        table.add_row(escape(line[0]), *(_coloured(text) for text in line[1:]))
    return table


def markdown(experiment: Experiment, results: Sequence[Result]) -> str:
    """``entries`` as a Markdown table under its title."""
    body = as_markdown(entries(experiment, results))
    known = "".join(f"\n- {threat}" for threat in threats(experiment))
    model = f"\nWhat a Byzantine client controls and knows:\n{known}\n" if known else ""
    private = "".join(f"\n- {text}" for text in privacy_statements(experiment))
    covered = f"\nPrivacy:\n{private}\n" if private else ""
    text = f"### {experiment.title}\n\n{body}\n\n{caption(experiment)}\n"
    told = backdoors.markdown(experiment, results) + model + covered
    return text + told + stated(experiment, results)


def stated(experiment: Experiment, results: Sequence[Result]) -> str:
    """The claims and what came out, as a Markdown list; empty where there are none."""
    found = "".join(f"\n- {verdict.markdown}" for verdict in verdicts(experiment, results))
    return f"\nWhat was stated, and what came out:\n{found}\n" if found else ""


def threats(experiment: Experiment) -> list[str]:
    """What the Byzantine clients of each attack control and know."""
    attacks = (cell.federation.attack for cell in experiment.cells)
    found = {
        describe(attack): "controls {}, knows {}".format(*attack.threat_model)
        for attack in attacks
        if not isinstance(attack, NoAttack)
    }
    return [f"{name}: {threat}" for name, threat in found.items()]


def privacy_statements(experiment: Experiment) -> list[str]:
    """Whose data the mechanisms of the experiment protect, against whom, and what does not hold."""
    said: dict[str, None] = {}
    for cell in experiment.cells:
        if cell.federation.private:
            said |= dict.fromkeys([statement(cell.federation, cell.rounds)])
    return list(said)


def latex(experiment: Experiment, results: Sequence[Result]) -> str:
    """``entries`` as a LaTeX table (package booktabs)."""
    header, *lines = [[_tex(text) for text in line] for line in entries(experiment, results)]
    rows = [r"\toprule", _tex_line(header), r"\midrule", *map(_tex_line, lines), r"\bottomrule"]
    shape = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(experiment.title)}. {_tex(caption(experiment))}}}",
            rf"\begin{{tabular}}{{{shape}}}",
            *rows,
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


SUMMARY = (
    "status",
    "chosen",
    "final_accuracy",
    "deviation",
    "ci95",
    "best_accuracy",
    "validation_chosen_accuracy",
    "impact",
    "attack_success",
    "planted",
    "lifespan",
    "outlived",
    "honest_selected",
    "malicious_selected",
    "minority_selected",
    "epsilon",
    *(f"client_{name}" for name in FAIRNESS),
    "delta",
    "guaranteed",
    "attacker_controls",
    "attacker_knows",
    "seeds",
    "rounds",
    "seconds",
    "running_seconds",
)


def summary(experiment: Experiment, results: Sequence[Result]) -> str:
    """One line per cell as CSV: last, best and validation-chosen accuracy side by side."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*experiment.axes, *SUMMARY])
    for result in results:
        privacy = result.cell.federation.privacy
        accuracies = (result.final, result.spread, result.interval, result.best, result.selected)
        rates = (result.impact, result.attack_success)
        rates += (result.planted, result.lifespan, result.outlived)
        rates += (result.honest_selected, result.malicious_selected, result.minority_selected)
        rates += (result.epsilon, *(result.of_clients(name) for name in FAIRNESS))
        writer.writerow(
            [
                *(result.cell.labels[axis] for axis in experiment.axes),
                result.status,
                experiment.candidates[result.chosen] if result.reason is None else "",
                *("" if math.isnan(x) else f"{x:.9g}" for x in (*accuracies, *rates)),
                privacy.delta if result.cell.federation.private else "",
                result.guaranteed,
                *result.cell.federation.attack.threat_model,
                len(result.cell.seeds),
                result.cell.rounds,
                f"{result.seconds:.2f}",
                "" if math.isnan(result.running) else f"{result.running:.3f}",
            ]
        )
    return text.getvalue()


def write_tables(folder: Path, experiment: Experiment, results: Sequence[Result]) -> None:
    """``summary.csv``, ``summary.md`` and ``summary.tex``."""
    for name, content in (("csv", summary), ("md", markdown), ("tex", latex)):
        write_aside(folder / f"summary.{name}", content(experiment, results).encode())


def _entry(result: Result | None) -> str:
    return "" if result is None else in_percent(result.status, result.final, result.spread)


def _epsilon(line: Sequence[Result]) -> str:
    """The largest epsilon of the cells; starred where it does not cover all."""
    known = [r.epsilon for r in line if r.epsilons is not None]
    if not known:
        return "-"
    star = "*" if any(r.guaranteed == "no" for r in line) else ""
    return f"{max(known):.3g}{star}" if math.isfinite(max(known)) else "none"


def _coloured(text: str) -> str:
    try:
        accuracy = float(re.split("[ ,]", text)[0])
    except ValueError:
        return f"[red]{escape(text)}[/red]" if text.startswith("diverged") else escape(text)
    colour = "green" if accuracy >= 80 else "yellow" if accuracy >= 50 else "red"
    return f"[{colour}]{escape(text)}[/{colour}]"


def _tex(text: str) -> str:
    for special in "&%$#_{}":
        text = text.replace(special, f"\\{special}")
    return text.replace("±", r"$\pm$")


def _tex_line(line: Sequence[str]) -> str:
    return " & ".join(line) + r" \\"

"""What an earlier run left in a folder, and whether it is of the same experiment."""

from pathlib import Path

from jaxfl.experiments.commit import Progress, read_progress
from jaxfl.experiments.difference import NOT_SET, SAID, differences
from jaxfl.experiments.schema import GRIDS, Experiment, read
from jaxfl.experiments.written import as_toml

OWN = ("progress.json", "rounds.jsonl", "checkpoint", "experiment.toml", "environment.json")
"""What a run writes on its way, and the next one in the same folder replaces."""
PLACES = ("devices", "way")
"""What of an experiment says where it runs, and changes its numbers by rounding only."""
WAYS_OUT = "--out chooses another folder, --force overwrites this one"
REPORT = "report.html"
RESULTS = (
    *(REPORT, "ranking.csv", "ranking.md"),
    *(f"{name}.{kind}" for name in ("accuracy", "sweep", "signs") for kind in ("png", "svg")),
    *("summary.csv", "summary.md", "summary.tex"),
    *("honest_sets.csv", "honest_pairs.csv", "honest_sets.md"),
)
"""What is made of it at the end."""


def table_of(experiment: Experiment) -> bytes:
    """The experiment as its file in the folder."""
    return as_toml(experiment.table).encode()


def told_anew(path: Path, experiment: Experiment) -> bytes:
    """The folder's file with the title and the claims that the experiment has now."""
    there = read(path / "experiment.toml")
    kept = {key: value for key, value in there.items() if key not in SAID}
    said = {key: experiment.table[key] for key in SAID if key in experiment.table}
    return as_toml(kept | said).encode()


def progress_of(path: Path, experiment: Experiment, *, resume: bool) -> Progress | None:
    """How far the run in the folder is; None where nothing is there to be lost.

    A run that is resumed may go on on other devices than it was begun on, and with another title
    and other claims.

    Raises:
      ValueError: the run is of another experiment, or parts of it are missing or damaged.
    """
    left = [name for name in OWN if (path / name).exists()]
    if not left:
        return None
    file = path / "experiment.toml"
    if "progress.json" not in left:
        if left[0] == "experiment.toml" and file.read_bytes() == table_of(experiment):
            return None  # killed before there was more
        raise ValueError(f"{path} holds {left[0]}, but no progress.json; {WAYS_OUT}")
    known = read_progress(path / "progress.json")
    if not (known.cell or known.round):
        return None
    cells = [number for group in known.groups for number in group]
    if cells and len(cells) != len(experiment.cells):
        raise ValueError(f"{path / 'progress.json'} is damaged; {WAYS_OUT}")
    try:
        there = read(file)
    except (ValueError, OSError):
        raise ValueError(f"{file} is missing or damaged; {WAYS_OUT}") from None
    for where, theirs, mine in differences(there, experiment.table):
        if resume and where in (*PLACES, *SAID):
            continue
        here = "" if NOT_SET in (theirs, mine) else f", {mine} here"
        set_there = "set" if mine == NOT_SET else theirs
        raise ValueError(
            f"{path} holds another experiment: {where} is {set_there} there{here}; {WAYS_OUT}"
        )
    for grid in GRIDS:  # cells and candidates are numbered in the order of their axes
        theirs, mine = (list(table.get(grid, {})) for table in (there, experiment.table))
        if theirs != mine:
            raise ValueError(
                f"{path} holds another order of the axes of [{grid}]: {', '.join(theirs)} there, "
                f"{', '.join(mine)} here; {WAYS_OUT}"
            )
    return known

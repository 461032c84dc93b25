"""A finished run, read back from its folder."""

from pathlib import Path

from jaxfl.experiments.cells import Cell
from jaxfl.experiments.commit import ELSEWHERE, read_progress
from jaxfl.experiments.conclusions import conclude
from jaxfl.experiments.environment import recorded
from jaxfl.experiments.from_log import not_run, result_of
from jaxfl.experiments.log import read_log
from jaxfl.experiments.results import Result
from jaxfl.experiments.runner import not_applicable
from jaxfl.experiments.schema import Experiment, importable, parse, read


def read_results(path: Path) -> tuple[Experiment, list[Result]]:
    """The experiment and the results in the folder of a finished run.

    Raises:
      ValueError: it holds no finished run, or is damaged.
    """
    experiment, results = read_done(path)
    if len(results) < len(experiment.cells):
        raise ValueError(f"{path} holds an unfinished run; finish it with --resume")
    return experiment, conclude(list(results.values()))


def read_done(path: Path) -> tuple[Experiment, dict[int, Result]]:
    """The experiment, and of its cells those that are done, by their numbers.

    Raises:
      ValueError: it holds no run, or is damaged.
    """
    if not (path / "progress.json").is_file():
        raise ValueError(f"{path} holds no run")
    modules = recorded(path).get("modules")
    importable([m for m in modules if isinstance(m, str)] if isinstance(modules, list) else [])
    experiment = parse(path.name, read(path / "experiment.toml"))
    progress = read_progress(path / "progress.json")
    log = read_log(path / "rounds.jsonl", progress.log_bytes, progress.log_digest)
    results = {}
    for i, cell in enumerate(experiment.cells):
        if i not in progress.done:
            continue
        if i in log:
            results[i] = result_of(cell, log.pop(i), *progress.time_of(i))
        elif i in progress.elsewhere:
            results[i] = not_run(cell, ELSEWHERE)
        elif reason := _why_not(cell):
            results[i] = not_run(cell, reason)
        else:
            raise ValueError(f"{path} is damaged: cell {i + 1} is done, but not logged")
    return experiment, results


def _why_not(cell: Cell) -> str | None:
    """Why a cell did not run, or None where it must have; of noise only the data could say."""
    if (reason := not_applicable(cell)) is not None:
        return reason
    calibrated = all(federation.privacy.calibrated for federation in cell.federations)
    return None if calibrated else "not applicable: no noise reaches its epsilon"

"""``jaxfl run``: an experiment, its results and where they are."""

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from jaxfl.commands.common import Name, Reduced, Settings, say
from jaxfl.experiments import hosts, schema
from jaxfl.experiments.conclusions import conclude
from jaxfl.experiments.earlier import REPORT
from jaxfl.experiments.findings import verdicts
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.ranking import Ranking, rankings
from jaxfl.experiments.results import Result
from jaxfl.experiments.runner import LAUNCHERS, LOCAL, RAY, check, run_experiment
from jaxfl.experiments.running import Interrupted
from jaxfl.experiments.scales import REDUCED, folder_name
from jaxfl.files import user_cache
from jaxfl.programs import keep_in
from jaxfl.registry import unknown
from jaxfl.report.backdoors import backdoor_table
from jaxfl.report.over_sets import has_sets, write_over_sets
from jaxfl.report.page import write_page
from jaxfl.report.plots import accuracy_plot, signs_plot, sweep_plot
from jaxfl.report.progress import Watcher
from jaxfl.report.ranking import attacks, is_ranked, ranking_table, write_ranking
from jaxfl.report.tables import privacy_statements, result_table, write_tables
from jaxfl.signals import StopSignals

MOST_COLUMNS = 12
"""Of a table that a terminal can show."""


def run(
    name: Name,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Results; default runs/NAME.")] = None,
    devices: Annotated[
        str | None, typer.Option(help="How many devices share the clients; all; auto.")
    ] = None,
    way: Annotated[str | None, typer.Option(help="How: shard_map or pmap.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of raw data files.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the run in the folder, whatever it is.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
    launcher: Annotated[
        str, typer.Option(help="Where cells run: local, or ray, on a cluster's workers.")
    ] = LOCAL,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of the first of several processes of this run.")
    ] = None,
    processes: Annotated[int, typer.Option(help="How many there are.")] = 1,
    process_id: Annotated[int, typer.Option(help="Which one this is, from 0.")] = 0,
    reduced: Reduced = False,
) -> None:
    """Run an experiment and show what survived.

    Ctrl-C stops after the block of rounds under way; --resume goes on from there.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"--launcher: {unknown(launcher, LAUNCHERS)}")
    if launcher == RAY:  # a worker on this machine needs the accelerator's memory
        jax.config.update("jax_platforms", "cpu")
    if coordinator is not None:
        hosts.connect(coordinator, processes, process_id)
    elif (processes, process_id) != (1, 0):
        raise ValueError("--processes and --process-id need --coordinator HOST:PORT")
    if data_dir is not None:
        os.environ["JAXFL_DATA_DIR"] = str(data_dir)
    chosen = {"devices": devices, "way": way}
    changes = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    experiment = schema.load(name, [*(settings or []), *changes], reduced=reduced)
    console = Console(width=None if sys.stdout.isatty() else 120)
    path = out or Path("runs") / folder_name(experiment.name, REDUCED if reduced else None)
    execute(experiment, path, console, resume=resume, force=force, quiet=quiet, launcher=launcher)


def execute(
    experiment: schema.Experiment,
    path: Path,
    console: Console,
    *,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    launcher: str = LOCAL,
    elsewhere: Collection[int] = (),
) -> None:
    """Runs an experiment into a folder, writes its tables and pictures, and shows the result.

    A new run leaves out the cells that were done elsewhere.
    """
    check(experiment)
    if not hosts.several():
        use_compilation_cache()
    elif launcher != LOCAL:
        raise ValueError(f"--launcher {launcher} does not go with --coordinator")
    quiet = quiet or not hosts.is_first()
    if not quiet:
        for said in privacy_statements(experiment):
            say(console, f"Privacy: {said}")
    with (
        hosts.together(),
        hosts.folder_of(
            path, experiment, resume=resume, force=force, elsewhere=elsewhere
        ) as folder,
        StopSignals() as signals,
        Watcher(experiment, console, quiet=quiet) as watcher,
    ):
        stop = hosts.agreed(lambda: signals.asked)
        try:
            results = conclude(run_cells(folder, stop, watcher, launcher))
        except Interrupted:
            hosts.leave()
            raise
        if not hosts.is_first():
            hosts.leave()
            return
        write_tables(path, experiment, results)
        ranked = rankings(experiment, results) if is_ranked(experiment) else []
        if ranked:
            write_ranking(path, experiment, ranked)
        if has_sets(experiment):
            write_over_sets(path, experiment, results)
        accuracy_plot(path / "accuracy.png", experiment, results)
        swept = sweep_plot(path / "sweep.png", experiment, results)
        signs_plot(path / "signs.png", experiment, results)
        write_page(path / REPORT, [(path, experiment, results)])
    print_results(console, path, experiment, results, ranked, swept=swept)
    hosts.leave()


def run_cells(
    folder: RunFolder, stop: Callable[[], bool], watcher: Watcher, launcher: str
) -> list[Result]:
    """The results of all cells; raises ``Interrupted``, with the place, where it was stopped."""
    try:
        return list(run_experiment(folder, watcher.watch, stop, launcher))
    except Interrupted:
        done, cells = folder.progress, folder.experiment.cells
        place = f"round {done.round} of cell {done.cell + 1} of {len(cells)}"
        raise Interrupted(f"stopped after {place}; go on with --resume") from None


def print_results(
    console: Console,
    path: Path,
    experiment: schema.Experiment,
    results: Sequence[Result],
    ranked: Sequence[Ranking],
    *,
    swept: bool,
) -> None:
    """Prints the tables, whether the stated findings hold, and where the files are."""
    if attacks(experiment) <= MOST_COLUMNS:
        console.print(result_table(experiment, results))
    backdoors = backdoor_table(experiment, results)
    if backdoors is not None and len(backdoors.columns) <= MOST_COLUMNS:
        console.print(backdoors)
    for ranking in ranked:
        console.print(ranking_table(experiment, ranking))
    for verdict in verdicts(experiment, results):
        say(console, f"Stated: {verdict}")
    shown = [("Plot", "accuracy.png"), *([("Sweep", "sweep.png")] if swept else [])]
    shown += [("Table", "summary.csv"), ("Log", "rounds.jsonl")]
    shown += [("Sets", "honest_sets.md")] if has_sets(experiment) else []
    for what, name in (("Report", REPORT), *shown):
        say(console, f"{what + ':':7} {path / name}")


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run compiles nothing.

    Unless JAX has a cache by the user's own choice.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "xla"))
        keep_in(user_cache() / "programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

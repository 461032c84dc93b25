"""The command line."""

import os
import sys
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from jaxfl.experiments import schema
from jaxfl.experiments.runner import Result, check, run_experiment
from jaxfl.report.plots import accuracy_plot
from jaxfl.report.progress import Watcher
from jaxfl.report.tables import result_table, write_summary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Byzantine-robust, private and fair federated learning, one compiled program a round.",
)


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="A packaged experiment or a TOML file.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. --set aggregator.f=12.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of raw data files.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Runs an experiment and shows what survived."""
    if data_dir is not None:
        os.environ["JAXFL_DATA_DIR"] = str(data_dir)
    plan = schema.load(experiment, settings or [])
    check(plan)
    folder = out or Path("runs") / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: list[Result] = []
    interrupted = False
    with Watcher(plan, console, quiet=quiet) as watcher:
        try:
            for result in run_experiment(plan, watcher.watch):
                results.append(result)
        except KeyboardInterrupt:
            interrupted = True
    if results:
        console.print(result_table(plan, results))
        write_summary(folder / "summary.csv", plan, results)
        accuracy_plot(folder / "accuracy.png", plan, results)
        console.print(f"Plot:  {folder / 'accuracy.png'}", highlight=False, soft_wrap=True)
        console.print(f"Table: {folder / 'summary.csv'}", highlight=False, soft_wrap=True)
    if interrupted:
        raise ValueError(f"interrupted after {len(results)} of {len(plan.cells)} cells")


@app.command("list")
def list_experiments() -> None:
    """Lists the packaged experiments."""
    console = Console()
    for name in schema.packaged():
        console.print(f"{name}: {schema.load(name).title}", highlight=False)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run compiles nothing."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "jaxfl" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def main() -> None:
    """The entry point: a user's mistake ends with one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"jaxfl: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

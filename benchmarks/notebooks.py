"""How long each notebook takes, alone, with nothing compiled before: under two minutes is the goal.

``python -m benchmarks.notebooks [NAME ...] [--out DIR]`` runs the notebooks one after the other,
each in a kernel with an empty cache of programs, by the wall clock and by processor time. What one
needs that is not here (a package, data) makes it fail, and is said. Writes ``notebooks.json``.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console

from benchmarks.timing import Report, describe_machine, save

FOLDER = Path(__file__).parent.parent / "notebooks"
GOAL = 120
"""Seconds by the wall clock."""
LIMIT = 900
"""Seconds after which a cell is given up."""


def processor_seconds() -> float:
    """Of all processes that this one has begun and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(path: Path) -> tuple[float, float, str]:
    """Seconds of a notebook by the clock and of processors, and what it failed of."""
    notebook, failed = nbformat.read(path, as_version=4), ""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        used, begun = processor_seconds(), time.perf_counter()
        try:
            NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute()
        except CellExecutionError as error:
            failed = f"{error.ename}: {error.evalue}"[:200]
        except TimeoutError:
            failed = f"a cell takes more than {LIMIT} s"
        return time.perf_counter() - begun, processor_seconds() - used, failed


def main() -> None:
    """Prints and writes the table; exit code 1 where one fails or takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(every)}")
    parser.add_argument("--out", type=Path, help="folder for notebooks.json")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(every)):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(every)}")
    console, machine = Console(), describe_machine()
    report = Report(
        f"Notebooks, each alone; the goal is {GOAL} s", ("notebook", "s", "processor s", "failed")
    )
    found = []
    for name in options.names or every:
        seconds, processor, failed = measure(FOLDER / f"{name}.ipynb")
        report.rows.append((name, f"{seconds:.1f}", f"{processor:.1f}", failed))
        line = {"notebook": name, "seconds": seconds, "processor": processor, "failed": failed}
        found.append(line)
        console.print(line)
    report.show(console)
    if options.out:
        save(options.out / "notebooks.json", {"machine": machine, "notebooks": found})
    sys.exit(any(line["failed"] or line["seconds"] > GOAL for line in found))


if __name__ == "__main__":
    main()

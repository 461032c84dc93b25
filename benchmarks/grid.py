"""What a grid costs besides its rounds: start, tracing, compiling, loading; of whole commands.

``python -m benchmarks.grid [--before PATH] [--experiment NAME] [--set KEY=VALUE] [--out DIR]``
times `import jaxfl`, `jaxfl list`, a run into an empty cache (cold), the same run again (warm),
and what a cell costs in a warm grid of 100 cells of one round. With ``--before``, another checkout
of jaxfl (such as a git worktree of an older commit) takes every step in turn with this one, and
a row says whether both wrote the same bytes to ``rounds.jsonl`` (versions that log other things, or
compute in another order, do not); ``--set-now`` sets keys that the other does not know. Writes
``grid.json`` and ``grid.md``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.timing import Report, describe_machine, write

HERE = Path(__file__).parent.parent
MANY = """
rounds = 1
evaluate_every = 1
byzantine = 2
model = "softmax"
optimizer = "sgd"
[data]
name = "synthetic"
clients = 10
samples = 200
features = 4
classes = 3
[sweep]
attack = ["none", "sign_flip", { name = "ipm", scale = 10.0 }, { name = "alie", z = 1.5 }]
aggregator = ["mean", "median", "trimmed_mean", "krum", "multi_krum"]
"optimizer.learning_rate" = [0.01, 0.03, 0.1, 0.3, 1.0]
"""
"""100 cells in 20 programs: those that differ in the learning rate run together."""
ONE = ('sweep.attack=["none"]', 'sweep.aggregator=["mean"]', "sweep.optimizer.learning_rate=[0.1]")


class Checkout:
    """One version of jaxfl, with a cache of its own in a temporary folder."""

    def __init__(self, source: Path, folder: Path, settings: Sequence[str]) -> None:
        self.folder = folder
        self._settings = settings
        folder.mkdir()
        self._variables = os.environ | {
            "PYTHONPATH": str(source.resolve()),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self._variables.pop("JAX_COMPILATION_CACHE_DIR", None)

    def seconds(self, *words: str) -> float:
        """Wall clock of a whole process: ``python`` and these words."""
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self._variables,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - started

    def run(self, name: str, out: str, settings: Sequence[str] = ()) -> float:
        """Wall clock of ``jaxfl run`` with these settings and this version's own."""
        changes = [word for s in (*settings, *self._settings) for word in ("--set", s)]
        words = ("-m", "jaxfl.cli", "run", name, "--quiet", "--force", "--out", out, *changes)
        return self.seconds(*words)

    def log(self, out: str) -> bytes:
        """What a run wrote."""
        return (self.folder / out / "rounds.jsonl").read_bytes()


def measure(
    checkouts: dict[str, Checkout], name: str, settings: Sequence[str], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of every step, by checkout; the best of ``repeats`` where nothing is compiled."""
    many = next(iter(checkouts.values())).folder.parent / "many.toml"
    many.write_text(MANY)
    steps = {
        "import jaxfl": lambda c: c.seconds("-c", "import jaxfl"),
        "jaxfl list": lambda c: c.seconds("-m", "jaxfl.cli", "list"),
        "cold": lambda c: c.run(name, "cold", settings),
        "warm": lambda c: c.run(name, "warm", settings),
        "100 cells, cold": lambda c: c.run(str(many), "many"),
        "100 cells, warm": lambda c: c.run(str(many), "many"),
        "one of them, warm": lambda c: c.run(str(many), "one", ONE),
    }
    found: dict[str, dict[str, float]] = {of: {} for of in checkouts}
    for step, take in steps.items():
        for _ in range(1 if "cold" in step else repeats):
            for of, checkout in checkouts.items():
                found[of][step] = min(take(checkout), found[of].get(step, float("inf")))
    for times in found.values():
        times["a cell of 100"] = (times["100 cells, warm"] - times["one of them, warm"]) / 99
    return found


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, timed in turn with this one")
    parser.add_argument("--experiment", default="quickstart", help="a packaged one or a file")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE; may be repeated")
    parser.add_argument("--set-now", action="append", default=[], help="only of this version")
    parser.add_argument("--repeats", type=int, default=2, help="of what compiles nothing")
    parser.add_argument("--out", type=Path, help="folder for grid.json and grid.md")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        checkouts = {"now": Checkout(HERE, Path(temporary) / "now", options.set_now)}
        if options.before:
            before = Checkout(options.before, Path(temporary) / "before", ())
            checkouts = {"before": before} | checkouts
        found = measure(checkouts, options.experiment, options.set, options.repeats)
        same = {
            out: len({checkout.log(out) for checkout in checkouts.values()}) == 1
            for out in ("cold", "warm")
        }
    ratio = ("before / now",) if options.before else ()
    name = Path(options.experiment).stem
    report = Report(f"Seconds of {name}", ("step", *found, *ratio))
    for step in found["now"]:
        times = [found[of][step] for of in found]
        report.rows.append(
            (step, *(f"{t:.2f}" for t in times), *(f"{times[0] / times[1]:.1f}" for _ in ratio))
        )
    if options.before:
        for out, alike in same.items():
            said = "the same bytes" if alike else "other bytes"
            report.rows.append((f"rounds.jsonl, {out}", *[""] * len(found), said))
    report.show(Console())
    if options.out:
        facts = {"experiment": name, "now_set": options.set_now, "seconds": found}
        write(options.out, "grid", machine, [report], **facts)


if __name__ == "__main__":
    main()

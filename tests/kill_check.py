"""Kills runs at random moments and checks that resuming them gives the same bits.

``python tests/kill_check.py --kills 30``: an experiment with every kind of state (client momentum,
local epochs, server momentum, the memory of centred clipping, dropout) runs once undisturbed;
then runs are killed with SIGKILL, resumed, killed again, until they finish, and ``rounds.jsonl``
(which ends each cell with the SHA-256 of its parameters) must equal the undisturbed one's.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

EXPERIMENT = """
rounds = 20
evaluate_every = 2
checkpoint_every = 2
byzantine = 2
attack = { name = "ipm", scale = 0.5 }
optimizer = { name = "sgd", learning_rate = 0.1, momentum = 0.9, weight_decay = 1e-3 }
model = { name = "mlp", hidden = [16], dropout = 0.2 }

[data]
name = "synthetic"
clients = 10
samples = 1800
features = 64
classes = 10
partition = { name = "dirichlet", alpha = 0.5 }

[sweep]
seed = [0, 1]
algorithm = [
  { name = "fedavg", epochs = 1, batch_size = 64 },
  { name = "fedsgd", batch_size = 16, momentum = 0.9 },
]
aggregator = [{ name = "centered_clipping", tau = 1.0 }]
"""


IMPORTED = [
    *("jaxfl.commands.run", "jaxfl.experiments.running", "matplotlib.pyplot", "flax.nnx"),
    *("orbax.checkpoint", "jinja2", "plotly.offline", "PIL.Image"),
]
"""Once, in the process that all runs are forked from, before JAX has threads."""


def resume(experiment: Path, out: Path) -> None:
    """The command, in a process of its own."""
    from jaxfl import cli

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    words = ["run", str(experiment), "--out", str(out), "--resume", "--quiet"]
    with mock.patch.object(sys, "argv", ["jaxfl", *words]):
        cli.main()


def check(kills: int, seed: int) -> None:
    rng = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)

    def run(out: Path, most: float | None = None) -> int | None:
        """Its exit code; None where it was killed after so many seconds."""
        process = context.Process(target=resume, args=(experiment, out))
        process.start()
        process.join(most)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        if process.exitcode:
            raise SystemExit(f"a run ended with code {process.exitcode}")
        return process.exitcode

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        experiment = root / "killed.toml"
        experiment.write_text(EXPERIMENT)
        # Its own compilation cache: a kill may leave a half-written program behind.
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        run(root / "warm")  # fills the compilation cache
        started = time.monotonic()
        run(root / "whole")
        whole = time.monotonic() - started
        print(f"a whole run takes {whole:.1f} s", flush=True)
        expected = (root / "whole" / "rounds.jsonl").read_bytes()
        killed = finished = 0
        while killed < kills:
            finished += 1
            out = root / str(finished)
            before, started = killed, time.monotonic()
            while run(out, rng.uniform(0.2, 1.0) * whole) is None:
                killed += 1
                print(f"kill {killed}: {where(out)}", flush=True)
            if killed == before:  # the machine is less busy than it was
                whole = min(whole, time.monotonic() - started)
            if (out / "rounds.jsonl").read_bytes() != expected:
                raise SystemExit(f"run {finished} differs after {killed} kills")
        print(f"{killed} kills, {finished} runs, all equal bit for bit")


def where(out: Path) -> str:
    """What was on disk when the run died."""
    log = out / "rounds.jsonl"
    size = log.stat().st_size if log.is_file() else 0
    checkpoints = out / "checkpoint"
    names = sorted(p.name for p in checkpoints.iterdir()) if checkpoints.is_dir() else []
    return f"{size} bytes of log, {', '.join(names) or 'no checkpoint'}"


def main() -> None:
    parser = argparse.ArgumentParser(description="SIGKILL at random moments, then resume.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check(arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()

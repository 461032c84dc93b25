"""Kills runs at random moments and checks that resuming them gives the same bits.

``python tests/kill_check.py --kills 30``: an experiment with every kind of state (client momentum,
local epochs, server momentum, the memory of centred clipping, dropout) runs once undisturbed;
then runs are killed with SIGKILL, resumed, killed again, until they finish, and ``rounds.jsonl``
(which ends each cell with the SHA-256 of its parameters) must equal the undisturbed one's.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENT = """
rounds = 60
evaluate_every = 2
checkpoint_every = 4
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


def command(experiment: Path, out: Path) -> list[str]:
    words = ["-m", "jaxfl.cli", "run", str(experiment), "--out", str(out), "--resume", "--quiet"]
    return [sys.executable, *words]


def check(kills: int, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        experiment = root / "killed.toml"
        experiment.write_text(EXPERIMENT)
        # Its own compilation cache: a kill may leave a half-written program behind.
        own = os.environ | {"XDG_CACHE_HOME": str(root / "cache")}
        own.pop("JAX_COMPILATION_CACHE_DIR", None)
        run = {"check": True, "stdout": subprocess.DEVNULL, "env": own}
        subprocess.run(command(experiment, root / "warm"), **run)  # fills the compilation cache
        started = time.monotonic()
        subprocess.run(command(experiment, root / "whole"), **run)
        whole = time.monotonic() - started
        expected = (root / "whole" / "rounds.jsonl").read_bytes()
        killed = finished = 0
        while killed < kills:
            finished += 1
            out = root / str(finished)
            while True:
                process = subprocess.Popen(
                    command(experiment, out), stdout=subprocess.DEVNULL, env=own
                )
                try:
                    code = process.wait(timeout=rng.uniform(0.2, 1.0) * whole)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed += 1
                    print(f"kill {killed}: {where(out)}", flush=True)
                    continue
                if code:
                    raise SystemExit(f"a resumed run ended with code {code}")
                break
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

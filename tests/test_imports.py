"""What an import costs: nothing heavy is loaded before it is used."""

import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from jaxfl.clients.base import slots
from jaxfl.experiments import schema
from jaxfl.experiments.results import half_interval

HEAVY = (
    "scipy",
    "sklearn",
    "matplotlib",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "dp_accounting",
    "jax_privacy",
    "torch",
    "flwr",
    "datasets",
    "tensorboard",
    "wandb",
    "mlflow",
    "typer",
)


@pytest.mark.parametrize(
    ("imported", "needed"), [("jaxfl", ()), ("jaxfl.cli", ("typer",))], ids=["jaxfl", "cli"]
)
def test_nothing_heavy_is_imported_nor_a_backend_started(imported, needed):
    code = (
        f"import sys, {imported}; from jax._src import xla_bridge; "
        f"print([m for m in {HEAVY} if m in sys.modules], list(xla_bridge._backends))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{list(needed)} []"
    assert time.perf_counter() - started < 30  # 1 s alone on a core; the suite shares it


def test_special_functions_give_the_bits_of_the_distributions():
    for n in (2, 3, 5, 10, 1000):
        values = np.arange(n) ** 1.5
        half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
        assert half_interval(values) == half
    for size, overflow in ((1, 1e-3), (16, 1e-6), (500, 1e-9)):
        enough = slots(size, overflow)
        assert stats.poisson.sf(enough, size) <= overflow < stats.poisson.sf(enough - 1, size)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_an_overview_tells_what_the_whole_experiment_would(large):
    """Of the large ones, whose thousands of cells take long to read, in the slow suite."""
    for name in [n for n in schema.packaged() if n.startswith(("arena", "expected")) == large]:
        whole = schema.load(name)
        assert schema.overview(name) == (
            whole.title,
            len(whole.cells),
            len(whole.cells[0].seeds),
        )

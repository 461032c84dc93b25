"""What waits for a GPU: the benchmark runs on a CPU, and all its programs lower for others."""

import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, kernels
from benchmarks.cases import MODELS, RULES, Case, federated, federation
from benchmarks.catalogue import Size, distance, programs
from benchmarks.rules import ENTRIES, one_layer
from jaxfl.blocks import run_block
from jaxfl.clients import ClientAlgorithm
from jaxfl.data import synthetic
from jaxfl.federation import Federation
from jaxfl.models import MLP
from jaxfl.privacy.base import Privacy
from jaxfl.registry import AGGREGATORS, ATTACKS, PREAGGREGATORS, REGISTRY
from jaxfl.simulation import Simulation
from jaxfl.types import Spec

KNOWN = {
    "cuda": {"cusolver_syevd_ffi", "__gpu$xla.gpu.triton"},
    "tpu": {"Eigh"},
}
"""Custom calls that each platform has: eigenvectors, and the kernels of ``numerics``."""
LARGE = {"cuda": set(), "tpu": {"Qr", "ProductOfElementaryHouseholderReflectors"}}
"""Those with which JAX finds eigenvectors of many rows; a TPU's compiler has both."""
ABSENT = ("typer", "matplotlib", "tomli_w", "dp_accounting", "jax_privacy", "torch")
"""What jaxfl needs besides what the command says, which flax and the others do not bring."""
lowering = pytest.mark.filterwarnings(
    "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"
)


def run(folder, *options):
    """The command, as where nothing is installed but what it says it needs."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); "
        "import runpy; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    environment = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code, "--quick", "--out", str(folder), *options],
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.slow
def test_some_lines_of_the_command(tmp_path):
    done = run(tmp_path, "--only", "rule: median,timed: Median,")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    lines = [(row["section"], row["name"], row["status"]) for row in rows]
    assert lines == [("rule", "median", "ok"), *[("rule, timed", "Median", "ok")] * 2]
    assert 0 < rows[0]["numbers"]["error"] < 1e-6
    assert "| rule | median | 12 x 650 | ok | error" in done.stdout


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    """With every fourth rule: each has its contract, and is lowered at full size below."""
    every = [p.name for p in programs(Size(12, 2, 8)) if p.kind == "rule"]
    chosen = every[::4]
    checked = (*(f"rule: {name}" for name in chosen), "attack: ", "mechanism: ")
    timed = [f"timed: {name}" for name in ("Mean", "Krum", "SignGuard")]
    others = ("machine", "kernel", "round", "streamed", "profile")
    time = ("--seconds", "1e9")  # however busy the machine
    done = run(tmp_path, *time, "--only", ",".join((*checked, *timed, *others)))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    skipped = {row["name"]: row["note"] for row in found["rows"] if row["status"] != "ok"}
    assert list(skipped) == ["central, banded"]  # noise of jax-privacy
    sections = Counter(row["section"] for row in found["rows"])
    assert sections.keys() >= {
        *gpu.CHECKED,
        "rule, timed",
        "kernel, timed",
        "round, timed",
        "streamed, timed",
    }
    # A name chooses also those that it begins, as signguard does signguard_sim.
    assert sections["rule"] == sum(name.startswith(tuple(chosen)) for name in every)
    assert sections["attack"] == len(ATTACKS)
    names = Counter(row["name"] for row in found["rows"] if row["section"] == "rule, timed")
    assert names.items() >= {"Mean": 2, "Krum": 2, "SignGuard": 2}.items()


def test_the_catalogue_has_all_that_is_registered():
    names = Counter((p.kind, p.name) for p in programs(Size(12, 2, 8)))
    assert set(names.values()) == {1}
    assert {n for kind, n in names if kind == "rule"} >= AGGREGATORS.keys() - {"pipeline"}
    assert {n.split(" + ")[0] for _, n in names if " + krum" in n} == PREAGGREGATORS.keys()
    assert {n for kind, n in names if kind == "attack"} == ATTACKS.keys()
    assert {n for kind, n in names if kind == "round"} == REGISTRY[ClientAlgorithm].keys()
    mechanisms = {n.split(",")[0] for kind, n in names if kind == "mechanism"}
    assert mechanisms == REGISTRY[Privacy].keys()


def test_how_far_answers_are_apart():
    want = {"a": np.array([1.0, -4.0, np.nan, np.inf]), "b": np.array([True, False])}
    assert distance(want, want) == 0
    assert distance(want | {"a": want["a"] + [0, 1, 0, 0]}, want) == 0.25
    assert distance(want | {"a": want["a"] * [1, 1, 1, -1]}, want) == np.inf
    assert distance(want | {"a": np.full(4, np.nan)}, want) == np.inf
    assert distance(want | {"b": ~want["b"]}, want) == np.inf


def test_what_fails_or_has_no_time_left_is_said():
    def raising(error):
        def work():
            raise error

        return work

    def status(work, until=1.0):
        return gpu.find_out(gpu.Task("a", "b", "c", until, work), gpu.time.monotonic(), 100.0)

    assert status(lambda: {"ms": 1.0}).status == "ok"
    assert status(raising(gpu.WrongError("far")), 1.0).status == "wrong"
    failed = status(raising(RuntimeError("no memory\nat all")))
    assert (failed.status, failed.note) == ("failed", "RuntimeError: no memory")
    assert status(raising(ModuleNotFoundError("x"))).status == "skipped"
    assert status(raising(AssertionError), until=-1.0).note == "no time left"


def test_a_wrong_answer_is_found():
    """One that is not the CPU's in either precision."""
    size = Size(12, 2, 8)
    median = next(p for p in programs(size) if p.name == "median")
    assert gpu.check(median, size)["against"] == "float64"
    count = 0

    def differs(part, updates):
        nonlocal count
        count += 1  # the device is asked first
        return {"update": jnp.ones(3) * (2.0 if count == 1 else 1.0)}

    wrong = gpu.dataclasses.replace(median, call=differs)
    with jax.disable_jit(), pytest.raises(gpu.WrongError, match=r"1.0e\+00 from .* float64, 1.0e"):
        gpu.check(wrong, size)


def test_a_kernel_that_differs_from_xla_is_found(monkeypatch):
    statistic = kernels.Statistic(5, nearest=4)
    assert kernels.against_xla(statistic, 40, 1).keys() == {"kernel ms", "XLA ms"}
    monkeypatch.setattr(kernels.order, "by_xla", lambda values, **_: values[0])
    with pytest.raises(gpu.WrongError, match="from XLA's"):
        kernels.against_xla(statistic, 40, 1)


def custom_calls(function, *arguments):
    """Those of the program as it is lowered for each platform."""
    traced, found = jax.jit(function).trace(*arguments), {}
    for platform in KNOWN:
        try:
            text = traced.lower(lowering_platforms=(platform,)).as_text()
        except RuntimeError as error:
            pytest.skip(f"this JAX lowers for a GPU only where it knows one: {error}")
        found[platform] = set(re.findall(r"custom_call @([\w$.]+)", text))
        found[platform] |= set(re.findall(r'call_target_name = "([^"]+)"', text))
        assert found[platform] <= KNOWN[platform] | LARGE[platform]
    return found


def matrix(n, d):
    return jax.ShapeDtypeStruct((n, d), jnp.float32)


@lowering
@pytest.mark.slow
@pytest.mark.parametrize("kind", gpu.CHECKED)
def test_what_is_checked_lowers_for_other_platforms(kind):
    size = Size(12, 2, 8)
    at_full_size = {type(entry.make(2)) for entry in ENTRIES}
    for program in programs(size):
        if program.kind == kind and type(program.part) not in at_full_size:
            custom_calls(program.call, program.part, matrix(size.clients, size.dim))


@lowering
@pytest.mark.slow
@pytest.mark.parametrize(("n", "dim"), gpu.FULL.matrices)
def test_rules_at_full_size_lower_for_other_platforms(n, dim):
    used = {platform: set() for platform in KNOWN}
    for entry in ENTRIES:
        rule = entry.make(n // 5)
        spec = Spec(n, n, dim, n // 5, segments=one_layer(dim))
        state = jax.eval_shape(lambda rule=rule, spec=spec: rule.init(spec))
        found = custom_calls(gpu.rule_program(rule, n), matrix(n, dim), state)
        used = {platform: used[platform] | found[platform] for platform in KNOWN}
    assert used == {p: KNOWN[p] | (LARGE[p] if n > 256 else set()) for p in KNOWN}


@lowering
@pytest.mark.slow
def test_rounds_lower_for_other_platforms():
    """And the evaluation after them."""
    small = gpu.scale.population(synthetic(samples=1000, features=784), 100)
    simulations = [
        Simulation(
            Federation(aggregator=gpu.scale.RULES[name](100)), small, MLP(), storage="stream",
            client_chunk=10,
        )
        for name in gpu.STREAMED
    ]  # fmt: skip
    for case, names in ((Case("cnn", 50, 1, 1), RULES), (gpu.FULL.deep, gpu.DEEP)):
        data, model = federated(case), MODELS[case.model]
        simulations += [Simulation(federation(RULES[r], attacked=True), data, model) for r in names]
    for simulation in simulations:
        block = functools.partial(run_block, plan=simulation.plan, rounds=1)

        def call(parts, data, state, block=block):
            return block(parts, data=data, state=state)

        custom_calls(call, simulation.federation, simulation.data, simulation.state)

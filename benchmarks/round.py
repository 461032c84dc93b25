"""Speed of the whole round: client images a second, against PyTorch and the machine's ceiling.

A round is: draw batches, every client's gradient of its batch (28x28 grey, random), attack,
aggregation, the server's step and the round's record; the test set is not evaluated. jaxfl runs
several rounds in one compiled ``scan``, on one device (XLA runs one client's small operations on
one core) and on a device per core. Rivals run in turn in one process; peak memory is that of a
fresh process that runs one of them alone. The GEMM ceiling is the rate of a large float32
matrix product in the same run, over the operations of a forward and backward pass.

``python -m benchmarks.round [--quick] [--chunks] [--out DIR]`` prints the tables and writes
``round.json`` and ``round.md``. PyTorch is optional: ``pip install jaxfl[peers]``.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from benchmarks import peers, timing
from benchmarks.cases import (
    BYZANTINE,
    EVALUATING,
    MODELS,
    RULES,
    Case,
    federated,
    federation,
    jaxfl_block,
    operations,
    rounds_of,
)
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator, Mean
from jaxfl.attacks import ALIE
from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import Defence
from jaxfl.plan import make_plan
from jaxfl.types import Context, PyTree

LOOP_SUBSET = 500
"""Clients that the PyTorch loop runs where there are more; its rate does not depend on them."""
ONE, ALL = "jaxfl, one device", "jaxfl, a device per core"
LABELS = {"loop": "PyTorch loop", "vmap": "torch.func.vmap"}
MISSING = "not installed: pip install jaxfl[peers]"


def torch_round(case: Case, way: str) -> Callable[[], None]:
    clients = min(case.clients, LOOP_SUBSET) if way == "loop" else case.clients
    rival = peers.Federation(case.model, clients, case.samples, case.batch)
    return functools.partial(rival.round, way)


def rival(case: Case, name: str) -> Callable[[], PyTree]:
    """Its block of rounds (jaxfl) or round (PyTorch), ready to call."""
    if name in peers.WAYS:
        return torch_round(case, name)
    return jaxfl_block(case, devices=1 if name == ONE else jax.device_count())


def peak_memory(case: Case, name: str) -> int:
    """Runs in a process of its own: the most memory that two rounds take."""
    timing.a_device_per_core()
    run = rival(case, name)
    jax.block_until_ready(run())
    jax.block_until_ready(run())
    return timing.peak_bytes()


def throughput(cases: list[Case], console: Console, repeats: int) -> Report:
    header = ("model", "clients", "batch", "framework", "ms a round", "median", "images/s")
    header = (*header, "of jaxfl's best", "of ceiling", "compile s", "peak GB")
    report = Report("Whole round, Mean, no attack", header)
    for case in cases:
        console.print(f"{case.model}, {case.clients} clients, batches of {case.batch} ...")
        ceiling = timing.gemm_rate(repeats) / operations(case.model)
        size = (case.model, str(case.clients), str(case.batch))
        report.rows += [(*size, *row) for row in _rivals(case, ceiling)]
        floor = f"{1e3 * case.images / ceiling:.2f}"
        row = ("GEMM ceiling", floor, "-", f"{ceiling:,.0f}", "-", "100 %", "-", "-")
        report.rows.append((*size, *row))
    return report


def _rivals(case: Case, ceiling: float) -> list[tuple[str, ...]]:
    ours = (ONE, ALL) if jax.device_count() > 1 else (ONE,)
    present = timing.installed("torch")
    seconds = _time_rivals(case, (*ours, *peers.WAYS) if present else ours)
    fastest = min(seconds[name].best for name in ours)
    rows = []
    for name, time in seconds.items():
        label = LABELS.get(name, name)
        if name == "loop" and case.clients > LOOP_SUBSET:
            label += f" ({LOOP_SUBSET} clients, scaled)"
        rate = case.images / time.best
        first = f"{time.first - time.best * case.rounds:.1f}" if name in ours else "-"
        memory = timing.in_fresh_process(peak_memory, case, name) / 1e9
        speed = (f"{1e3 * time.best:.2f}", f"{1e3 * time.median:.2f}", f"{rate:,.0f}")
        shares = (f"{fastest / time.best:.2f}", f"{100 * rate / ceiling:.0f} %")
        rows.append((label, *speed, *shares, first, f"{memory:.2f}"))
    missing = () if present else peers.WAYS
    return rows + [(LABELS[way], MISSING, *["-"] * 6) for way in missing]


def _time_rivals(case: Case, names: tuple[str, ...]) -> dict[str, timing.Seconds]:
    """Seconds a round of each; in turn, unless memory has room for only one at a time."""
    if case.clients <= 1000:
        runs = {name: rival(case, name) for name in names}
        seconds = timing.interleaved(runs, case.repeats)
    else:
        seconds = {}
        for name in names:
            seconds |= timing.interleaved({name: rival(case, name)}, case.repeats)
    for name in seconds.keys() - set(peers.WAYS):
        seconds[name] = seconds[name].per(case.rounds)
    if "loop" in seconds:
        seconds["loop"] = seconds["loop"].per(min(1, LOOP_SUBSET / case.clients))
    return seconds


def overhead(case: Case, console: Console) -> Report:
    """What ALIE and each rule add to the client phase, in the round and alone."""
    console.print("attack and aggregation ...")
    data, devices = federated(case), jax.device_count()
    every = RULES | EVALUATING
    parts = {name: federation(rule, attacked=True) for name, rule in every.items()}
    plan = make_plan(parts["Mean"], data, MODELS[case.model])
    runs = {n: rounds_of(p, plan, data, case.rounds, devices=devices) for n, p in parts.items()}
    clean = federation(Mean())
    clean_plan = make_plan(clean, data, MODELS[case.model])
    of_clean = functools.partial(rounds_of, clean, clean_plan, data, case.rounds, devices=devices)
    runs |= {"clean": of_clean(), "clients": of_clean(clients_only=True)}
    seconds = timing.interleaved(runs, case.repeats)
    alone = timing.interleaved(
        {name: _alone(rule, case.clients, plan.spec.dim) for name, rule in RULES.items()},
        10 * case.repeats,
    )
    base = seconds["clients"].best / case.rounds
    report = Report(
        f"{case.model}, {case.clients} clients, ALIE, {BYZANTINE} Byzantine; {devices} devices",
        ("rule", "ms a round", "beyond clients", "share", "alone, ms", "alone share", "compile s"),
    )
    labels = {"clients": "(client phase only)", "clean": "Mean, no attack"}
    for name in ("clients", "clean", *every):
        time = seconds[name].per(case.rounds)
        row = (labels.get(name, name), f"{1e3 * time.best:.1f}", f"{1e3 * (time.best - base):.1f}")
        row += (f"{100 * (1 - base / time.best):.1f} %",)
        if name in alone:
            part = alone[name].best
            row += (f"{1e3 * part:.2f}", f"{100 * part / time.best:.1f} %")
        else:
            row += ("-", "-")
        report.rows.append((*row, f"{seconds[name].first - case.rounds * time.best:.1f}"))
    return report


def _alone(rule: Aggregator, n: int, dim: int) -> Callable[[], PyTree]:
    """ALIE and the rule on a random matrix, in one compiled function."""
    updates = jax.random.normal(jax.random.key(0), (n, dim))
    byzantine = np.arange(n) < BYZANTINE
    context = Context.of(n)

    @jax.jit
    def attack_and_aggregate(updates: jax.Array, byzantine: jax.Array) -> jax.Array:
        defence = Defence(aggregator=rule, state=(), context=context)
        sent, _ = attack_rows(
            ALIE(z=1.0), updates, byzantine, (), context, context.key, defence, BYZANTINE
        )
        return rule.checked(sent, (), context).update

    return functools.partial(attack_and_aggregate, updates, jax.numpy.asarray(byzantine))


def chunks(console: Console, repeats: int) -> Report:
    """How the automatic number of clients vmapped at once compares with others."""
    console.print("chunks ...")
    report = Report(
        "Clients vmapped at once", ("model", "clients", "chunk", "ms a round", "vs best")
    )
    for model, clients, sizes in (
        ("cnn", 50, (1, 2, 5, 50)),
        ("mlp", 50, (1, 5, 10, 50)),
        ("mlp", 1000, (10, 50, 100, 250, 1000)),
    ):
        case = Case(model, clients, rounds=1 if clients > 50 else 4, repeats=repeats)
        automatic = make_plan(federation(Mean()), federated(case), MODELS[model]).chunk
        tried = sorted({automatic, *sizes})
        runs = {str(chunk): jaxfl_block(case, chunk=chunk) for chunk in tried}
        seconds = timing.interleaved(runs, repeats)
        best = min(time.best for time in seconds.values())
        for chunk, time in seconds.items():
            mark = f"{chunk} (automatic)" if int(chunk) == automatic else chunk
            row = (f"{1e3 * time.best / case.rounds:.1f}", f"{time.best / best:.2f}")
            report.rows.append((model, str(clients), mark, *row))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Client images per second of the whole round.")
    parser.add_argument("--quick", action="store_true", help="few repeats, small federations")
    parser.add_argument("--chunks", action="store_true", help="also compare client_chunk values")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    console, repeats = Console(), 2 if arguments.quick else 7
    timing.a_device_per_core()
    machine = timing.describe_machine()
    cnn = Case("cnn", 50, rounds=2 if arguments.quick else 5, repeats=repeats)
    mlps = [Case("mlp", n, rounds=10, repeats=repeats) for n in (50, 100)]
    if not arguments.quick:
        mlps += [Case("mlp", 1000, 3, repeats), Case("mlp", 1000, 3, repeats, batch=10)]
        mlps += [Case("mlp", 10_000, 1, 3)]
    reports = [throughput([cnn, *mlps], console, repeats), overhead(cnn, console)]
    reports += [chunks(console, repeats)] if arguments.chunks else []
    for report in reports:
        report.show(console)
    console.print("\n".join(f"{name}: {fact}" for name, fact in machine.items()))
    timing.write(arguments.out, "round", machine, reports)


if __name__ == "__main__":
    main()

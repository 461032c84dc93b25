"""What a seed costs where several run in one program, against seeds one by one.

All experiments run their seeds in one program, by ``vmap``. A branch that is decided per seed
would then be computed both ways. ``python -m benchmarks.seeds [--quick] [--out DIR]`` takes under
five minutes on 2 quiet cores. It times every rule on updates ``[n, d]``, and the whole round of 50
clients on the MLP, in three ways: one seed again and again, three seeds one by one, each on updates
and a memory of its own, and the three together. The ratio is of the last two. They are what a user
chooses between, and read the same memory; the updates of one seed alone stay in the processor's
last cache, as they do in no run, whose gradients go through it every round.

It runs with the malloc of the command ``jaxfl``. Writes ``seeds.md`` and ``seeds.json``, and names
the rules of which a seed costs more than ``MOST`` times as much together as one by one. It does not
fail there: two runs of it differ by up to 0.3 for rules of a millisecond, so a time is no test. The
test counts the bytes that programs move (``tests/test_seeds.py``).
"""

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

import jaxfl_launch
from benchmarks import timing
from benchmarks.cases import MODELS, Case, federated, federation
from benchmarks.rules import ENTRIES, one_layer
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator, Mean
from jaxfl.simulation import Simulation
from jaxfl.types import Context, Spec

SEEDS = 3
SHAPE, QUICK = (50, 10, 60_000), (12, 2, 4000)
ROUND, BLOCK = "the whole round (MLP, 50 clients, Mean)", 10
MOST = 1.15
"""The goal."""


WAYS = ("again", "one by one", "together")
Cost = dict[str, float]
"""Seconds a seed, for each of the ways."""


def cost_per_seed(rule: Aggregator, n: int, d: int, repeats: int) -> Cost:
    """Of a rule by itself, from the third round of a run on."""
    updates = jax.random.normal(jax.random.key(0), (SEEDS, n, d))

    def aggregate(x: jax.Array, state: Any) -> Any:
        known = {"root_update": x[0] + 1, "params": jnp.zeros((d,)), "segments": one_layer(d)}
        context = Context.of(n, **known)
        result = rule.aggregate(x, state, context)
        return result.update, result.state

    def ready(call: Callable[..., Any], x: jax.Array, state: Any) -> Callable[[], Any]:
        states = [state]

        def one_round() -> None:
            # Waited for here: what comes next may overwrite the state.
            _, after = jax.block_until_ready(call(x, states.pop()))
            states.append(after)

        for _ in range(2):  # the first rounds of some rules are dearer
            one_round()
        return one_round

    start = rule.init(Spec(n, n, d, dtype=updates.dtype, segments=one_layer(d)))
    starts = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), start)
    # The state's memory is used again, as in a round.
    alone = jax.jit(aggregate, donate_argnums=1)
    first, *each = jax.tree.map(jnp.copy, [start] * (SEEDS + 1))
    again = ready(alone, updates[0], first)
    one_by_one = [ready(alone, x, own) for x, own in zip(list(updates), each, strict=True)]
    together = ready(jax.jit(jax.vmap(aggregate), donate_argnums=1), updates, starts)
    return in_all_ways([again] * SEEDS, one_by_one, together, repeats)


def in_all_ways(
    again: Sequence[Callable[[], Any]],
    one_by_one: Sequence[Callable[[], Any]],
    together: Callable[[], Any],
    repeats: int,
) -> Cost:
    """The best of some repeats of each way."""
    runs = (lambda: [call() for call in again], lambda: [call() for call in one_by_one], together)
    seconds = timing.interleaved(dict(zip(WAYS, runs, strict=True)), repeats)
    return {way: time.best / SEEDS for way, time in seconds.items()}


def cost_of_a_round(clients: int, repeats: int) -> Cost:
    """Of a round of a simulation."""
    data = federated(Case("mlp", clients, BLOCK, repeats))

    def block(seeds: Sequence[int]) -> Callable[[], Any]:
        parts = federation(Mean())
        made = Simulation(parts, data, MODELS["mlp"], seeds=seeds, evaluate_every=BLOCK)
        return lambda: made.advance(BLOCK)

    each, together = [block([seed]) for seed in range(SEEDS)], block(range(SEEDS))
    found = in_all_ways([each[0]] * SEEDS, each, together, repeats)
    return {way: seconds / BLOCK for way, seconds in found.items()}


def ratio(cost: Cost) -> float:
    """What a seed costs together, in units of one by one."""
    return cost["together"] / cost["one by one"]


def with_the_commands_malloc() -> None:
    """Starts again with it, as the command does; in an environment that has it, nothing."""
    better = jaxfl_launch.improved(os.environ, glibc=jaxfl_launch.has_glibc())
    if better:
        again = [sys.executable, "-m", "benchmarks.seeds", *sys.argv[1:]]
        raise SystemExit(subprocess.run(again, env=better, check=False).returncode)


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small shape, few repeats")
    parser.add_argument("--only", default="", help="rules whose name contains this")
    parser.add_argument("--out", type=Path, help="folder for seeds.json and seeds.md")
    options = parser.parse_args()
    with_the_commands_malloc()
    n, f, d = QUICK if options.quick else SHAPE
    console = Console()
    title = f"Milliseconds a seed of {SEEDS}, {n} x {d:,} updates"
    report = Report(title, ("rule", *WAYS, "ratio"))
    repeats = 3 if options.quick else 9
    costs: dict[str, Callable[[], Cost]] = {
        entry.name: functools.partial(cost_per_seed, entry.make(f), n, d, repeats)
        for entry in ENTRIES
    }
    costs[ROUND] = functools.partial(cost_of_a_round, n, repeats)
    found: dict[str, Cost] = {}
    for name in track([name for name in costs if options.only in name], console=console):
        cost = found[name] = costs[name]()
        times = (f"{1e3 * cost[way]:.2f}" for way in WAYS)
        report.rows.append((name, *times, f"{ratio(cost):.2f}"))
    report.show(console)
    if options.out:
        timing.write(
            options.out, "seeds", timing.describe_machine(), [report], seconds_a_seed=found
        )
    dear = sorted(name for name, cost in found.items() if ratio(cost) > MOST)
    if dear:
        console.print(f"above {MOST}: {len(dear)} of {len(found)}: {', '.join(dear)}")


if __name__ == "__main__":
    main()

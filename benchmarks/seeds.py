"""What a seed costs where several run in one program, against seeds one by one.

All experiments run their seeds in one program, by ``vmap``. A branch that is decided per seed
would then be computed both ways. ``python -m benchmarks.seeds [--quick] [--out DIR]`` times every
rule on three seeds one by one and together, in turn, each on updates ``[n, d]`` of its own, and
the whole round of 50 clients on the MLP. Writes ``seeds.md`` and ``seeds.json``. It ends with exit
code 1 where a seed costs more than ``MOST`` times as much together as alone, but for the rules of
which that is known.
"""

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

from benchmarks import timing
from benchmarks.cases import MODELS, Case, federated, federation
from benchmarks.rules import ENTRIES
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator, Mean
from jaxfl.simulation import Simulation
from jaxfl.types import Context, Spec

SEEDS = 3
SHAPE, QUICK = (50, 10, 60_000), (12, 2, 4000)
MOST, NOISE = 1.15, 0.05
"""The goal, and by how much a measurement may be off."""
DEARER = {"CenteredClipping (1 step)", "Clipping + Mean", "FoolsGold", "ByzantineSGD"}
"""Rules that miss the goal: why is in docs/performance.md."""
ROUND, BLOCK = "the whole round (MLP, 50 clients, Mean)", 10


def cost_per_seed(rule: Aggregator, n: int, d: int, repeats: int) -> tuple[float, float]:
    """Seconds a seed, one after the other and together, in the third round of a run."""
    updates = jax.random.normal(jax.random.key(0), (SEEDS, n, d))

    def aggregate(x: jax.Array, state: Any) -> Any:
        context = Context.of(n, root_update=x[0] + 1, params=jnp.zeros((d,)))
        result = rule.aggregate(x, state, context)
        return result.update, result.state

    def ready(call: Callable[..., Any], x: jax.Array, state: Any) -> Callable[[], Any]:
        states = [state]

        def one_round() -> Any:
            update, after = call(x, states.pop())
            states.append(after)
            return update, after

        for _ in range(2):  # the first rounds of some rules are dearer
            one_round()
        return one_round

    start = rule.init(Spec(population=n, cohort=n, dim=d, dtype=updates.dtype))
    starts = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), start)
    # The state's memory is used again, as in a round.
    alone = jax.jit(aggregate, donate_argnums=1)
    each = jax.tree.map(jnp.copy, [start] * SEEDS)
    one_by_one = [ready(alone, x, own) for x, own in zip(list(updates), each, strict=True)]
    seconds = timing.interleaved(
        {
            # Each on its own matrix: one that is read again and again would stay in the cache.
            "alone": lambda: [call() for call in one_by_one],
            "together": ready(jax.jit(jax.vmap(aggregate), donate_argnums=1), updates, starts),
        },
        repeats,
    )
    return seconds["alone"].best / SEEDS, seconds["together"].best / SEEDS


def cost_of_a_round(clients: int, repeats: int) -> tuple[float, float]:
    """Seconds a seed and round of a simulation, one after the other and together."""
    data = federated(Case("mlp", clients, BLOCK, repeats))

    def block(seeds: Sequence[int]) -> Callable[[], Any]:
        parts = federation(Mean())
        made = Simulation(parts, data, MODELS["mlp"], seeds=seeds, evaluate_every=BLOCK)
        return lambda: made.advance(BLOCK)

    each, together = [block([seed]) for seed in range(SEEDS)], block(range(SEEDS))
    runs = {"alone": lambda: [call() for call in each], "together": together}
    seconds = timing.interleaved(runs, repeats)
    one, many = (seconds[way].best / SEEDS / BLOCK for way in ("alone", "together"))
    return one, many


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small shape, few repeats")
    parser.add_argument("--only", default="", help="rules whose name contains this")
    parser.add_argument("--out", type=Path, help="folder for seeds.md")
    options = parser.parse_args()
    n, f, d = QUICK if options.quick else SHAPE
    console = Console()
    title = f"Milliseconds a seed, {n} x {d:,} updates"
    report = Report(title, ("rule", "one by one", f"{SEEDS} together", "ratio"))
    repeats = 3 if options.quick else 9
    costs: dict[str, Callable[[], tuple[float, float]]] = {
        entry.name: functools.partial(cost_per_seed, entry.make(f), n, d, repeats)
        for entry in ENTRIES
    }
    costs[ROUND] = functools.partial(cost_of_a_round, n, repeats)
    found: dict[str, tuple[float, float]] = {}
    for name in track([name for name in costs if options.only in name], console=console):
        one, many = found[name] = costs[name]()
        report.rows.append((name, f"{1e3 * one:.2f}", f"{1e3 * many:.2f}", f"{many / one:.2f}"))
    report.show(console)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "seeds.md").write_text(report.markdown() + "\n")
        record = {"machine": timing.describe_machine(), "alone, together": found}
        (options.out / "seeds.json").write_text(json.dumps(record, indent=1))
    dear = [name for name, (one, many) in found.items() if many > (MOST + NOISE) * one]
    if not options.quick and set(dear) - DEARER:
        raise SystemExit(f"dearer together than alone: {', '.join(set(dear) - DEARER)}")


if __name__ == "__main__":
    main()

"""What a seed costs where several run in one program, against seeds one by one.

All experiments run their seeds in one program, by ``vmap``. A branch that is decided per seed
would then be computed both ways. ``python -m benchmarks.seeds [--quick] [--out DIR]`` times every
rule on three seeds one by one and together, in turn, each on updates ``[n, d]`` of its own.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track

from benchmarks import timing
from benchmarks.rules import ENTRIES
from benchmarks.timing import Report
from jaxfl.aggregators import Aggregator
from jaxfl.types import Context, Spec

SEEDS = 3
SHAPE, QUICK = (50, 10, 60_000), (12, 2, 4000)


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
    entries = [entry for entry in ENTRIES if options.only in entry.name]
    for entry in track(entries, console=console):
        one, many = cost_per_seed(entry.make(f), n, d, 3 if options.quick else 9)
        numbers = (f"{1e3 * one:.2f}", f"{1e3 * many:.2f}", f"{many / one:.2f}")
        report.rows.append((entry.name, *numbers))
    report.show(console)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "seeds.md").write_text(report.markdown() + "\n")


if __name__ == "__main__":
    main()

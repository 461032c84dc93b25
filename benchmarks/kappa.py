"""How robust rules are in the worst case found: the (f, kappa) coefficient, by search.

A rule F is (f, kappa)-robust (Allouah et al., "Fixing by mixing", AISTATS 2023) if for all rows
x_1, ..., x_n and all sets S of n - f of them
``|F(x) - mean_S|^2 <= kappa * mean_{i in S} |x_i - mean_S|^2``. The search looks for rows that
make the ratio large: many random starts, each climbing by random steps, all sets S at once. What
it finds is a lower bound of kappa, shown beside f / (n - 2f), below which no rule can be, and
the upper bounds known for the rule, as recalled from that paper: shown, not relied on. All in
double precision.

``python -m benchmarks.kappa [--quick] [--out FILE]``.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import track

from benchmarks.timing import Report
from jaxfl import aggregators as rules
from jaxfl.aggregators import Aggregator, Pipeline
from jaxfl.preaggregators import NNM
from jaxfl.types import Context, Spec

SIZES = ((7, 1), (11, 2), (10, 3))
DIMENSIONS = 2

Bound = Callable[[float, int, int], float]
RULES: dict[str, tuple[Callable[[int], Aggregator], Bound | None]] = {
    "Median": (lambda f: rules.Median(), lambda r, n, f: 4 * (1 + r) ** 2),
    "TrimmedMean": (lambda f: rules.TrimmedMean(f=f), lambda r, n, f: 6 * r * (1 + r)),
    "MeaMed": (lambda f: rules.MeaMed(f=f), None),
    "GeometricMedian": (lambda f: rules.GeometricMedian(), lambda r, n, f: 4 * (1 + r) ** 2),
    "Krum": (lambda f: rules.Krum(f=f), lambda r, n, f: 6 * (1 + r)),
    "MultiKrum": (lambda f: rules.MultiKrum(f=f), None),
    "MDA": (lambda f: rules.MDA(f=f), None),
    "SMEA": (lambda f: rules.SMEA(f=f), lambda r, n, f: 4 * f / (n - f) * (1 + r) ** 2),
    "CAF": (lambda f: rules.CAF(f=f), None),
}
MIXED = ("Median", "TrimmedMean", "GeometricMedian", "Krum")


def ratios(
    rule: Aggregator, members: Float[Array, "s n"], x: Float[Array, "n d"]
) -> Float[Array, " s"]:
    """The ratio for each set of rows; 0 where its rows are too close together to tell."""
    n, d = x.shape
    state = rule.init(Spec(population=n, cohort=n, dim=d, dtype=x.dtype))
    output = rule.aggregate(x, state, Context.of(n)).update
    size = jnp.sum(members, axis=1)
    means = members @ x / size[:, None]
    squares = jnp.sum(jnp.square(x[None] - means[:, None]), axis=2)
    spread = jnp.sum(members * squares, axis=1) / size
    away = jnp.sum(jnp.square(output[None] - means), axis=1)
    tiny = 1e-12 * jnp.max(jnp.sum(jnp.square(x), axis=1))
    return jnp.where(spread > tiny, away / jnp.maximum(spread, tiny), 0)


@functools.partial(jax.jit, static_argnames=("n", "f", "starts", "steps"))
def search(rule: Aggregator, n: int, f: int, starts: int, steps: int) -> Float[Array, ""]:
    """The largest ratio found."""
    sets = np.array(list(itertools.combinations(range(n), n - f)))
    members = jnp.asarray((sets[:, :, None] == np.arange(n)).any(axis=1), float)

    def climb(key: Array) -> Array:
        first, key = jax.random.split(key)
        x = jax.random.normal(first, (n, DIMENSIONS))
        # Some starts have the attackers' cluster already.
        x = x.at[:f].add(jax.random.exponential(key) * jax.random.bernoulli(first))

        def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
            x, best = carry
            which, how, far = jax.random.split(key, 3)
            scale = 10.0 ** jax.random.uniform(far, minval=-3, maxval=0.5)
            moved = jax.random.bernoulli(which, 0.3, (n, 1)) * scale
            trial = x + moved * jax.random.normal(how, x.shape)
            ratio = jnp.max(ratios(rule, members, trial))
            better = ratio > best
            return (jnp.where(better, trial, x), jnp.where(better, ratio, best)), None

        start = x, jnp.max(ratios(rule, members, x))
        (_, best), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return best

    return jnp.max(jax.vmap(climb)(jax.random.split(jax.random.key(0), starts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short search")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    starts, steps = (8, 20) if arguments.quick else (128, 800)
    jax.config.update("jax_enable_x64", True)
    header = ("rule", "n", "f", "largest found", "least possible", "known upper bound")
    report = Report(f"kappa: {starts} starts, {steps} steps each, {DIMENSIONS} dimensions", header)
    console = Console(width=120)
    cases = [
        (name, mixed) for mixed in (False, True) for name in RULES if not mixed or name in MIXED
    ]
    for (name, mixed), (n, f) in track(list(itertools.product(cases, SIZES)), console=console):
        make, bound = RULES[name]
        rule, r = make(f), f / (n - 2 * f)
        known = None if bound is None else bound(r, n, f)
        if mixed:
            rule = Pipeline(pre=(NNM(f=f),), rule=rule)
            known = None if known is None else 8 * f / (n - f) * (known + 1)
        found = float(search(rule, n, f, starts, steps))
        told = "-" if known is None else f"{known:.2f}"
        title = f"NNM + {name}" if mixed else name
        report.rows.append((title, str(n), str(f), f"{found:.3f}", f"{r:.3f}", told))
    report.show(console)
    if arguments.out:
        arguments.out.write_text(report.markdown() + "\n")


if __name__ == "__main__":
    main()

"""Expected robustness of one round: laws of honest sets x rules, under attackers who know the set.

``python -m benchmarks.expected [--sets R] [--out DIR] [--families F ...] [--laws L ...]
[--wrong] [--rules R ...]``. For each law, R fresh honest sets; for each family of gradients, R
fresh draws; every rule meets the same sets, gradients and attack noise. The attackers are the rest.
Reported is the ratio of means ``E max over attacks of |F - mean_S|^2 / E Var_S`` with its standard
error, so a lower bound of the adaptive notion on these gradients; the difference to NNM and the
trimmed mean with a safe f is paired, and its p-values are adjusted (Holm) over the rules of a law.
With ``--wrong`` also laws that are not what rules believe. Writes ``expected.json`` and
``expected.md``.

With ``--out`` it goes on where it was stopped: what a rule went through is kept in ``parts/``.

Families, of n = 20 clients in d = 30 dimensions, where the squared norm of the mean is as large as
the dispersion: ``dir``, Dirichlet(0.3) shares of ten classes times a random direction of each,
and noise of 0.3 times the dispersion; ``camps``, two honest groups, the smaller of 25 to 50 %.
"""

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jaxfl
from benchmarks.timing import Report, describe_machine, write
from jaxfl import robustness as law_of
from jaxfl.aggregators import Aggregator
from jaxfl.attacks import Attack
from jaxfl.robustness import Law
from jaxfl.types import Aggregated

N, D, SEED = 20, 30, 2026
MOST = (N - 1) // 2
"""Attackers that any law here allows: one bound for all of them, so a rule is compiled once."""
RING = law_of.ring(N)
LAWS: dict[str, Callable[[], Law]] = {
    "uniform": lambda: law_of.UniformSets(n=N, byzantine=4),
    "independent": lambda: law_of.IndependentHonesty(
        probabilities=np.repeat([0.98, 0.85, 0.45], [8, 8, 4])
    ),
    "clusters": lambda: law_of.Clusters(
        groups=tuple(np.repeat(range(5), 4).tolist()),
        corruption=np.array([0.35, 0.25, 0.10, 0.05, 0.02]),
    ),
    "big cluster": lambda: law_of.Clusters(
        groups=(0,) * 8 + (1,) * 12, corruption=np.array([0.3, 1.0]), within=np.array([1.0, 0.03])
    ),
    "ring": lambda: law_of.Ising(graph=RING, coupling=0.55, external=0.22),
    "ring_h": lambda: law_of.Ising(
        graph=RING, coupling=0.5, external=np.repeat([0.10, 0.45], N // 2)
    ),
}
WRONG: dict[str, tuple[str, Callable[[], Law]]] = {
    "independent, truly uniform": ("independent", LAWS["uniform"]),
    "independent, truly reversed": (
        "independent",
        lambda: law_of.IndependentHonesty(
            probabilities=np.repeat([0.45, 0.85, 0.98], [4, 8, 8]),
        ),
    ),
    "independent, truly the 6 most trusted fall": (
        "independent",
        lambda: law_of.Empirical(sets=(np.arange(N) >= 6)[None].astype(float)),
    ),
    "ring, truly clusters": ("ring", LAWS["clusters"]),
}
"""What rules believe, and what is true."""
BELIEVING = (
    "geometric median",
    "log-odds median",
    "BPC, equal weights",
    "BPC",
    "BPC, robust prior",
)
"""Rules that are tried where what they believe is wrong, beside the reference."""
ATTACKS: dict[str, Attack] = {
    "shift search": jaxfl.ShiftSearch(),
    "gradient": jaxfl.GradientAttack(iterations=20, radius=10.0, starts=(jaxfl.ShiftSearch(),)),
    "ALIE 1.5": jaxfl.ALIE(z=1.5),
    "IPM 0.5": jaxfl.IPM(scale=0.5),
    "sign flip": jaxfl.SignFlip(),
    "mimic": jaxfl.Mimic(target=0),
    "huge noise": jaxfl.Gaussian(std=100.0),
    "none": jaxfl.NoAttack(),
}
REFERENCE = "NNM + trimmed mean, f safe"
GIBBS = "Gibbs mean"
"""Of laws whose sets can be listed."""


class Counted(Aggregator):
    """NNM and the trimmed mean, told the true number of Byzantine clients: no defence."""

    def aggregate(self, updates, state, context) -> Aggregated:
        """As the rule behind NNM, with a share to trim that is the truth."""
        assert context.byzantine is not None
        trim = context.byzantine.mean(dtype=updates.dtype)
        rule = jaxfl.Pipeline(
            pre=(jaxfl.WeightedNNM(trim=trim),), rule=jaxfl.WeightedTrimmedMean(trim=trim)
        )
        return rule.aggregate(updates, state, context)


def trimmed(f: int) -> Aggregator:
    return jaxfl.Pipeline(pre=(jaxfl.NNM(f=f),), rule=jaxfl.TrimmedMean(f=f))


def rules_of(law: Law) -> dict[str, Aggregator]:
    """The rules of the table, with what they learn of the law."""
    most = law.most_byzantine
    usual = int(law_of.mass_quantile(law, np.ones(N), 0.95))
    bucketed = jaxfl.Pipeline(
        pre=(jaxfl.Bucketing(size=2),), rule=jaxfl.TrimmedMean(f=min(usual, 4))
    )
    rules: dict[str, Aggregator] = {
        "expected mean": law_of.expected_mean(law),
        "Krum, f 95 %": jaxfl.Krum(f=min(usual, 8)),
        "bucketing + trimmed mean, f 95 %": bucketed,
        REFERENCE: trimmed(most),
        "NNM + trimmed mean, f 95 %": trimmed(usual),
        "NNM + trimmed mean, f true": Counted(),
        "geometric median": jaxfl.GeometricMedian(),
        "log-odds median": law_of.log_odds_median(law),
        "weighted NNM + trimmed mean, anchored": law_of.weighted_trimming(law),
        "BPC, equal weights": jaxfl.BarrierClipping(),
        "BPC": law_of.barrier_clipping(law),
        "BPC, robust prior": law_of.barrier_clipping(law, doubt=0.3),
    }
    if law.listable or isinstance(law, law_of.Clusters):
        rules[GIBBS] = law_of.gibbs_mean(law)
    return rules


def chosen(rules: dict[str, Aggregator], only: Sequence[str] | None) -> dict[str, Aggregator]:
    """The reference and the rules of these names; a rule that the law does not have is left out.

    Raises:
      ValueError: a name that no law has.
    """
    if only is None:
        return rules
    for name in only:
        if name not in rules and name != GIBBS:
            raise ValueError(f"--rules: no rule {name!r}; there are {', '.join(rules)}, {GIBBS}")
    named = {name: rules[name] for name in only if name in rules}
    if GIBBS in only and GIBBS not in rules:
        Console(stderr=True).print(f"no {GIBBS}: the sets of this law are too many to be listed")
    return {REFERENCE: rules[REFERENCE]} | named


def gradients_of(family: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Honest gradients of all clients, [count, n, d]."""
    noise = rng.normal(size=(count, N, D)) / np.sqrt(D)
    if family == "dir":
        classes = rng.normal(size=(count, 10, D)) / np.sqrt(D)
        shares = rng.dirichlet(np.full(10, 0.3), size=(count, N))
        x = shares @ classes
        x -= x.mean(axis=1, keepdims=True)
        dispersion = np.square(x).sum(axis=2).mean(axis=1)
        x += np.sqrt(0.3 * dispersion)[:, None, None] * noise
    else:
        place = rng.permuted(np.tile(np.arange(N), (count, 1)), axis=1)
        other = place < np.round(rng.uniform(0.25, 0.5, (count, 1)) * N)
        apart = rng.normal(size=(count, 1, D))
        apart *= 4 / np.linalg.norm(apart, axis=2, keepdims=True)
        x = noise + np.where(other[:, :, None], apart, 0)
    x -= x.mean(axis=1, keepdims=True)
    dispersion = np.square(x).sum(axis=2).mean(axis=1)
    mean = rng.normal(size=(count, 1, D))
    mean *= np.sqrt(dispersion)[:, None, None] / np.linalg.norm(mean, axis=2, keepdims=True)
    return (x + mean).astype(np.float32)


def kept(path: Path | None, compute: Callable[[], law_of.Damages]) -> law_of.Damages:
    """What a rule went through: from the file, or computed and written there."""
    if path is not None and path.exists():
        with np.load(path) as found:
            return law_of.Damages(each=found["each"], spread=found["spread"])
    done = jax.tree.map(np.asarray, compute())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part.npz")
        np.savez(aside, each=done.each, spread=done.spread)
        aside.replace(path)
    return done


def measure(
    law: Law,
    family: str,
    count: int,
    seed: int,
    *,
    believed: Law | None = None,
    only: Sequence[str] | None = None,
    parts: Path | None = None,
) -> dict[str, Any]:
    """One law and family: what every attack does to every rule, on the same sets.

    ``believed`` is the law that rules are made for, ``parts`` a folder of what is done.
    """
    key = jax.random.key(seed)
    sets = np.asarray(law.sample(jax.random.fold_in(key, 0), count))
    gradients = gradients_of(family, count, np.random.default_rng(seed))
    worst, found, spread = {}, {}, np.zeros(0)
    for name, rule in chosen(rules_of(believed or law), only).items():
        started = time.perf_counter()
        Console(stderr=True).print(f"{family}, {type(law).__name__}: {name}")
        place = None
        if parts is not None:
            place = parts / f"{family}-{seed}-{count}-{re.sub('[^a-zA-Z0-9]+', '-', name)}.npz"
        attacks = tuple(ATTACKS.values())
        done = kept(
            place,
            lambda rule=rule, attacks=attacks: law_of.damages(
                rule, attacks, sets, gradients, jax.random.fold_in(key, 1), batch=64, most=MOST
            ),
        )
        each, spread = np.asarray(done.each, np.float64), np.asarray(done.spread, np.float64)
        worst[name], clean = each.max(axis=1), each[:, list(ATTACKS).index("none")]
        by_attack = [law_of.ratio_of_means(column, spread).value for column in each.T]
        found[name] = {
            "adaptive": dataclasses.asdict(law_of.ratio_of_means(worst[name], spread)),
            "tail 95 %": dataclasses.asdict(law_of.tail(worst[name] / spread, 0.95)),
            "no attack": dataclasses.asdict(law_of.ratio_of_means(clean, spread)),
            "by attack": dict(zip(ATTACKS, by_attack, strict=True)),
            "seconds": time.perf_counter() - started,
        }
    others = [name for name in worst if name != REFERENCE]
    p = law_of.holm(np.array([law_of.p_value(worst[o], worst[REFERENCE]) for o in others]))
    for other, adjusted in zip(others, p, strict=True):
        apart = law_of.paired_difference(worst[other], worst[REFERENCE], spread)
        found[other]["to reference"] = {**dataclasses.asdict(apart), "p": float(adjusted)}
    return {"mean byzantine": float((~sets).sum(axis=1).mean()), "rules": found}


def table(family: str, measured: dict[str, Any], what: str) -> Report:
    """Rules by laws: the ratio and its standard error."""
    names = list(dict.fromkeys(name for one in measured.values() for name in one["rules"]))
    report = Report(f"{family}: {what}", ("rule", *measured))
    for name in names:
        cells = [one["rules"].get(name, {}).get(what) for one in measured.values()]
        shown = ("-" if c is None else f"{c['value']:.3g}±{c['error']:.2g}" for c in cells)
        report.rows.append((name, *shown))
    return report


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sets", type=int, default=256, help="honest sets for each law")
    parser.add_argument("--families", nargs="+", default=["dir", "camps"])
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--rules", nargs="+", help="beside the reference; all by default")
    parser.add_argument("--wrong", action="store_true", help="also where the law is not believed")
    parser.add_argument("--out", type=Path, help="folder for expected.json and expected.md")
    options = parser.parse_args()
    try:
        chosen(rules_of(LAWS["clusters"]()), options.rules)  # before anything is measured
    except ValueError as error:
        parser.error(str(error))
    console, facts, reports = Console(width=160), {}, []
    parts = options.out / "parts" if options.out else None
    for i, family in enumerate(options.families):
        facts[family] = {}
        for name in options.laws:
            seed = SEED + 100 * i + list(LAWS).index(name)
            law, only = LAWS[name](), options.rules
            facts[family][name] = measure(law, family, options.sets, seed, only=only, parts=parts)
        for j, (name, (believed, truth)) in enumerate(WRONG.items() if options.wrong else ()):
            facts[family][name] = measure(
                truth(),
                family,
                options.sets,
                SEED + 100 * i + 50 + j,
                believed=LAWS[believed](),
                only=options.rules or BELIEVING,
                parts=parts,
            )
        for what in ("adaptive", "no attack"):
            reports.append(table(family, facts[family], what))
            reports[-1].show(console)
    if options.out:
        write(
            options.out,
            "expected",
            describe_machine(),
            reports,
            sets=options.sets,
            families=facts,
        )


if __name__ == "__main__":
    main()

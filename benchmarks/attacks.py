"""What attacks cost and how far they go: their share of a round, and their damage in one round.

*Cost*: every attack alone on a random ``[50, d]`` matrix of the CNN's size, in milliseconds and
as a share of a whole round (50 clients, batch 50, TrimmedMean) timed in the same run; with the
number of times it runs the defence. *Damage*: on the messages of real federations (digits, every
few rounds), the distance from the defence's answer to the honest mean, in units of the farthest
honest message; every attack is cut to the ball that this spans, so all have the same budget.

``python -m benchmarks.attacks [--quick] [--out DIR]`` prints the tables and writes
``attacks.json`` and ``attacks.md``.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import timing
from benchmarks.cases import BYZANTINE, MODELS, RULES, Case, federated, federation, rounds_of
from benchmarks.timing import Report
from jaxfl import data as datasets
from jaxfl.aggregators import Aggregator, Krum, Median, Pipeline, TrimmedMean
from jaxfl.attacks import (
    A3FL,
    ALIE,
    DBA,
    IPM,
    MPAF,
    ROP,
    AGRTailored,
    AlternatingMinimisation,
    Attack,
    Backdoor,
    BitFlip,
    ByzMean,
    EdgeCase,
    FangKrum,
    FangTrim,
    FLTrustAdaptive,
    Gaussian,
    GradientAttack,
    Infinity,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    NaN,
    Neurotoxin,
    NoAttack,
    Noise,
    OptimizedALIE,
    OptimizedIPM,
    PoisonedFL,
    ReverseScaling,
    Scaling,
    ShiftSearch,
    SignFlip,
    SignGuardAware,
    Sparse,
    TNBSStealth,
    Zero,
)
from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import Defence
from jaxfl.clients import FedSGD
from jaxfl.data import RareData
from jaxfl.federation import Federation
from jaxfl.models import MLP
from jaxfl.numerics.rows import held
from jaxfl.optimizers import SGD
from jaxfl.plan import make_plan
from jaxfl.preaggregators import NNM
from jaxfl.simulation import Simulation
from jaxfl.types import Context, PyTree, Segments, Spec

FIXED: dict[str, Attack] = {
    "SignFlip": SignFlip(),
    "SignFlip of the mean": SignFlip(of="mean"),
    "ReverseScaling(100)": ReverseScaling(),
    "Gaussian(0.5)": Gaussian(),
    "Noise(0.5)": Noise(),
    "ALIE(z_max)": ALIE(),
    "ALIE(1)": ALIE(z=1.0),
    "ALIE(1.5)": ALIE(z=1.5),
    "IPM(0.1)": IPM(scale=0.1),
    "IPM(0.5)": IPM(scale=0.5),
    "IPM(2)": IPM(scale=2.0),
    "IPM(10)": IPM(scale=10.0),
    "MinMax": MinMax(),
    "MinMax, unit": MinMax(direction="unit"),
    "MinMax, sign": MinMax(direction="sign"),
    "MinSum": MinSum(),
    "ByzMean": ByzMean(),
    "FangTrim": FangTrim(),
    "FangKrum": FangKrum(),
    "Mimic": Mimic(target=None),
    "TNBSStealth": TNBSStealth(),
    "SignGuardAware": SignGuardAware(),
}
TRIVIAL: dict[str, Attack] = {
    "Zero": Zero(),
    "NaN": NaN(),
    "Infinity": Infinity(),
    "BitFlip": BitFlip(),
    "Scaling(10)": Scaling(factor=10.0),
    "FLTrustAdaptive": FLTrustAdaptive(),
}
"""Timed, but not compared in damage."""
NEWEST: dict[str, Attack] = {
    "PoisonedFL": PoisonedFL(),
    "MPAF": MPAF(),
    "ROP": ROP(),
    "Sparse": Sparse(),
}
"""Timed, but not compared in damage: they follow the model over rounds, of which this has one."""
ON_DATA: dict[str, Attack] = {
    "none": NoAttack(),
    "LabelFlip": LabelFlip(),
    "LabelFlip, random": LabelFlip(to="random"),
    "LabelFlip, least likely": LabelFlip(to="least_likely"),
    "Backdoor": Backdoor(),
    "DBA": DBA(),
    "Neurotoxin with Backdoor": Neurotoxin(attack=Backdoor()),
    "EdgeCase": EdgeCase(),
    "A3FL": A3FL(),
    "AlternatingMinimisation": AlternatingMinimisation(),
}
"""Timed in whole rounds. Those in texts and of adapters are in ``benchmarks.adapters``."""
SEARCHING: dict[str, tuple[Attack, int]] = {
    "AGRTailored": (AGRTailored(), AGRTailored().evaluations),
    "OptimizedALIE": (OptimizedALIE(), OptimizedALIE().evaluations),
    "OptimizedIPM": (OptimizedIPM(), OptimizedIPM().evaluations),
    "ShiftSearch": (ShiftSearch(), 12 * ShiftSearch().lengths + 4),
    "GradientAttack": (GradientAttack(), 1 + 9 * GradientAttack().iterations),
}
"""With how often they run the defence; a gradient counts as one run."""
DEFENCES: dict[str, Aggregator] = {
    "Median": Median(),
    "TrimmedMean": TrimmedMean(f=BYZANTINE),
    "Krum": Krum(f=BYZANTINE),
    "NNM + TrimmedMean": Pipeline(pre=(NNM(f=BYZANTINE),), rule=TrimmedMean(f=BYZANTINE)),
}


def attacked(
    attack: Attack, n: int, dim: int, rule: Aggregator, segments: Segments = ()
) -> Callable[..., PyTree]:
    """One attack in one compiled function of the updates, after its first round."""
    context = Context.of(
        n,
        root_update=jnp.ones(dim),
        round=jnp.ones((), jnp.int32),
        params=jnp.ones(dim),
        segments=segments,
    )
    state = attack.init(Spec(n, n, dim, BYZANTINE, segments=segments))

    @jax.jit
    def craft(updates: jax.Array, byzantine: jax.Array) -> jax.Array:
        defence = Defence(aggregator=rule, state=(), context=context)
        sent, _ = attack_rows(
            attack, updates, byzantine, state, context, context.key, defence, BYZANTINE
        )
        return held(sent)

    return craft


def cost(console: Console, quick: bool) -> Report:
    """Milliseconds of every attack, and as a share of a round of the CNN."""
    case = Case("cnn", 50, rounds=2 if quick else 5, repeats=2 if quick else 7)
    data, parts = federated(case), federation(RULES["TrimmedMean(f=10)"])
    plan = make_plan(parts, data, MODELS[case.model])
    devices = jax.device_count()
    console.print("a round ...")
    block = {"round": rounds_of(parts, plan, data, case.rounds, devices=devices)}
    whole = timing.interleaved(block, case.repeats)["round"].per(case.rounds).best
    updates = jax.random.normal(jax.random.key(0), (case.clients, plan.spec.dim))
    byzantine = jnp.arange(case.clients) < BYZANTINE
    title = f"Cost of attacks: {case.clients} x {plan.spec.dim}, {BYZANTINE} Byzantine"
    report = Report(
        f"{title}; a round takes {1e3 * whole:.0f} ms",
        ("attack", "runs of the defence", "ms", "share of the round", "compile s"),
    )
    rule = RULES["TrimmedMean(f=10)"]
    every = {name: (attack, 0) for name, attack in (FIXED | TRIVIAL | NEWEST).items()}
    every |= SEARCHING
    for name, (attack, runs) in every.items():
        craft = attacked(attack, case.clients, plan.spec.dim, rule, plan.spec.segments)
        run = {name: functools.partial(craft, updates, byzantine)}
        time = timing.interleaved(run, 3 if runs else 3 * case.repeats)[name]
        share = time.best / (whole + time.best)
        row = (name, str(runs or "-"), f"{1e3 * time.best:.2f}", f"{100 * share:.1f} %")
        report.rows.append((*row, f"{time.first - time.best:.1f}"))
    return report


def on_data(console: Console, quick: bool) -> Report:
    """Rounds of the CNN with each attack on data, whose cost is inside the clients' work."""
    case = Case("cnn", 50, rounds=2 if quick else 5, repeats=2 if quick else 7)
    data = federated(case, RareData(label=7))
    console.print("attacks on data ...")
    runs = {}
    for name, attack in ON_DATA.items():
        parts = federation(RULES["TrimmedMean(f=10)"], attacked=True).replace(attack=attack)
        plan = make_plan(parts, data, MODELS[case.model])
        runs[name] = rounds_of(parts, plan, data, case.rounds, devices=jax.device_count())
    times = timing.interleaved(runs, case.repeats)
    report = Report("Attacks on data: a round of the CNN", ("attack", "ms a round", "more"))
    for name, time in times.items():
        more = time.best / times["none"].best - 1
        report.rows.append((name, f"{1e3 * time.best / case.rounds:.1f}", f"{100 * more:+.1f} %"))
    return report


def matrices(quick: bool) -> list[np.ndarray]:
    """The honest messages of a federation on digits, every ten rounds; the Oracle aggregates."""
    data = datasets.digits().split(datasets.Dirichlet(alpha=1.0), clients=50)
    parts = Federation(algorithm=FedSGD(batch_size=16), optimizer=SGD(momentum=0.9))
    simulation = Simulation(parts, data, MLP(hidden=(64,)), evaluate_every=10)
    found = []
    for _ in range(2 if quick else 6):
        found.append(np.asarray(simulation.messages().own))
        simulation.advance(10)
    return found


def damage(console: Console, quick: bool) -> Report:
    """For every defence, how far each attack moves its answer, within one budget."""
    updates = matrices(quick)
    n, dim = updates[0].shape
    byzantine = jnp.arange(n) < BYZANTINE
    report = Report(
        f"Damage in one round: digits, {n} x {dim}, {BYZANTINE} Byzantine, "
        f"mean over {len(updates)} rounds",
        ("attack", *DEFENCES),
    )
    attacks = FIXED | {name: attack for name, (attack, _) in SEARCHING.items()}
    table = np.zeros((len(attacks), len(DEFENCES), len(updates)))
    for j, (defence, rule) in enumerate(DEFENCES.items()):
        console.print(f"damage to {defence} ...")
        answer = jax.jit(rule.__call__)
        for i, attack in enumerate(attacks.values()):
            craft = attacked(attack, n, dim, rule)
            for t, matrix in enumerate(updates):
                sent = np.array(craft(jnp.asarray(matrix), byzantine))
                mean = matrix[BYZANTINE:].mean(0)
                ball = np.linalg.norm(matrix[BYZANTINE:] - mean, axis=1).max()
                away = np.nan_to_num(sent[:BYZANTINE] - mean)
                length = np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-30)
                sent[:BYZANTINE] = mean + away * np.minimum(1, ball / length)
                table[i, j, t] = np.linalg.norm(np.asarray(answer(sent)) - mean) / ball
    means = table.mean(-1)
    for i, name in enumerate(attacks):
        report.rows.append((name, *(f"{value:.3f}" for value in means[i])))
    fixed = table[: len(FIXED)].max(0)
    own = table[-1]
    report.rows.append(("best fixed of each round", *(f"{v:.3f}" for v in fixed.mean(-1))))
    ratio = own / fixed
    report.rows.append(("GradientAttack / best fixed", *(f"{v:.2f} x" for v in ratio.mean(-1))))
    won = (own > fixed).mean(-1)
    report.rows.append(("rounds in which it is ahead", *(f"{100 * v:.0f} %" for v in won)))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost and damage of attacks.")
    parser.add_argument("--quick", action="store_true", help="few repeats, few rounds")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    console = Console()
    timing.a_device_per_core()
    machine = timing.describe_machine()
    reports = [part(console, arguments.quick) for part in (cost, on_data, damage)]
    for report in reports:
        report.show(console)
    timing.write(arguments.out, "attacks", machine, reports)


if __name__ == "__main__":
    main()

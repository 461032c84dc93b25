"""What privacy costs: a round with it against the same round without, and against Opacus.

*Time*: 50 clients with batches of 50 (the federations of ``benchmarks.round``; the CNN without
dropout, so that all compute the same), Gaussian noise of multiplier 1, clip 1, all in turn in one
run. Privacy of examples is timed with batches of one size, as everything else, and with Poisson
batches, padded to as many slots as are exceeded with probability 1e-18. *Whole gradients* in
microbatches are the way for models whose layers allow no norms without gradients; here it is the
same model in disguise. Opacus takes one client after the other, on ``GradSampleModule`` (hooks)
and with ghost clipping (two backward passes); its noised gradients are averaged as ours are.
*x plain* is the time over that of the plain round of the same framework, devices or threads;
*hooks* and *ghost / this* compare with Opacus on the number of threads that is best for it. The
GEMM ceiling is a plain forward and backward pass at the rate of a large float32 matrix product.

*Memory*: what one client's compiled gradient, noise included, asks for besides its arguments and
result; peaks are those of a fresh process that runs one way alone. *Equality*: no clock runs
before all ways have given the same clipped gradient.

``python -m benchmarks.privacy [--quick] [--model cnn|mlp] [--repeats N] [--out DIR]`` prints the
tables and writes ``privacy.json`` and ``privacy.md``. PyTorch and Opacus are optional:
``pip install jaxfl[peers]``.
"""

import argparse
import functools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.flatten_util import ravel_pytree
from rich.console import Console

from benchmarks import private_peers, timing
from benchmarks.cases import BATCH, MODELS, Case, federated, federation, operations, rounds_of
from benchmarks.private_peers import GHOST, HOOKS, LOOP
from benchmarks.timing import Report, Seconds
from jaxfl.aggregators import Mean
from jaxfl.clients import Samples
from jaxfl.devices import compile_for, copy_to, map_clients
from jaxfl.models import Model, SignGuardCNN
from jaxfl.models.objective import Factory, Objective
from jaxfl.models.per_example import uses_ghost_norms
from jaxfl.numerics.noise import normal
from jaxfl.plan import make_plan
from jaxfl.privacy import CentralPrivacy, ExamplePrivacy, MessagePrivacy, Privacy
from jaxfl.types import Batch, PyTree

NOISE, CLIP, MICROBATCH = 1.0, 1.0, 16
NETWORKS: dict[str, Model] = MODELS | {"cnn": SignGuardCNN(dropout=0.0)}
IMAGE, CLASSES = (28, 28, 1), 10
FIXED = ExamplePrivacy(noise_multiplier=NOISE, clip=CLIP, sampling="fixed")
POISSON = FIXED.replace(sampling="poisson")
PLAIN, EXAMPLE, PADDED = "plain", "example", "example, Poisson"
WHOLE = f"example, whole gradients of {MICROBATCH}"
ALONE = "noise alone: n x d normals"
OWN: dict[str, Privacy | None] = {
    PLAIN: None,
    EXAMPLE: FIXED,
    PADDED: POISSON,
    WHOLE: FIXED.replace(microbatch=MICROBATCH),
    "message": MessagePrivacy(noise_multiplier=NOISE, clip=CLIP),
    "central": CentralPrivacy(noise_multiplier=NOISE, clip=CLIP),
}
RIVALS = (LOOP, HOOKS, GHOST)
DRAWS = {ALONE: normal, "noise alone, by jax.random": jax.random.normal}
GOALS = {"cnn": 2.0, "mlp": 1.3}
"""Times the plain round that one with privacy of examples may take."""
MISSING = "not installed: pip install jaxfl[peers]"


def network(model: str, name: str) -> Model | Factory:
    return functools.partial(_disguised, NETWORKS[model]) if name == WHOLE else NETWORKS[model]


def _disguised(model: Model, rngs: nnx.Rngs) -> nnx.Module:
    """Its layers compute as ever, but not by a function that ghost norms know."""
    module = model.build(IMAGE, CLASSES, rngs)
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.Linear | nnx.Conv):
            layer.promote_dtype = _promote
    return module


def _promote(*arguments: Any, **options: Any) -> Any:
    return promote_dtype(*arguments, **options)


def objective_of(model: str, name: str) -> Objective:
    objective = Objective.of(network(model, name), IMAGE, CLASSES)
    ghost = uses_ghost_norms(objective, jax.ShapeDtypeStruct(IMAGE, jnp.float32))
    if ghost != (name != WHOLE):
        raise AssertionError(f"{model}, {name}: uses_ghost_norms is {ghost}")
    return objective


def client_gradient(objective: Objective, privacy: ExamplePrivacy | None) -> Any:
    """A compiled function of flat parameters, statistics, a batch and a key."""
    if privacy is not None:
        objective = privacy.objective(objective, jnp.int32(BATCH), BATCH)

    def gradient(params: jax.Array, statistics: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        tree = objective.unravel(params)
        return ravel_pytree(objective.value_and_grad(tree, statistics, batch, key)[1])[0]

    return jax.jit(gradient)


def without_noise(model: str, name: str, clip: float) -> Any:
    return client_gradient(
        objective_of(model, name), FIXED.replace(noise_multiplier=0.0, clip=clip)
    )


def memory(model: str) -> Report:
    """Of one client's gradient; the batch ten times as large shows what grows with it."""
    plain, whole = objective_of(model, PLAIN), objective_of(model, WHOLE)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, statistics = jax.eval_shape(plain.init, key)
    sizes = (BATCH, 10 * BATCH)
    head = [f"{unit}, batch {size}" for unit in ("MB", "x plain") for size in sizes]
    title = f"{model}, d = {plain.dim:,}: temporary memory of one client's compiled gradient"
    report = Report(title, ("gradient", *head, "a microbatch of whole gradients, MB"))
    ways: list[tuple[str, Any, str]] = [
        ("plain", client_gradient(plain, None), "-"),
        ("example, ghost norms", client_gradient(plain, FIXED), "-"),
        (
            f"example, ghost norms, microbatches of {MICROBATCH}",
            client_gradient(plain, FIXED.replace(microbatch=MICROBATCH)),
            "-",
        ),
    ]
    for size in (1, 4, 16, 50):
        run = client_gradient(whole, FIXED.replace(microbatch=size))
        label = f"example, whole gradients of {size}"
        ways.append((label, run, f"{size * plain.dim * plain.dtype.itemsize / 1e6:.2f}"))
    reference: list[int] = []
    for label, run, gradients in ways:
        taken = []
        for size in sizes:
            empty = Batch(jnp.zeros((size, *IMAGE)), jnp.zeros(size, int), jnp.ones(size, bool))
            compiled = run.lower(params, statistics, empty, key).compile()
            taken.append(compiled.memory_analysis().temp_size_in_bytes)
        reference = reference or taken
        ratios = (f"{a / b:.2f}" for a, b in zip(taken, reference, strict=True))
        report.rows.append((label, *(f"{x / 1e6:.2f}" for x in taken), *ratios, gradients))
    return report


def slots(case: Case) -> int:
    """Examples that a Poisson batch has room for."""

    def batch(key: jax.Array) -> Batch:
        samples = Samples(jnp.int32(case.samples), lambda i, m, _: Batch(i, i, m), case.samples)
        return POISSON.samples(samples).batch(0, BATCH, key, key)

    return jax.eval_shape(batch, jax.random.key(0)).mask.shape[0]


def ready(case: Case, name: str, devices: int) -> tuple[Callable[[], Any], int, int]:
    """What to call, how many rounds that is, and how many clients it takes at once."""
    if name in RIVALS:
        return private_peers.Clients(case, name, noise=NOISE, clip=CLIP, threads=devices), 1, 1
    data, parts = federated(case), federation(Mean()).replace(privacy=OWN.get(name))
    plan = make_plan(parts, data, network(case.model, name))
    if name in OWN:
        block = rounds_of(parts, plan, data, case.rounds, devices=devices)
        return block, case.rounds, plan.chunk

    def normals(keys: jax.Array) -> jax.Array:
        def one(_: PyTree, key: jax.Array) -> jax.Array:
            return DRAWS[name](key, (plan.spec.dim,), jnp.dtype(jnp.float32))

        return map_clients(one, (), keys, chunk=chunk)

    chunk = 1 if jax.default_backend() == "cpu" else case.clients  # one fits a CPU's caches
    on = jax.devices()[:devices]
    keys = copy_to(jax.random.split(jax.random.key(0), case.clients), on)
    return functools.partial(compile_for(normals, devices=on), keys), 1, chunk


def peak_memory(case: Case, name: str, devices: int) -> int:
    """Runs in a process of its own: the most memory that two calls take."""
    timing.a_device_per_core()
    run, *_ = ready(case, name, devices)
    jax.block_until_ready((run(), run()))
    return timing.peak_bytes()


def peaks(case: Case, theirs: tuple[str, ...]) -> Report:
    """Of whole rounds, each in a fresh process."""
    report = Report(f"{case.model}, {case.clients} clients: peak memory", ("what", "GB"))
    for name, devices in [(name, jax.device_count()) for name in OWN] + [(r, 1) for r in theirs]:
        peak = timing.in_fresh_process(peak_memory, case, name, devices)
        report.rows.append((name, f"{peak / 1e9:.2f}"))
    return report


def times(case: Case, theirs: tuple[str, ...]) -> tuple[Report, tuple[str, ...]]:
    """Every way of the round, and the row of the table of goals."""
    every, threads = sorted({1, jax.device_count()}), sorted({1, timing.cores()})
    ways = [(name, n) for name in [*OWN, *DRAWS] for n in every]
    ways += [(r, n) for r in theirs for n in threads]
    made = {way: ready(case, *way) for way in ways}
    runs = {str(way): run for way, (run, _, _) in made.items()}
    found = timing.interleaved(runs, case.repeats)
    seconds: dict[tuple[str, int], Seconds] = {w: found[str(w)].per(made[w][1]) for w in ways}
    title = f"{case.model}, {case.clients} clients: noise multiplier {NOISE:g}, clip {CLIP:g}"
    header = ("what", "devices or threads", "ms a round", "median", "images/s")
    header = (*header, "x plain (of medians)", "hooks / this", "ghost / this")
    header = (*header, "clients at once", "compile s")
    report = Report(title, header)
    for (name, devices), time in seconds.items():
        label = f"{name}, {slots(case)} slots" if name == PADDED else name
        foreign = name in RIVALS
        base = seconds[LOOP if foreign else PLAIN, devices]
        row = (f"{1e3 * time.best:.2f}", f"{1e3 * time.median:.2f}")
        row += ("-" if name in DRAWS else f"{case.images / time.best:,.0f}",)
        row += (f"{time.best / base.best:.2f} ({time.median / base.median:.2f})",)
        for rival in (HOOKS, GHOST):
            best = min((seconds[rival, n].best for n in threads if rival in theirs), default=None)
            row += (f"{best / time.best:.2f}" if best else "-",)
        _, rounds, chunk = made[name, devices]
        row += (str(chunk), "-" if foreign else f"{time.first - rounds * time.best:.1f}")
        report.rows.append((label, str(devices), *row))
    for name in RIVALS:
        if name not in theirs:
            report.rows.append((name, MISSING, *["-"] * 8))
    ceiling = timing.gemm_rate(case.repeats) / operations(case.model)
    row = ("GEMM ceiling, plain", "-", f"{1e3 * case.images / ceiling:.2f}", "-", f"{ceiling:,.0f}")
    report.rows.append((*row, *["-"] * 5))
    three = (PLAIN, EXAMPLE, ALONE)
    plain, private, noise = ([seconds[name, n].best for n in every] for name in three)
    ratios = [a / b for a, b in zip(private, plain, strict=True)]
    ratios = [ratios[0], ratios[-1], min(private) / min(plain), min(noise) / min(plain)]
    goal = GOALS[case.model]
    verdict = "met" if ratios[2] < goal else "missed"
    return report, (case.model, *(f"{x:.2f}" for x in ratios), f"< {goal:g}", verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description="What privacy costs, with and without Opacus.")
    parser.add_argument("--quick", action="store_true", help="5 clients, no peaks: to see it run")
    parser.add_argument("--model", choices=sorted(GOALS), help="only this one")
    parser.add_argument("--repeats", type=int, help="of every way; 7, or 2 if quick")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    console, quick = Console(width=200, markup=False), arguments.quick
    timing.a_device_per_core()
    machine = timing.describe_machine()
    torch, opacus = (timing.installed(package) for package in ("torch", "opacus"))
    machine["opacus"] = version("opacus") if opacus else "not installed"
    theirs = RIVALS if torch and opacus else (LOOP,) if torch else ()
    if HOOKS not in theirs:
        console.print(f"PyTorch or Opacus {MISSING}; their rows and the check are left out")
    header = ("model", "one device", "all devices", "fastest over fastest", "noise alone")
    title = "Privacy of examples in batches of one size: times the plain round"
    reports = [goals := Report(title, (*header, "goal", "verdict"))]
    for model in [arguments.model] if arguments.model else GOALS:
        clients, rounds, repeats = (5, 2, 2) if quick else (50, {"cnn": 5, "mlp": 10}[model], 7)
        case = Case(model, clients, rounds, arguments.repeats or repeats)
        if HOOKS in theirs:
            console.print(f"{model}: equality ...")
            ours = {n: functools.partial(without_noise, model, n) for n in (EXAMPLE, WHOLE)}
            reports.append(private_peers.check(case, objective_of(model, EXAMPLE), ours))
        console.print(f"{model}: rounds ...")
        report, row = times(case, theirs)
        goals.rows.append(row)
        reports.append(report)
        # What is measured stays, whatever follows.
        timing.write(arguments.out, "privacy", machine, reports)
        console.print(f"{model}: memory ...")
        reports.append(memory(model))
        if not quick:
            reports.append(peaks(case, theirs))
        timing.write(arguments.out, "privacy", machine, reports)
    for report in reports:
        report.show(console)
    console.print("\n".join(f"{name}: {fact}" for name, fact in machine.items()))


if __name__ == "__main__":
    main()

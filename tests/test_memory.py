"""The estimate of a run's memory is that of the program which XLA compiles, and what follows."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import (
    ALIE,
    IPM,
    NNM,
    SCAFFOLD,
    SGD,
    CenteredClipping,
    CentralPrivacy,
    Ditto,
    FangTrim,
    Federation,
    FedSGD,
    FoolsGold,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MessagePrivacy,
    MinMax,
    Pipeline,
    SignGuard,
    Simulation,
    TrimmedMean,
    Uniform,
    make_plan,
)
from jaxfl.data import IID, from_arrays
from jaxfl.liveness import live_bytes
from jaxfl.machine import PROGRAM_BYTES, process_memory
from jaxfl.memory import estimate
from jaxfl.models import MLP, SignGuardCNN, Softmax
from jaxfl.plan import suitable_plan

DENSE, CONVOLUTIONS = MLP(hidden=(128,)), SignGuardCNN()
PIPELINE = Pipeline(pre=(NNM(f=10),), rule=TrimmedMean(f=10))
FEW = {
    "noised": (DENSE, 100, {"privacy": MessagePrivacy(clip=1.0, noise_multiplier=1.0)}),
    "controls": (DENSE, 100, {"algorithm": SCAFFOLD(steps=5, batch_size=10)}),
}
MANY = {
    "mixed": (DENSE, 50, {"aggregator": PIPELINE, "attack": ALIE(z=1.0), "byzantine": 10}),
    "seeds": (DENSE, 50, {"aggregator": Median(), "attack": ALIE(z=1.0), "byzantine": 10}, 3),
    "convolutions": (CONVOLUTIONS, 200, {"aggregator": GeometricMedian()}),
    "searching": (
        CONVOLUTIONS,
        50,
        {"aggregator": SignGuard(), "attack": MinMax(), "byzantine": 10},
    ),
    "sorting": (DENSE, 1000, {"aggregator": Median(), "attack": ALIE(z=1.0), "byzantine": 200}),
    "extremes": (DENSE, 1000, {"aggregator": Median(), "attack": FangTrim(), "byzantine": 200}),
    "distances": (DENSE, 1000, {"aggregator": Krum(f=200), "attack": IPM(), "byzantine": 200}),
    "remembering": (DENSE, 500, {"aggregator": FoolsGold()}),
    "sampled": (DENSE, 10_000, {"participation": Uniform(fraction=0.1)}),
    "mean of 10,000": (DENSE, 10_000, {"aggregator": Mean()}),
    "clipping of 10,000": (
        DENSE,
        10_000,
        {"aggregator": CenteredClipping(), "attack": IPM(), "byzantine": 2000},
    ),
    "distances of 10,000": (Softmax(), 10_000, {"aggregator": Krum(f=10)}),
    "mean of bfloat16": (DENSE, 200, {"aggregator": Mean()}, 1, "bfloat16"),
    "distances of bfloat16": (DENSE, 200, {"aggregator": Krum(f=40)}, 1, "bfloat16"),
}


def data(clients, samples=20):
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (clients * samples, 28, 28, 1), dtype=np.uint8)
    labels = (np.arange(clients * samples) % 10).astype(np.int32)
    return from_arrays(inputs, labels, inputs[:100], labels[:100]).split(IID(), clients)


def federation(**parts):
    return Federation(
        **({"algorithm": FedSGD(batch_size=20), "optimizer": SGD(learning_rate=0.1)} | parts)
    )


def compiled_bytes(simulation):
    """What XLA says of a block of rounds: arguments, results not in their place, temporaries."""
    given = simulation.federation, simulation.data, simulation.state
    program = jax.jit(simulation.block(5), donate_argnums=2).lower(*given).compile()
    said = program.memory_analysis()
    assert said is not None
    return (
        said.argument_size_in_bytes
        + said.output_size_in_bytes
        - said.alias_size_in_bytes
        + said.temp_size_in_bytes
    )


def compare(model, clients, parts, runs=1, storage="auto"):
    simulation = Simulation(
        federation(**parts), data(clients), model, seeds=range(runs), storage=storage
    )
    needed = estimate(simulation.federation, simulation.plan, simulation.data, runs=runs)
    assert 0.75 < needed.block / compiled_bytes(simulation) < 1.25
    assert needed.peak >= needed.block > needed.updates > 0


# These hold whichever compiler is asked for, of what a round keeps alive: checked in every run of
# the suite with the quickest one. Those below are compiled as for users, in `make test-all`.
@pytest.mark.parametrize("name", FEW)
def test_the_estimate_is_that_of_the_compiled_program(name):
    compare(*FEW[name])


@pytest.mark.default_compiler
@pytest.mark.parametrize("name", MANY)
def test_the_estimate_is_that_of_the_compiled_program_from_50_clients_to_10_000(name):
    compare(*MANY[name])


@pytest.mark.default_compiler
@pytest.mark.parametrize("together", [1, 2])
def test_the_estimate_of_runs_in_turn_is_that_of_the_compiled_program(monkeypatch, together):
    def plan(*given, **settings):
        return dataclasses.replace(make_plan(*given, **settings), together=together)

    monkeypatch.setattr("jaxfl.simulation.make_plan", plan)
    compare(DENSE, 200, {"aggregator": Median()}, runs=4)


def evaluation_bytes(simulation):
    """What XLA says of an evaluation's temporaries."""
    program = jax.jit(lambda d, s: simulation._evaluation(d, s))
    said = program.lower(simulation.data, simulation.state).compile().memory_analysis()
    assert said is not None
    return said.temp_size_in_bytes


@pytest.mark.default_compiler
@pytest.mark.parametrize("model", [DENSE, CONVOLUTIONS])
def test_the_estimate_of_an_evaluation_is_that_of_the_compiled_program(model):
    simulation = Simulation(federation(), data(50), model)
    needed = estimate(simulation.federation, simulation.plan, simulation.data)
    assert 0.7 < needed.evaluation / evaluation_bytes(simulation) < 1.3


@pytest.mark.parametrize("algorithm", [FedSGD(batch_size=10), Ditto(batch_size=10)])
def test_clients_accuracy_copies_no_samples_and_is_in_the_estimate(algorithm):
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(2000, 500)), np.arange(2000) % 10
    found = from_arrays(inputs.astype("f4"), labels, inputs[:100].astype("f4"), labels[:100])
    parts, clients = federation(algorithm=algorithm), found.split(IID(), 20)
    simulation = Simulation(parts, clients, Softmax(), client_accuracy=True)
    taken = evaluation_bytes(simulation)
    assert taken < inputs.size * 4 / 2
    plain, asked = (
        estimate(parts, simulation.plan, clients, client_accuracy=which).evaluation
        for which in (False, True)
    )
    assert plain < asked
    assert 0.5 < asked / taken < 2


# ------------------------------------------------------------------ what the estimate is made of


def live(function, *shapes, donated=()):
    """In numbers of float32."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return live_bytes(function, *arrays, platform="cpu", donated=donated) / 4


def test_elementwise_work_fuses_into_its_reader():
    assert live(lambda x: jnp.sum(jnp.square(x) + 1, axis=1), (100, 50)) == 100
    # A product of matrices reads its operand from memory.
    assert live(lambda x: jnp.square(x) @ x.T, (100, 50)) == 100 * 50 + 100 * 100


def test_an_axis_of_one_takes_no_memory():
    def sums(x):
        one = x[None]
        return jax.lax.map(lambda i: jnp.sum(one[0, i]), jnp.arange(100))

    assert live(sums, (100, 50)) < 500


def test_values_die_with_their_last_reader():
    def chain(x):
        for _ in range(5):
            x = x @ x
        return x

    assert live(chain, (30, 30)) == 2 * 900
    assert live(lambda x: chain(x) + x, (30, 30)) == 2 * 900


def test_what_is_donated_is_overwritten():
    def rewrite(x):
        return x.at[3].set(1.0)

    assert live(rewrite, (100, 50)) >= 5000
    assert live(rewrite, (100, 50), donated=(0,)) < 100
    assert live(lambda x: x + 1, (100, 50), donated=(0,)) == 0

    def here(x):
        return jax.lax.platform_dependent(x, cpu=rewrite, default=jnp.cos)

    assert live(here, (100, 50), donated=(0,)) < 100
    turned = live(lambda x: jnp.cumsum(x.T, axis=0), (100, 50), donated=(0,))
    assert turned >= 5000  # no place to turn it in


def test_loops_stack_what_they_answer_and_overwrite_what_they_carry():
    def body(carry, _):
        total = jnp.sum(carry, axis=0)
        return carry * 2, total

    def loop(x):
        return jax.lax.scan(body, x, None, length=10)

    assert live(loop, (100, 50), donated=(0,)) == pytest.approx(10 * 50, abs=60)
    assert live(loop, (100, 50)) == pytest.approx(10 * 50 + 5000, abs=60)
    assert live(lambda x: jax.lax.map(lambda r: jnp.outer(r, r) @ r, x), (7, 50)) == 7 * 50 + 2550


def test_of_branches_the_largest_counts_and_of_platforms_the_one_that_runs():
    def large(x):
        return jnp.sum((x @ x.T) @ x)

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, large, jnp.sum, x)

    def platform(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sum, default=large)

    assert live(branch, (100, 50)) == pytest.approx(100 * 100 + 5000, abs=10)
    assert live(platform, (100, 50)) < 10
    shape = jax.ShapeDtypeStruct((100, 50), jnp.float32)
    assert live_bytes(platform, shape, platform="cuda") > 4 * 10_000


def test_updates_are_a_matrix_or_half_of_it_or_a_chunk():
    parts, clients = federation(attack=IPM(), byzantine=4), data(20)
    whole, half, streamed = (
        estimate(parts, make_plan(parts, clients, Softmax(), client_chunk=5, storage=way), clients)
        for way in ("matrix", "bfloat16", "stream")
    )
    assert whole.updates == 20 * 7850 * 4
    assert half.updates == 20 * 7850 * 10, "on a CPU"
    assert streamed.updates == 5 * 7850 * 4


def test_updates_in_bfloat16_take_half_the_bytes_but_on_a_cpu(monkeypatch):
    of_platform(monkeypatch, "cuda")
    parts, clients = federation(), data(20)
    plan = make_plan(parts, clients, Softmax(), storage="bfloat16")
    assert estimate(parts, plan, clients).updates == 20 * 7850 * 2


def test_a_streamed_chunk_holds_its_rows(monkeypatch):
    """And has the fewer clients for it."""
    parts, clients = federation(algorithm=FedSGD(batch_size=10)), data(50, samples=10)
    plans = {way: make_plan(parts, clients, DENSE, storage=way) for way in ("matrix", "stream")}
    row = 4 * plans["stream"].spec.dim
    asked = []
    monkeypatch.setattr("jaxfl.plan.choose_chunk", lambda _, size, __: asked.append(size) or 1)
    for way in plans:
        make_plan(parts, clients, DENSE, storage=way)
    assert asked[1] - asked[0] == row
    assert plans["stream"].chunk < plans["matrix"].chunk


def test_devices_of_a_processor_have_a_copy_of_the_data_each():
    parts, clients = federation(), data(20)
    plan = make_plan(parts, clients, Softmax(), client_chunk=5)
    one, two = (estimate(parts, plan, clients, devices=n) for n in (1, 2))
    assert (two.data, two.state) == (2 * one.data, 2 * one.state)
    assert two.updates == 2 * one.updates


# ------------------------------------------------------------------ what follows from it


def of_platform(monkeypatch, platform):
    """Plans are of a device of this kind."""
    device = types.SimpleNamespace(platform=platform, memory_stats=dict)
    monkeypatch.setattr("jaxfl.memory.device_of", lambda _: device)


def memory_is(monkeypatch, size):
    monkeypatch.setattr("jaxfl.memory.memory_of_device", lambda _: int(size))


def test_the_chunk_shrinks_until_the_run_fits(monkeypatch):
    parts, clients = federation(), data(64)
    plan = make_plan(parts, clients, DENSE)
    assert plan.chunk > 8
    at = {n: estimate(parts, dataclasses.replace(plan, chunk=n), clients).peak for n in (2, 4, 16)}
    assert at[2] < at[4] < at[16]
    memory_is(monkeypatch, at[4])
    fitted = make_plan(parts, clients, DENSE)
    assert fitted.chunk <= 4
    assert estimate(parts, fitted, clients).peak <= at[4]
    with pytest.raises(ValueError, match=r"16 client.s. at once.*a smaller client_chunk"):
        make_plan(parts, clients, DENSE, client_chunk=16)


def test_a_run_that_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    parts = federation(aggregator=Median())
    memory_is(monkeypatch, 192 * 2**20)
    message = (
        r"memory: 101,770 parameters times 9 runs, 1 at once, need at least 208\.8 MiB \(updates "
        r"of 500 clients 194\.1 MiB.*more than the device's 192\.0 MiB; what helps: fewer clients "
        r"per round \(participation\), fewer seeds"
    )
    with pytest.raises(ValueError, match=message):
        make_plan(parts, data(500), DENSE, runs=9, turns=True)
    with pytest.raises(ValueError, match=r"times 9 runs, need at least 1\.7 GiB"):
        make_plan(parts, data(500), DENSE, runs=9)


def test_a_smaller_chunk_is_named_where_chunks_take_much(monkeypatch):
    """Of updates alone 200 MiB do not fit; of a stream they are a chunk's, and shrink with it."""
    memory_is(monkeypatch, 8 * 2**20)
    for storage, named in (("matrix", False), ("stream", True)):
        with pytest.raises(ValueError, match="need") as refused:
            make_plan(federation(), data(500), DENSE, client_chunk=50, storage=storage)
        assert ("client_chunk" in str(refused.value)) == named


def test_runs_that_do_not_fit_together_take_turns(monkeypatch):
    parts, clients = federation(aggregator=Median()), data(500)
    memory_is(monkeypatch, 8 * 2**30)
    assert make_plan(parts, clients, DENSE, runs=9, turns=True).together is None
    memory_is(monkeypatch, 1.5 * 2**30)
    plan = make_plan(parts, clients, DENSE, runs=9, turns=True)
    assert plan.together in (1, 3), "no remainder"
    needed = estimate(parts, plan, clients, runs=9)
    assert needed.peak <= 1.5 * 2**30
    assert needed.updates == plan.together * 500 * 101_770 * 4


CENTRAL = CentralPrivacy(clip=1.0, noise_multiplier=1.0)
STREAMED, HALVED = 'storage = "stream"', 'storage = "bfloat16" (half the bytes of updates)'


@pytest.mark.parametrize(
    ("parts", "storage", "named"),
    [
        ({"aggregator": Mean()}, "matrix", STREAMED),
        ({"aggregator": Mean()}, "bfloat16", STREAMED),
        ({"aggregator": SignGuard(), "attack": ALIE(z=1.0)}, "matrix", STREAMED),
        ({"aggregator": SignGuard(), "attack": MinMax()}, "matrix", HALVED),
        ({"aggregator": Median()}, "auto", HALVED),
        ({"aggregator": Median()}, "bfloat16", None),
        # Its aggregate must not be rounded before the noise.
        ({"aggregator": Median(), "privacy": CENTRAL}, "matrix", None),
        ({"aggregator": Mean()}, "stream", None),
    ],
)
def test_a_refusal_names_the_storage_that_would_hold_less(monkeypatch, parts, storage, named):
    parts, clients = federation(byzantine=9, **parts), data(500)
    memory_is(monkeypatch, 2**23)
    if named == HALVED:
        with pytest.raises(ValueError, match="memory:") as refused:
            make_plan(parts, clients, DENSE, storage=storage)
        assert "storage" not in str(refused.value), "on a CPU"
        of_platform(monkeypatch, "cuda")
    with pytest.raises(ValueError, match="memory: 101,770 parameters need") as refused:
        make_plan(parts, clients, DENSE, storage=storage)
    assert [word for word in (STREAMED, HALVED) if word in str(refused.value)] == (
        [named] if named else []
    )
    if named:  # and a plan takes it
        kind = named.split('"')[1]
        assert suitable_plan(parts, clients, DENSE, storage=kind).storage == kind


def test_storage_is_not_named_where_updates_are_a_small_part(monkeypatch):
    memory_is(monkeypatch, 2**20)
    of_platform(monkeypatch, "cuda")
    with pytest.raises(ValueError, match="need at least") as refused:
        make_plan(federation(aggregator=Median()), data(3), DENSE)
    assert HALVED in str(refused.value)
    with pytest.raises(ValueError, match="data") as refused:
        make_plan(federation(aggregator=Median()), data(3, 20_000), DENSE)
    assert "storage" not in str(refused.value)


def test_nothing_is_traced_where_there_is_plenty(monkeypatch):
    monkeypatch.setattr("jaxfl.memory.estimate", lambda *_, **__: pytest.fail("traced"))
    make_plan(federation(), data(20), DENSE)


def test_where_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("jaxfl.memory.memory_of_device", lambda _: None)
    assert make_plan(federation(), data(20), DENSE).chunk == 20


# ------------------------------------------------------------------ what the machine has


def machine(root, available, held, groups="", limits=types.MappingProxyType({})):
    for name, text in {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available} kB\n",
        "proc/self/status": f"Name: x\nVmRSS: {held} kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{path}": f"{limit}\n" for path, limit in limits.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return process_memory(root)


@pytest.mark.parametrize(
    ("groups", "limits", "least"),
    [
        ("", {}, 10),
        ("0::/job/task", {"job/task/memory.max": "max", "job/memory.max": 4 * 2**30}, 4),
        ("0::/not/seen/here", {"memory.max": 3 * 2**30}, 3),
        ("3:cpu:/x\n2:memory:/x", {"memory/x/memory.limit_in_bytes": 5 * 2**30}, 5),
        ("2:memory:/x", {"memory/memory.limit_in_bytes": 2**63 - 4096}, 10),
        # 5 GiB are taken, of which files may be dropped and 2 are this process's own.
        ("0::/a", {"a/memory.max": 8 * 2**30, "a/memory.current": 5 * 2**30}, 5),
        (
            "0::/a",
            {
                "a/memory.max": 8 * 2**30,
                "a/memory.current": 5 * 2**30,
                "a/memory.stat": f"active_file {2**29}\ninactive_file {2**29}",
            },
            6,
        ),
        (
            "2:memory:/x",
            {
                "memory/x/memory.limit_in_bytes": 8 * 2**30,
                "memory/x/memory.usage_in_bytes": 5 * 2**30,
                "memory/x/memory.stat": f"inactive_file 7\ntotal_inactive_file {2**30}",
            },
            6,
        ),
        ("0::/a", {"a/memory.max": 8 * 2**30, "a/memory.current": 2**30}, 8),
    ],
)
def test_memory_is_what_the_machine_and_the_control_group_leave(tmp_path, groups, limits, least):
    """Of 8 GiB that are free and 2 that this process holds already."""
    found = machine(tmp_path, 8 * 2**20, 2 * 2**20, groups, limits)
    assert found == least * 2**30 - PROGRAM_BYTES


def test_without_linux_s_files_memory_is_the_whole_machine_s(tmp_path):
    found = process_memory(tmp_path)
    assert found is None or found > 2**30

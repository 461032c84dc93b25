"""Profiles of real rounds: their sum, their counts, their trace, what they refuse."""

import gzip
import json
import re
import time

import jax
import numpy as np
import pytest

import jaxfl
from jaxfl import ALIE, NNM, FedSGD, MessagePrivacy, Pipeline, TrimmedMean
from jaxfl.data import IID, from_arrays
from jaxfl.models import MLP, SignGuardCNN, Softmax
from jaxfl.profiling import Peaks, Profile, Scaling, machine_peaks, measuring, profile, scaling
from jaxfl.profiling import peaks as peaks_module
from jaxfl.profiling.costs import OTHER, PHASES, phase_of
from jaxfl.simulation import Simulation

CLIENTS, BATCH, FEATURES, HIDDEN, CLASSES = 24, 20, 64, 32, 4
ROUNDS = 3
PEAKS = Peaks(device="test", cores=1, flops=1e11, bytes=1e10)


def divided(clients=CLIENTS, samples=BATCH, shape=(FEATURES,), classes=CLASSES):
    rng = np.random.default_rng(0)
    count = clients * samples
    inputs = rng.normal(size=(count, *shape)).astype("f4")
    labels = np.arange(count) % classes
    return from_arrays(inputs, labels, inputs[:40], labels[:40]).split(IID(), clients)


def parts(**changes):
    return {
        "model": MLP(hidden=(HIDDEN,)),
        "data": divided(),
        "algorithm": FedSGD(batch_size=BATCH),
        "attack": ALIE(),
        "aggregator": Pipeline(pre=(NNM(f=2),), rule=TrimmedMean(f=2)),
        "byzantine": 2,
        "client_chunk": 8,
        "peaks": PEAKS,
    } | changes


@pytest.fixture(scope="module", autouse=True)
def brief():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "BRIEF", 0.2)
        # On a busy machine all that a short program takes could be taken for recording it.
        patch.setattr(measuring, "RECORDING", 1e-7)
        yield


@pytest.fixture(scope="module")
def simulation():
    given = parts()
    model, data, chunk = given.pop("model"), given.pop("data"), given.pop("client_chunk")
    del given["peaks"]
    return Simulation(jaxfl.Federation(**given), data, model, client_chunk=chunk)


@pytest.fixture(scope="module")
def found(simulation, tmp_path_factory):
    """A profile of few calls, its folder, and the simulation's state before and after."""
    folder = tmp_path_factory.mktemp("trace") / "made"
    before = jax.tree.map(np.asarray, simulation.state.replace(key=()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "REPEATS", 1)
        patch.setattr(measuring, "BRIEF", 0.0)
        result = profile(simulation, rounds=ROUNDS, trace=folder, peaks=PEAKS)
    after = jax.tree.map(np.asarray, simulation.state.replace(key=()))
    return result, folder, before, after


def test_all_phases_are_there_in_order_and_take_time(found):
    result = found[0]
    assert [phase.name for phase in result.phases] == [*PHASES, OTHER]
    silent = {phase.name for phase in result.phases if phase.seconds == 0}
    assert silent <= {"privacy", "server", "record"}  # no mechanism; and what is too short here
    assert result.phase("privacy").bytes == 0
    with pytest.raises(KeyError):
        result.phase("training")


def test_flops_of_a_dense_model_by_hand(found):
    result = found[0]
    images = CLIENTS * BATCH
    # Forward and the weights' gradient, of all layers; the inputs' gradient, not of the first.
    weights = FEATURES * HIDDEN + HIDDEN * CLASSES
    products = 2 * images * (2 * weights + HIDDEN * CLASSES)
    # The rest are biases, activations, the loss: some operations for each unit of each image.
    units = images * (FEATURES + HIDDEN + CLASSES)
    assert products < result.phase("local work").flops < products + 12 * units
    # Squared distances of NNM are an inner product of each pair; it is measured once.
    d = result.parameters
    assert d == weights + HIDDEN + CLASSES
    assert 2 * CLIENTS**2 * d < result.phase("pre-aggregation").flops < 5 * CLIENTS**2 * d


@pytest.mark.default_compiler  # of times: a busy machine may say anything
def test_the_phases_make_up_the_round():
    result = profile(**parts(), rounds=10)
    inside = result.phase(OTHER).seconds
    assert inside < 0.1 * result.total
    # So small a block is not much longer than calling it.
    assert 0.6 * result.seconds < result.total < 1.1 * result.seconds


def test_a_profile_is_plain_data(found):
    result = found[0]
    rows = result.table()
    assert [row["phase"] for row in rows] == [*PHASES, OTHER, "whole round"]
    work = rows[1]
    np.testing.assert_allclose(work["flops_per_second"] * work["seconds"], work["flops"])
    np.testing.assert_allclose(work["share_of_peak_bytes"] * 1e10, work["bytes_per_second"])
    read = json.loads(json.dumps(result.to_json()))
    assert read["phases"] == rows[:-1]
    assert read["whole"]["seconds"] == result.seconds
    assert read["peaks"]["device"] == "test"
    assert (read["clients"], read["chunk"], read["rounds"]) == (CLIENTS, 8, ROUNDS)
    # The update matrix and the state at least.
    assert result.memory > 4 * CLIENTS * result.parameters
    assert result.compile_seconds > 0


def test_a_trace_reads_back_and_shows_the_phases(found):
    folder = found[1]
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    events = trace["traceEvents"]
    rows = {e["args"]["name"]: e["pid"] for e in events if e.get("name") == "process_name"}
    shown = [e for e in events if e["pid"] == rows["phases"] and e["ph"] == "X"]
    assert {"local work", "attack", "aggregation", "pre-aggregation"} <= {e["name"] for e in shown}
    # The profiler's own events are there too, and at the same times.
    others = [e for e in events if e["pid"] != rows["phases"] and e["ph"] == "X"]
    first, last = shown[0]["ts"], shown[-1]["ts"] + shown[-1]["dur"]
    within = [e for e in others if first - 1 <= e["ts"] <= last]
    assert len(within) > len(shown)


@pytest.mark.parametrize("order", ["noise_then_attack", "attack_then_noise"])
def test_every_phase_is_a_scope_of_the_round(order):
    given = parts(privacy=MessagePrivacy(clip=1.0, noise_multiplier=1.0), noise_order=order)
    model, data = given.pop("model"), given.pop("data")
    del given["client_chunk"], given["peaks"]
    simulation = Simulation(jaxfl.Federation(**given), data, model)
    lowered = jax.jit(simulation.block(1)).lower(
        simulation.federation, simulation.data, simulation.state
    )
    scopes = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
    assert {phase_of(path) for path in scopes} >= {*PHASES} - {"evaluation"}
    evaluated = jax.jit(simulation._evaluation).lower(simulation.data, simulation.state)
    scopes = re.findall(r'loc\("([^"]*)"', evaluated.as_text(debug_info=True))
    assert {phase_of(path) for path in scopes} - {None} == {"evaluation"}


def test_a_simulation_is_left_as_it_was(found, simulation):
    result, _, before, after = found
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert result.clients == CLIENTS
    with pytest.raises(ValueError, match="give a simulation or its parts; got both, byzantine"):
        profile(simulation, byzantine=1)


def test_what_cannot_be_profiled_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a simulation, or model and data"):
        profile()
    with pytest.raises(ValueError, match="rounds must be"):
        profile(**parts(), rounds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"trace: the folder .*file/x cannot be written: Not a"):
        profile(**parts(), trace=tmp_path / "file" / "x")
    with pytest.raises(ValueError, match="clients must be"):
        scaling(lambda n: None, [10, 0])
    with pytest.raises(ValueError, match="needs at least one number"):
        scaling(lambda n: None, [])
    with pytest.raises(ValueError, match="rounds must be an integer, at least 1; got 0"):
        scaling(lambda n: None, [4], rounds=0)

    def refuse(n):
        raise ValueError("Krum needs n >= 2f + 3 clients; got n = 4, f = 2")

    with pytest.raises(ValueError, match="4 clients cannot be profiled: Krum needs"):
        scaling(refuse, [4])


def test_the_exponent_of_a_power_law():
    clients = (10, 100, 1000)
    grown = Scaling(clients, tuple(3 * n**1.25 for n in clients), tuple(7 * n for n in clients))
    assert abs(grown.exponent - 1.25) < 1e-9
    assert abs(grown.memory_exponent - 1) < 1e-9
    assert np.isnan(Scaling((10,), (1.0,), (5,)).exponent)
    row = grown.table()[1]
    np.testing.assert_allclose(row["rounds_per_second"] * row["seconds"], 1)
    np.testing.assert_allclose(row["clients_per_second"], 100 * row["rounds_per_second"])


@pytest.mark.slow
def test_scaling_measures_each_number_of_clients():
    def simulation_of(n):
        return Simulation(jaxfl.Federation(), divided(n), Softmax())

    grown = scaling(simulation_of, [4, 64], rounds=1)
    assert grown.clients == (4, 64)
    assert grown.memory[1] > grown.memory[0]
    assert min(grown.seconds) > 0


def test_peaks_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(peaks_module, "gemm_rate", lambda: 5e9)
    monkeypatch.setattr(peaks_module, "copy_rate", lambda: 7e9)
    path = tmp_path / "cache" / "peaks.json"
    first = machine_peaks(path)
    assert (first.flops, first.bytes, first.device) == (5e9, 7e9, jax.devices()[0].device_kind)
    (key,) = json.loads(path.read_text())
    assert key == f"{first.device}, {first.cores} cores"
    monkeypatch.setattr(peaks_module, "gemm_rate", lambda: 1.0)
    assert machine_peaks(path) == first
    # Another machine's are not taken for this one's, and stay.
    path.write_text(json.dumps({"other, 3 cores": {}, "damaged": 1}))
    assert machine_peaks(path).flops == 1.0
    assert "other, 3 cores" in json.loads(path.read_text())
    path.write_text("no json")
    assert machine_peaks(path).flops == 1.0
    # Where nothing can be kept they are measured each time.
    (tmp_path / "file").write_text("")
    assert machine_peaks(tmp_path / "file" / "peaks.json").flops == 1.0


def test_peaks_of_small_arrays_are_rates():
    start = time.perf_counter()
    assert peaks_module.gemm_rate(64) > 1e6
    assert peaks_module.copy_rate(4096) > 1e6
    assert time.perf_counter() - start < 20


def near(result: Profile) -> None:
    assert abs(result.total / result.seconds - 1) < 0.1, result.table()


@pytest.mark.default_compiler
def test_the_sum_of_50_clients_on_the_cnn():
    data = divided(50, 50, (28, 28, 1), 10)
    near(profile(**parts(model=SignGuardCNN(), data=data, client_chunk=None)))


@pytest.mark.default_compiler
@pytest.mark.parametrize("storage", ["matrix", "stream"])
def test_the_sum_of_1000_clients_on_the_mlp(storage):
    data = divided(1000, 50, (784,), 10)
    given = parts(model=MLP(hidden=(128,)), data=data, client_chunk=None)
    near(profile(**given | {"aggregator": jaxfl.Mean(), "storage": storage}))

"""Experiments from TOML: what is read, and what is refused in one line."""

import copy
import sys
import tomllib
from types import SimpleNamespace

import jax
import pytest
import tomli_w

from jaxfl import CRFL, IPM, Krum, Pipeline
from jaxfl.data import RootData
from jaxfl.experiments import running, schema
from jaxfl.experiments.finished import read_results
from jaxfl.experiments.folder import RunFolder
from jaxfl.experiments.runner import check, not_applicable, run_experiment
from jaxfl.experiments.written import as_toml

SMALL = {
    "rounds": 4,
    "evaluate_every": 2,
    "byzantine": 2,
    "model": "softmax",
    "algorithm": {"name": "fedsgd", "batch_size": 4},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "attack": {"name": "ipm", "scale": 10.0},
    "aggregator": "krum",
    "data": {"name": "synthetic", "clients": 10, "samples": 200, "features": 4, "classes": 3},
}


def small(**changes):
    return copy.deepcopy(SMALL) | changes


def test_f_defaults_to_the_expected_number_of_byzantine_clients():
    (cell,) = schema.parse("x", small()).cells
    assert cell.federation.aggregator == Krum(f=2)
    half = small(participation={"name": "uniform", "fraction": 0.5})
    (cell,) = schema.parse("x", half).cells
    assert cell.federation.aggregator == Krum(f=1)
    drawn = small(participation={"name": "poisson", "rate": 0.4}, aggregator="mean")
    drawn["attack"] = {"name": "onset", "start": 1, "attack": "none"}
    drawn["aggregator"] = {"name": "pipeline", "pre": ["nnm"], "rule": "mean"}
    (cell,) = schema.parse("x", drawn).cells
    assert cell.federation.aggregator.pre[0].f == 1, "four clients on average, not its slots"
    nested = small(aggregator={"name": "pipeline", "pre": ["nnm"], "rule": "trimmed_mean"})
    (cell,) = schema.parse("x", nested).cells
    assert isinstance(cell.federation.aggregator, Pipeline)
    assert cell.federation.aggregator.pre[0].f == cell.federation.aggregator.rule.f == 2


def test_a_sweep_is_a_product_with_labels():
    sweep = {
        "seed": [3, 4],
        "attack": ["none", {"name": "ipm", "scale": 10.0}],
        "optimizer.learning_rate": [0.1, 1.0],
    }
    experiment = schema.parse("x", small(sweep=sweep))
    assert len(experiment.cells) == 4
    assert experiment.cells[0].seeds == (3, 4)
    assert experiment.cells[3].labels == {
        "attack": "IPM (scale 10)",
        "optimizer.learning_rate": "1.0",
    }
    assert experiment.cells[3].federation.attack == IPM(scale=10.0)
    assert float(experiment.cells[3].federation.optimizer.learning_rate) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roundz": 3}, "roundz: unknown name 'roundz'; did you mean 'rounds'"),
        ({"rounds": "many"}, "rounds must be an integer"),
        ({"rounds": True}, "rounds must be an integer"),
        ({"rounds": 0}, "rounds must be an integer, at least 1"),
        ({"byzantine": 11}, "byzantine must be at most data.clients = 10; got 11"),
        ({"byzantine": -1}, "byzantine must be an integer, at least 0"),
        ({"aggregator": "krumm"}, "aggregator: unknown name 'krumm'; did you mean 'krum'"),
        ({"aggregator": {"name": "krum", "g": 1}}, "aggregator.g: unknown name 'g'"),
        ({"aggregator": {"name": "krum", "f": 2.5}}, "aggregator: Krum: f must be an integer"),
        ({"aggregator": {"name": "krum", "f": -1}}, "Krum: f must be at least 0; got -1"),
        ({"aggregator": {"name": "no.such:Rule"}}, "cannot import 'no.such:Rule'"),
        ({"aggregator": {"name": "json:JSONDecoder"}}, "is not a Aggregator"),
        ({"aggregator": {"name": "pipeline", "pre": "nnm", "rule": "mean"}}, "write a list"),
        ({"attack": {"name": "ipm", "scale": "big"}}, "IPM: scale must be a number; got 'big'"),
        ({"attack": {"name": "onset", "attack": "ipm"}}, "attack: Onset needs start"),
        ({"optimizer": {"name": "sgd", "momentum": 1.5}}, "SGD: momentum must be"),
        ({"smoothing": {"noise": -1}}, "smoothing: CRFL: noise must be at least 0; got -1"),
        ({"noise_order": "sometimes"}, "noise_order must be one of noise_then_attack, attack"),
        ({"data": {"name": "imagenet"}}, "data.name: unknown name 'imagenet'"),
        ({"data": {"name": "synthetic", "clients": 0}}, "data.clients must be an integer"),
        ({"data": {"name": "synthetic", "samples": "all"}}, "samples must be an integer"),
        ({"data": {"name": "digits", "sample": 3}}, "data.sample: unknown name 'sample'"),
        ({"data": SMALL["data"] | {"root": {"sise": 3}}}, "data.root.sise: unknown name 'sise'"),
        ({"data": SMALL["data"] | {"root": {"size": 0}}}, "RootData: size must be at least 1"),
        ({"data": SMALL["data"] | {"root": {"bias": 2}}}, "RootData: bias must be at least 0"),
        ({"data": SMALL["data"] | {"root": 5}}, "data.root: write a name or a table"),
        ({"aggregator": "zeno"}, "needs samples of the server's own: set root of the data"),
        ({"sweep": {"attack": "none"}}, "sweep.attack must be a list"),
        ({"sweep": {"attack": []}}, "sweep.attack must be a list"),
        ({"sweep": {"seed": [-1]}}, "sweep.seed must be an integer, at least 0"),
        ({"seed": [0, 1]}, "seed must be an integer; sweep.seed takes a list; got [0, 1]"),
        ({"seed": 2**32}, "seed must be an integer, at least 0 and at most 4294967295; got 42949"),
        ({"devices": 0}, "devices must be an integer, at least 1; got 0"),
        ({"devices": 1000}, "as many as JAX has; got 1000"),
        ({"devices": "some"}, 'devices must be an integer, "all" or "auto"; got \'some\''),
        ({"signs": "yes"}, "signs must be true or false; got 'yes'"),
        ({"way": "xmap"}, "way must be one of shard_map, pmap; got 'xmap'"),
        ({"model": 3}, "model: write a name or a table with a name; got 3"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(changes, message):
    with pytest.raises(ValueError, match=r"\S") as error:
        check(schema.parse("x", small(**changes)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["rounds", "data", "model"])
def test_a_missing_key_is_named(key):
    table = small()
    del table[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        schema.parse("x", table)


def test_overrides_and_their_errors(tmp_path):
    experiment = schema.load("quickstart", ["rounds=7", "optimizer.momentum=0.5"])
    assert experiment.cells[0].rounds == 7
    assert float(experiment.cells[0].federation.optimizer.momentum) == 0.5
    with pytest.raises(ValueError, match="KEY=VALUE"):
        schema.load("quickstart", ["rounds"])
    with pytest.raises(ValueError, match="did you mean 'quickstart'"):
        schema.load("quickstar")
    broken = tmp_path / "broken.toml"
    broken.write_text("rounds = = 3")
    with pytest.raises(ValueError, match="not valid TOML"):
        schema.load(str(broken))


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("attack=sign_flip", "sweep.attack"),
        ("aggregator.f=3", "sweep.aggregator"),
        ("seed=7", "sweep.seed"),
        ("optimizer.learning_rate=0.5", "tune.optimizer.learning_rate"),
        ("data.clients=5", "sweep.data.clients"),
    ],
)
def test_setting_what_is_swept_is_an_error_that_names_the_axis(tmp_path, override, axis):
    table = small(validation=0.1, tune={"optimizer.learning_rate": [0.1, 0.2]})
    table |= {"byzantine": 0}
    table["sweep"] = {"seed": [0], "attack": ["none"], "aggregator": ["mean"], "data.clients": [9]}
    path = tmp_path / "swept.toml"
    path.write_text(tomli_w.dumps(table))
    with pytest.raises(ValueError, match=rf"has no effect: .*; set {axis} to a list"):
        schema.load(str(path), [override])
    values = {"sweep.attack": "none", "sweep.aggregator": "mean"}
    (cell,) = schema.load(str(path), [f"{axis}={[values.get(axis, 1)]!r}"]).cells
    assert cell.clients == (1 if axis == "sweep.data.clients" else 9)
    assert len(cell.federations) == (1 if axis.startswith("tune") else 2)


OWN = """
from jaxfl import Mean
class {name}(Mean):
    pass
"""


def test_own_modules_lie_beside_the_file_or_in_the_current_folder(tmp_path, monkeypatch):
    beside, current = tmp_path / "beside", tmp_path / "current"
    for folder, name in ((beside, "Beside"), (current, "Current")):
        folder.mkdir()
        (folder / f"parts_{name.lower()}.py").write_text(OWN.format(name=name))
    names = ["parts_beside:Beside", "parts_current:Current"]
    file = beside / "own.toml"
    file.write_text(tomli_w.dumps(small(sweep={"aggregator": names}, rounds=2)))

    def forget():
        monkeypatch.setattr(sys, "path", [p for p in sys.path if str(tmp_path) not in p])
        for name in ("parts_beside", "parts_current"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.chdir(current)
    forget()
    for resume in (False, True):
        experiment = schema.load(str(file))
        with RunFolder(tmp_path / "run", experiment, resume=resume) as folder:
            assert len(list(run_experiment(folder, lambda *_: lambda *_: None))) == 2
        forget()
        monkeypatch.chdir(tmp_path)  # another process, elsewhere, reads the results
        read, _ = read_results(tmp_path / "run")
        assert [cell.labels["aggregator"] for cell in read.cells] == ["Beside", "Current"]
        forget()
        monkeypatch.chdir(current)


def test_a_grid_that_nobody_waits_for_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(schema, "read_cell", lambda *_: pytest.fail("a cell was read"))
    sweep = {"rounds": list(range(1, 401)), "optimizer.learning_rate": [0.1] * 400, "seed": [0, 1]}
    message = r"160,000 combinations \(rounds 400 x optimizer.learning_rate 400\), more than 10,000"
    with pytest.raises(ValueError, match=f"sweep makes {message}"):
        schema.parse("x", small(sweep=sweep))
    tune = {"optimizer.learning_rate": [0.1] * 10_001}
    with pytest.raises(ValueError, match="tune makes 10,001 combinations"):
        schema.parse("x", small(validation=0.1, tune=tune))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"name": "mlp", "hidden": [10**9]}},
            # 4 features and 3 classes: 4h + h + 3h + 3 parameters; n vectors of one of 2 seeds,
            # and what both carry, twice.
            rf"8,000,000,003 parameters times 2 runs, 1 at once, need at least "
            rf"{14 * 4 * (8 * 10**9 + 3) / 2**30:,.1f} GiB \(updates of 10 clients 298.0 GiB"
            r".*than the device's [0-9.]+ GiB; what helps: fewer clients .* fewer seeds",
        ),
        ({"data": SMALL["data"] | {"samples": 10**13}}, r"data: 10,000,000,000,000 samples of 4 "),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_runs(tmp_path, changes, message):
    experiment = schema.parse("x", small(**changes, sweep={"seed": [0, 1]}))
    with (
        pytest.raises(ValueError, match=message),
        RunFolder(tmp_path / "run", experiment) as folder,
    ):
        next(run_experiment(folder, lambda *_: pytest.fail("a cell ran")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("devices", "given"), [(1, None), (2, ["a", "b"]), ("all", ["a", "b", "c"])]
)
def test_devices_and_way_reach_the_simulation(tmp_path, monkeypatch, devices, given):
    seen = {}

    def simulation(*_, **settings):
        seen.update(settings)
        raise RuntimeError("seen")

    monkeypatch.setattr(running, "Simulation", simulation)
    experiment = schema.parse("x", small(devices=devices, way="pmap"))
    monkeypatch.setattr(jax, "devices", lambda: ["a", "b", "c"])
    with RunFolder(tmp_path, experiment) as folder, pytest.raises(RuntimeError, match="seen"):
        next(run_experiment(folder, lambda *_: lambda *_: None))
    assert seen["devices"] == given
    assert seen["way"] == "pmap"


@pytest.mark.parametrize(
    ("platform", "there", "model", "taken"),
    [
        ("cpu", 4, "cnn", 4),
        ("cpu", 50, "cnn", 10),
        ("cpu", 4, "mlp", 0),
        ("gpu", 4, "cnn", None),
    ],
)
def test_a_model_that_convolves_takes_every_core(monkeypatch, platform, there, model, taken):
    cell = schema.parse("x", small(model=model)).cells[0]
    devices = [SimpleNamespace(platform=platform, id=i) for i in range(there)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert cell.placed == (devices[:taken] if taken else None)


def test_a_cell_that_does_not_apply_is_marked_and_the_rest_runs(tmp_path):
    sweep = {"aggregator": [{"name": "krum", "f": 4}, {"name": "krum", "f": 2}]}
    experiment = schema.parse("x", small(sweep=sweep))
    assert "Krum needs n >= 2f + 3 clients; got n = 10, f = 4" in str(
        not_applicable(experiment.cells[0])
    )
    with RunFolder(tmp_path, experiment) as folder:
        refused, done = run_experiment(folder, lambda *_: lambda *_: None)
    assert "Krum needs" in refused.status
    assert done.status == "done"
    assert done.accuracy.shape == (1, 2)
    assert list(done.rounds) == [2, 4]


def test_a_rule_that_cannot_leave_out_clients_is_marked():
    sweep = {"aggregator": ["mean", "median", "monna"]}
    experiment = schema.parse(
        "x", small(sweep=sweep, participation={"name": "poisson", "rate": 0.5})
    )
    *can, cannot = map(not_applicable, experiment.cells)
    assert can == [None, None]
    assert "cannot leave out absent clients" in str(cannot)


def test_a_model_that_is_clipped_and_noised_as_it_is_sent():
    table = small(smoothing="crfl", sweep={"smoothing.noise": [0.01, 0.5]})
    parts = [cell.federation.smoothing for cell in schema.parse("x", table).cells]
    assert parts == [CRFL(), CRFL(noise=0.5)]


def test_rules_that_need_the_servers_samples(tmp_path):
    sweep = {"aggregator": ["zeno", "loss_rejection"]}
    table = small(sweep=sweep)
    table["data"]["root"] = {"size": 30, "bias": 0.5}
    experiment = schema.parse("x", table)
    assert experiment.cells[0].root == RootData(size=30, bias=0.5)
    assert experiment.cells[1].federation.aggregator.f == 2
    with RunFolder(tmp_path, experiment) as folder:
        results = list(run_experiment(folder, lambda *_: lambda *_: None))
    assert [result.status for result in results] == ["done", "done"]
    assert results[0].accuracy.shape == (1, 2)
    del table["data"]["root"], table["sweep"]["aggregator"]
    table["sweep"]["aggregator"] = ["zeno", "mean"]
    reasons = [not_applicable(cell) for cell in schema.parse("x", table).cells]
    assert "needs samples of the server's own" in str(reasons[0])
    assert reasons[1] is None


def test_a_trigger_that_does_not_fit_the_data_is_refused_before_anything_runs(tmp_path):
    experiment = schema.parse("x", small(sweep={"attack": ["none", "backdoor"]}))
    with (
        RunFolder(tmp_path, experiment) as folder,
        pytest.raises(ValueError, match="Backdoor needs images; got samples of shape"),
    ):
        next(run_experiment(folder, lambda *_: lambda *_: None))
    assert not (tmp_path / "rounds.jsonl").exists()


def test_an_attack_on_the_root_update_applies_where_there_is_one():
    table = small(sweep={"attack": ["fltrust_adaptive"], "aggregator": ["fltrust", "median"]})
    table["data"]["root"] = {"size": 30}
    reasons = [not_applicable(cell) for cell in schema.parse("x", table).cells]
    assert reasons[0] is None
    assert "works against a defence with an update of the server's own" in str(reasons[1])


def test_what_is_written_of_an_experiment_numbers_its_cells_alike():
    """A run's log names cells by number: an axis of long tables must stay where it is."""
    for name in schema.packaged():
        table = schema.read(schema.packaged_file(name))
        again = tomllib.loads(as_toml(table))
        assert again == table
        for grid in schema.GRIDS:
            assert list(again.get(grid, {})) == list(table.get(grid, {})), name
    laws = [{"name": "independent_honesty", "probabilities": [p] * 20} for p in (0.9, 0.8)]
    moved = tomllib.loads(tomli_w.dumps({"sweep": {"law": laws, "rule": ["mean"]}}))
    assert list(moved["sweep"]) == ["rule", "law"], "the case that is tested"


def test_the_quickstart_is_the_grid_it_says_it_is():
    experiment = schema.load("quickstart")
    assert len(experiment.cells) == 4 * 8
    first = experiment.cells[0]
    assert (first.clients, first.federation.byzantine) == (50, 10)
    assert {c.labels["aggregator"] for c in experiment.cells} == {
        "Mean",
        "Median",
        "TrimmedMean",
        "Krum",
        "NNM + TrimmedMean",
        "FLTrust",
        "SignGuard",
        "TNBS",
    }

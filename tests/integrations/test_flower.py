"""Flower's strategies: arrays in and out, who was kept, and errors; no network."""

import importlib
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import jaxfl

NODES = [2**63 + 5, 11, 7, 30, 2]
SHAPE = (2, 3)


def test_without_flower_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.delitem(sys.modules, "jaxfl.integrations.flower", raising=False)
    with pytest.raises(ImportError, match=r"needs Flower: pip install 'jaxfl\[flower\]'"):
        importlib.import_module("jaxfl.integrations.flower")


@pytest.fixture(scope="module")
def flwr():
    return pytest.importorskip("flwr.app", reason="Flower is not installed (extra flower)")


@pytest.fixture(scope="module")
def ours(flwr):
    return importlib.import_module("jaxfl.integrations.flower")


class Grid:
    """Flower's view of connected nodes."""

    def get_node_ids(self):
        return NODES


def record_of(flwr, model):
    return flwr.ArrayRecord({name: flwr.Array(np.asarray(a)) for name, a in model.items()})


SENT = {"w": np.ones(SHAPE, np.float32), "n": np.array(3), "half": np.ones(2, np.float16)}
BACK = [
    {"half": np.full(2, 2.0, "f2"), "n": np.array(i), "w": np.full(SHAPE, 1.5 + i / 8, "f4")}
    for i in range(4)
]
BACK.append(
    {"half": np.full(2, np.nan, "f2"), "n": np.array(10**6), "w": np.full(SHAPE, 1e9, "f4")}
)


@pytest.fixture
def play(flwr):
    """Round 1 of a strategy: what it is to send, then its answer to these models.

    Messages stand in for Flower's, which belong to a run; the slow tests have a real one.
    """

    def round_one(strategy, models, number=1):
        strategy._construct_messages = lambda *_: []
        strategy.configure_train(number, record_of(flwr, SENT), flwr.ConfigRecord(), Grid())
        replies = []
        for node, model in zip(NODES, models, strict=False):
            named = {"num-examples": 10 + len(replies), "loss": float(len(replies))}
            content = {"arrays": record_of(flwr, model), "metrics": flwr.MetricRecord(named)}
            replies.append(
                SimpleNamespace(
                    content=flwr.RecordDict(content),
                    metadata=SimpleNamespace(src_node_id=node),
                    has_error=lambda: False,
                )
            )
        return strategy.aggregate_train(number, replies)

    return round_one


def test_arrays_in_arrays_out_and_reasons_as_metrics(ours, play):
    strategy = ours.RobustStrategy(jaxfl.Krum(f=1), min_train_nodes=5)
    arrays, metrics = play(strategy, BACK)
    assert list(arrays) == list(SENT)
    found = {name: array.numpy() for name, array in arrays.items()}
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in SENT.items()
    }
    kept = [NODES.index(node) for node in metrics["kept"]]
    assert len(kept) == 1
    np.testing.assert_allclose(found["w"], BACK[kept[0]]["w"], rtol=1e-6)
    assert found["n"] == 2
    assert metrics["clients"] == 5
    assert sorted([*metrics["kept"], *metrics["dropped"]]) == sorted(NODES)
    assert metrics["loss"] == kept[0]  # of those kept alone
    assert dict(zip(metrics["nodes"], metrics["weights"], strict=True))[NODES[kept[0]]] == 1


def test_of_nobody_s_metrics_there_is_no_mean(ours, play, monkeypatch):
    strategy = ours.RobustStrategy(jaxfl.Krum(f=1), min_train_nodes=5)
    step = strategy.server.step

    def nobody(*given, **named):
        answer = step(*given, **named)
        info = answer.info.replace(selected=np.zeros(5, bool))
        return type(answer)(answer.model, info)

    monkeypatch.setattr(strategy.server, "step", nobody)
    _, metrics = play(strategy, BACK)
    assert metrics["kept"] == []
    assert "loss" not in metrics


def test_it_answers_what_flower_s_own_krum_and_median_do(ours, play):
    theirs = importlib.import_module("flwr.serverapp.strategy")
    finite = [*BACK[:4], BACK[4] | {"half": np.full(2, 9.0, "f2")}]
    for own, rule in (
        (theirs.Krum(num_malicious_nodes=1, min_train_nodes=5), jaxfl.Krum(f=1)),
        (theirs.FedMedian(min_train_nodes=5), jaxfl.Median()),
    ):
        expected, _ = play(own, finite)
        arrays, _ = play(ours.RobustStrategy(rule, min_train_nodes=5), finite)
        for name in ("w", "half"):
            np.testing.assert_allclose(
                arrays[name].numpy(), expected[name].numpy(), rtol=1e-6, err_msg=name
            )


def test_memory_starts_afresh_with_the_first_round(ours, play):
    strategy = ours.RobustStrategy(
        jaxfl.Median(), optimizer=jaxfl.SGD(learning_rate=1.0, momentum=0.5), min_train_nodes=5
    )
    first = play(strategy, BACK)[0]["w"].numpy()
    second = play(strategy, BACK, number=2)[0]["w"].numpy()
    np.testing.assert_allclose(second - 1, 1.5 * (first - 1), rtol=1e-5)
    np.testing.assert_array_equal(play(strategy, BACK)[0]["w"].numpy(), first)


def test_mistakes_are_one_clear_error_each(ours, play):
    strategy = ours.RobustStrategy(jaxfl.Median(), min_train_nodes=5)
    with pytest.raises(ValueError, match="round 1: no client sent a model back"):
        play(strategy, [])
    other = [BACK[0], BACK[1] | {"w": np.ones((3, 2), "f4")}]
    with pytest.raises(ValueError, match=rf"client {NODES[1]}: 'w' must have shape \(2, 3\)"):
        play(strategy, other)
    with pytest.raises(ValueError, match="Krum needs n >= 2f"):
        play(ours.RobustStrategy(jaxfl.Krum(f=2), min_train_nodes=5), BACK)
    with pytest.raises(ValueError, match="FLTrust needs root="):
        ours.RobustStrategy(jaxfl.FLTrust())
    for array in (np.arange(6.0).reshape(2, 3), np.array(3), np.zeros((0, 2), "i1")):
        for kept in (array, np.asfortranarray(array)):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, kept, version=(2, 0))
            np.testing.assert_array_equal(ours.read(stream.getvalue()), array)
    for damaged in (b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"):
        with pytest.raises(ValueError, match="an array that came back cannot be read"):
            ours.read(damaged)


def test_the_older_api_is_served_as_well(ours):
    common = importlib.import_module("flwr.common")
    strategy = ours.ClassicRobustStrategy(
        jaxfl.FLTrust(), root=lambda sent: {"0": sent["0"] + 1, "1": sent["1"]}, min_fit_clients=3
    )
    sent = common.ndarrays_to_parameters([np.zeros(SHAPE, "f4"), np.zeros(1, "f4")])

    class Clients:
        def num_available(self):
            return 3

        def sample(self, num_clients, min_num_clients):
            return []

    strategy.configure_fit(1, sent, Clients())

    class Proxy:
        def __init__(self, cid):
            self.cid = cid

    results = []
    for cid, value in (("a", 2.0), ("b", 3.0), ("c", -50.0)):
        back = [np.full(SHAPE, value, "f4"), np.zeros(1, "f4")]
        status = common.Status(common.Code.OK, "")
        reply = common.FitRes(status, common.ndarrays_to_parameters(back), 5, {})
        results.append((Proxy(cid), reply))
    parameters, metrics = strategy.aggregate_fit(1, results, [])
    weight, bias = common.parameters_to_ndarrays(parameters)
    np.testing.assert_allclose(weight, np.ones(SHAPE), rtol=1e-5)  # cut to the root's length
    np.testing.assert_allclose(bias, 0, atol=1e-6)
    assert metrics["kept"] == "['a', 'b']"
    assert metrics["dropped"] == "['c']"

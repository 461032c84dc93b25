"""The server's half of rounds whose clients run elsewhere."""

import jax
import numpy as np
import pytest

import jaxfl
from jaxfl import PerLayer
from jaxfl.integrations import server as module
from jaxfl.integrations.layout import Layout
from jaxfl.integrations.server import RobustServer

SHAPES = {"w": (3, 4), "b": (5,)}
D = 17


def models(vectors, **others):
    """Each vector ``[17]`` as a model of two arrays of floats, with the others beside."""
    split = np.split(np.asarray(vectors, np.float32), [12], axis=1)
    return [
        {"w": w.reshape(3, 4), "b": b} | {k: np.asarray(v[i]) for k, v in others.items()}
        for i, (w, b) in enumerate(zip(*split, strict=True))
    ]


@pytest.fixture
def random():
    return np.random.default_rng(0)


def sent_and_back(random, n):
    sent = random.normal(size=(1, D)).astype(np.float32)
    back = sent + random.normal(size=(n, D)).astype(np.float32)
    return sent, back


def vector(model):
    return np.concatenate([model["w"].ravel(), model["b"]])


def test_the_step_is_the_rule_s_on_updates_and_the_optimizer_s(random):
    sent, back = sent_and_back(random, 7)
    momentum = jaxfl.SGD(learning_rate=0.5, momentum=0.9)
    server, speed, now = RobustServer(jaxfl.Median(), optimizer=momentum), 0, sent[0]
    for _ in range(2):
        (model,) = models([now])
        answer = server.step(model, models(back))
        speed = 0.9 * speed + np.median(now - back, axis=0)
        now = now - 0.5 * speed
        np.testing.assert_allclose(vector(answer.model), now, rtol=1e-5, atol=1e-6)
    server.reset()
    (model,) = models(sent)
    again = server.step(model, models(back)).model
    expected = sent[0] - 0.5 * np.median(sent - back, axis=0)
    np.testing.assert_allclose(vector(again), expected, rtol=1e-5, atol=1e-6)


def test_krum_is_krum_s_definition_and_says_whom_it_kept(random):
    sent, back = sent_and_back(random, 9)
    distances = ((back[:, None] - back[None]) ** 2).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : 9 - 2 - 2 + 1].sum(1)
    (model,) = models(sent)
    answer = RobustServer(jaxfl.Krum(f=2)).step(model, models(back))
    assert np.flatnonzero(answer.info.selected) == scores.argmin()
    np.testing.assert_allclose(vector(answer.model), back[scores.argmin()], rtol=1e-5, atol=1e-6)


def krum(x, f):
    """The row with the smallest sum of squared distances to its n - f - 2 nearest others."""
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : len(x) - f - 2 + 1].sum(1)
    return x[scores.argmin()]


def test_rules_of_layers_find_them_by_the_arrays_names(random):
    sizes = {"0.weight": (2, 3), "0.bias": (2,), "steps": (), "1.weight": (5,), "1.bias": (5,)}
    before = {name: random.normal(size=size).astype("f4") for name, size in sizes.items()}
    before["steps"] = np.array(3)
    after = [
        {k: (v + random.normal(size=v.shape)).astype(v.dtype) for k, v in before.items()}
        for _ in range(6)
    ]
    model = RobustServer(PerLayer(rule=jaxfl.Krum(f=1))).step(before, after).model
    for layer in ("0", "1"):
        names = [f"{layer}.weight", f"{layer}.bias"]
        updates = [np.concatenate([(before[n] - m[n]).ravel() for n in names]) for m in after]
        moved = np.concatenate([(before[n] - model[n]).ravel() for n in names])
        np.testing.assert_allclose(moved, krum(np.array(updates), 1), rtol=1e-4, atol=1e-5)
    segments = Layout.of(before).segments
    assert [(s.name, s.offset, s.shape, s.kind) for s in segments] == [
        ("0.weight", 0, (2, 3), "kernel"),
        ("0.bias", 6, (2,), "bias"),
        ("1.weight", 8, (5,), "scale"),
        ("1.bias", 13, (5,), "bias"),
    ]
    # With everything thinned to nothing but vectors, LASA moves no kernel.
    thin = RobustServer(jaxfl.LASA(sparsity=0.999)).step(before, after).model
    np.testing.assert_array_equal(thin["0.weight"], before["0.weight"])
    assert (thin["1.weight"] != before["1.weight"]).any()


def test_one_program_serves_varying_numbers_of_clients_and_one_full_rounds(random):
    sent, back = sent_and_back(random, 10)
    server, median = RobustServer(jaxfl.Krum(f=2), slots=10), RobustServer(jaxfl.Median(), slots=10)
    (model,) = models(sent)
    before = module._step._cache_size()
    for n in (10, 7, 9, 8, 10):
        distances = ((back[:n, None] - back[None, :n]) ** 2).sum(-1)
        scores = np.sort(distances, axis=1)[:, 1 : n - 2 - 2 + 1].sum(1)
        answer = server.step(model, models(back[:n]))
        assert answer.info.selected.shape == (n,)
        assert np.flatnonzero(answer.info.selected) == scores.argmin()
        middle = vector(median.step(model, models(back[:n])).model)
        np.testing.assert_allclose(middle, np.median(back[:n], axis=0), rtol=1e-5, atol=1e-6)
    assert module._step._cache_size() == before + 4
    with pytest.raises(ValueError, match="at most slots = 10 clients; got 11"):
        server.step(model, models(sent_and_back(random, 11)[1]))
    with pytest.raises(ValueError, match=r"Krum needs n >= 2f \+ 3 clients; got n = 6, f = 2"):
        server.step(model, models(back[:6]))


def test_types_and_order_are_those_of_the_model_sent_and_integers_get_the_lower_median():
    sent = {
        "steps": np.array(5),
        "b": np.zeros(5, np.float16),
        "mask": np.array([True, False]),
        "w": np.zeros((3, 4), np.float32),
    }
    steps, mask = [9, -(10**9), 7, 8], [[1, 0], [1, 1], [0, 0], [1, 1]]
    back = models(np.full((4, D), 2.0), steps=steps, mask=np.array(mask, bool))
    back[2]["w"] = np.asfortranarray(back[2]["w"].astype(np.float64))
    model = RobustServer(jaxfl.Mean()).step(sent, back).model
    assert list(model) == list(sent)
    assert {k: (v.dtype, v.shape) for k, v in model.items()} == {
        k: (v.dtype, v.shape) for k, v in sent.items()
    }
    assert model["steps"] == 7
    assert model["mask"].tolist() == [True, False]
    np.testing.assert_array_equal(model["w"], 2)


def test_shares_of_samples_are_weights_and_nonsense_counts_as_none(random):
    sent, back = sent_and_back(random, 4)
    (model,) = models(sent)
    answer = RobustServer(jaxfl.Mean()).step(model, models(back), samples=[1, 3, -5, np.nan])
    np.testing.assert_allclose(
        vector(answer.model), (back[0] + 3 * back[1]) / 4, rtol=1e-5, atol=1e-6
    )


def test_a_client_s_nan_are_data_and_a_server_s_are_an_error(random):
    sent, back = sent_and_back(random, 7)
    back[3, 4] = np.nan
    (model,) = models(sent)
    answer = RobustServer(jaxfl.Krum(f=1)).step(model, models(back))
    assert not answer.info.selected[3]
    lost = models([[*sent[0, :16], np.inf]])[0]
    with pytest.raises(ValueError, match="round 1: 'b' of the model sent is not finite as float32"):
        RobustServer(jaxfl.Krum(f=1)).step(lost, models(back))
    fast = RobustServer(jaxfl.Median(), optimizer=jaxfl.SGD(learning_rate=1e38))
    (model,), back = models(np.zeros((1, D))), np.full((3, D), -100.0)
    with pytest.raises(ValueError, match=r"next model would not be finite \(Median, SGD"):
        fast.step(model, models(back))


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [(np.float16, 40_000, "next model would not be"), (np.float64, 1e300, "'w' of the model sent")],
)
def test_models_are_finite_in_their_own_types_and_in_the_server_s(kind, value, said):
    sent = {"w": np.full(3, value, kind)}
    server = RobustServer(jaxfl.Mean(), optimizer=jaxfl.SGD(learning_rate=3.0))
    with pytest.raises(ValueError, match=said):
        server.step(sent, [{"w": sent["w"] + sent["w"] / 2}] * 3)


def test_a_round_that_is_refused_leaves_no_trace(random):
    sent, back = sent_and_back(random, 5)
    (model,), optimizer = (
        models(sent),
        jaxfl.SGD(learning_rate=jaxfl.StepDecay(initial=1.0, boundaries=(1,))),
    )
    servers = [RobustServer(jaxfl.Mean(), optimizer=optimizer) for _ in range(2)]
    with pytest.raises(ValueError, match="no client's update is finite"):
        servers[0].step(model, models(back * np.nan))
    first, second = (server.step(model, models(back)).model for server in servers)
    np.testing.assert_array_equal(vector(first), vector(second))


@pytest.mark.parametrize("rule", [jaxfl.Krum(f=1), jaxfl.Median()])
def test_a_round_of_nothing_but_nan_is_an_error(random, rule):
    sent, back = sent_and_back(random, 7)
    (model,) = models(sent)
    with pytest.raises(ValueError, match="round 1: no client's update is finite"):
        RobustServer(rule).step(model, models(back * np.nan))
    same = models(np.repeat(sent, 7, axis=0))  # nobody moved: nothing is wrong
    np.testing.assert_array_equal(vector(RobustServer(rule).step(model, same).model), sent[0])


def test_models_of_other_shapes_and_empty_rounds_are_one_clear_error(random):
    sent, back = sent_and_back(random, 3)
    (model,) = models(sent)
    server = RobustServer(jaxfl.Median())
    with pytest.raises(ValueError, match="round 1: no client sent a model back"):
        server.step(model, [])
    for change, said in (
        ({"w": np.zeros((4, 3))}, r"client 31: 'w' must have shape \(3, 4\); got \(4, 3\)"),
        ({"w": np.zeros((3, 4), int)}, "client 31: 'w' must be float32; got int64"),
        ({"x": np.zeros(1)}, "client 31: the model that was sent has no 'x'"),
    ):
        after = models(back)
        after[1] |= change
        with pytest.raises(ValueError, match=said):
            server.step(model, after, ids=[30, 31, 32])
    with pytest.raises(ValueError, match="client 0: the model lacks 'b'"):
        server.step(model, [{"w": model["w"]}])
    for bad, said in (({"k": np.array(3)}, "none is"), ({"k": np.array(1j)}, "'k' is complex128")):
        with pytest.raises(ValueError, match=said):
            RobustServer(jaxfl.Median()).step(bad, [bad])


def test_fltrust_asks_the_root_function(random):
    sent, back = sent_and_back(random, 5)
    goal = models(sent - 1)[0]  # so the server's own update is all ones
    seen = []

    def root(model):
        seen.append(vector(model))
        return goal

    (model,) = models(sent)
    answer = RobustServer(jaxfl.FLTrust(), root=root).step(model, models(back))
    updates, own = sent - back, np.ones(D)
    norms = np.linalg.norm(updates, axis=1)
    trust = np.maximum(updates @ own / (norms * np.sqrt(D)), 0)
    expected = (trust * np.sqrt(D) / norms) @ updates / trust.sum()
    np.testing.assert_allclose(vector(answer.model), sent[0] - expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(seen[0], sent[0])


def test_what_a_rule_needs_of_the_server_is_asked_for_at_once():
    with pytest.raises(ValueError, match="FLTrust needs root="):
        RobustServer(jaxfl.FLTrust())
    with pytest.raises(ValueError, match="Median does not use root="):
        RobustServer(jaxfl.Median(), root=dict)
    with pytest.raises(ValueError, match="Zeno evaluates jaxfl's own models"):
        RobustServer(jaxfl.Zeno.example())


def test_a_memory_of_clients_follows_their_ids(random):
    sent, back = sent_and_back(random, 4)
    (model,) = models(sent)
    server = RobustServer(jaxfl.FoolsGold(), slots=4, population=5)
    server.step(model, models(back), ids=[70, 80, 90, 60])
    server.step(model, models(back[[2, 0]]), ids=[90, 70])
    assert server._memory is not None
    history = np.asarray(server._memory[0])
    updates = sent - back
    np.testing.assert_allclose(history[0], 2 * updates[0], rtol=1e-5)
    np.testing.assert_allclose(history[2], 2 * updates[2], rtol=1e-5)
    np.testing.assert_allclose(history[1], updates[1], rtol=1e-5)
    with pytest.raises(ValueError, match="remembers 5 clients, and 6 have been seen"):
        server.step(model, models(back[:2]), ids=[1, 2])


def test_rows_are_read_where_they_are():
    rows = module.aligned_zeros((3, 5), np.dtype(np.float32))
    assert rows.ctypes.data % 64 == 0
    assert rows.shape == (3, 5)
    assert jax.dlpack.from_dlpack(rows).unsafe_buffer_pointer() == rows.ctypes.data

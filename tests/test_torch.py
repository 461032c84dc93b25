"""Rules on PyTorch's tensors and models."""

import sys

import jax
import numpy as np
import pytest

import jaxfl
from jaxfl import torch as ours

N, D = 9, 24


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs PyTorch: pip install 'jaxfl\[torch\]'"):
        ours.aggregate(jaxfl.Median(), [])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def matrix(torch):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N, D)).astype(np.float32))


def test_a_tensor_s_median_is_numpy_s(torch, matrix):
    for updates in (matrix, matrix.requires_grad_(), list(matrix.detach())):
        answer = ours.aggregate(jaxfl.Median(), updates)
        assert isinstance(answer, torch.Tensor)
        assert not answer.requires_grad
        np.testing.assert_array_equal(answer.numpy(), np.median(matrix.detach().numpy(), axis=0))


def test_nothing_is_copied(torch, monkeypatch):
    updates, seen = torch.ones(N, 64), []

    class Looking(jaxfl.Median):
        def inspect(self, updates, **given):
            seen.append(updates.unsafe_buffer_pointer())
            result = super().inspect(updates, **given)
            seen.append(result.update.unsafe_buffer_pointer())
            return result

    answer = ours.aggregate(Looking(), updates)
    assert seen == [updates.data_ptr(), answer.data_ptr()]


def test_the_type_of_the_updates_is_kept(torch):
    updates = torch.arange(20.0).reshape(5, 4)
    for kind in (torch.float16, torch.bfloat16):
        answer = ours.aggregate(jaxfl.Mean(), updates.to(kind))
        assert answer.dtype == kind
        assert answer.tolist() == [8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"pass updates.float\(\)"):
        ours.aggregate(jaxfl.Mean(), updates.double())
    with jax.enable_x64(True):
        assert ours.aggregate(jaxfl.Mean(), updates.double()).dtype == torch.float64


def test_memory_is_handed_on_and_reasons_are_given(torch, matrix):
    rule, state, expected = jaxfl.CenteredClipping(tau=1.0), None, None
    for _ in range(2):
        result = ours.inspect(rule, matrix, state=state)
        same = rule.inspect(matrix.detach().numpy(), state=expected)
        np.testing.assert_array_equal(result.update.numpy(), np.asarray(same.update))
        state, expected = result.state, same.state
    assert ours.inspect(jaxfl.Krum(f=2), matrix).info.selected.sum() == 1


@pytest.mark.parametrize(
    ("updates", "said"),
    [
        (lambda t: t.ones(3, 4, dtype=t.int32), "matrix .* of floats; got torch.int32"),
        (lambda t: t.ones(3), r"of shape \(3,\)"),
        (lambda t: [t.ones(3), t.ones(4)], r"vectors of one length; got 2 .*\(3,\), \(4,\)"),
        (lambda t: [], "got 0 tensors"),
        (lambda t: t.ones(4, 3), "Krum needs n >= 2f \\+ 3"),
    ],
)
def test_what_is_no_matrix_of_updates_is_refused(torch, updates, said):
    with pytest.raises(ValueError, match=said):
        ours.aggregate(jaxfl.Krum(f=1), updates(torch))


def models(torch):
    """The model that is sent, and those of five clients; the last is Byzantine."""
    sent = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "steps": torch.tensor(0),
        "bias": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "mask": torch.tensor([True, False]),
    }
    back = [
        {
            "mask": torch.tensor([True, i == 1]),
            "bias": sent["bias"] + i,
            "weight": sent["weight"] - 2 * i,
            "steps": torch.tensor(10 + i),
        }
        for i in range(4)
    ]
    bad = {"weight": sent["weight"] * torch.nan, "steps": torch.tensor(-(2**40))}
    return sent, [*back, sent | bad]


def test_models_are_aggregated_by_name_and_keep_types_and_order(torch):
    sent, back = models(torch)
    answer = ours.aggregate_models(jaxfl.Median(), sent, back)
    assert list(answer) == list(sent)
    assert {k: v.dtype for k, v in answer.items()} == {k: v.dtype for k, v in sent.items()}
    # Updates of the weight: 0, 2, 4, 6 and NaN, which counts as infinite; of the bias: 0 to -3, 0.
    assert answer["weight"].tolist() == (sent["weight"] - 4).tolist()
    assert answer["bias"].tolist() == [2, 3]
    assert answer["steps"] == 11  # of -2^40, 10, 11, 12, 13
    assert answer["mask"].tolist() == [True, False]
    # All of a model is one vector: SignGuard and the like drop a client as a whole.
    kept = ours.inspect_models(jaxfl.Krum(f=1), sent, back)
    assert np.flatnonzero(kept.info.selected) < 4
    assert kept.update["weight"].isfinite().all()


def test_models_of_float64_are_aggregated_in_float32_and_stay_float64(torch):
    sent = {"w": torch.zeros(3, dtype=torch.float64)}
    back = [{"w": sent["w"] + i} for i in (1, 2, 4)]
    answer = ours.aggregate_models(jaxfl.Median(), sent, back)
    assert answer["w"].dtype == torch.float64
    assert answer["w"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("rule", [jaxfl.Krum(f=1), jaxfl.Median()])
def test_where_nothing_is_finite_there_is_no_next_model(torch, rule):
    sent, back = models(torch)
    lost = sent | {"bias": torch.tensor([1.0, torch.inf], dtype=torch.float16)}
    with pytest.raises(ValueError, match=f"{type(rule).__name__}: 'bias' of the model sent is not"):
        ours.aggregate_models(rule, lost, back)
    nothing = {"weight": sent["weight"] * torch.nan, "bias": sent["bias"] * torch.nan}
    with pytest.raises(ValueError, match="no client's update is finite"):
        ours.aggregate_models(rule, sent, [model | nothing for model in back])


def test_rules_of_layers_find_them_by_the_tensors_names(torch):
    sent = {"0.weight": torch.zeros(1, 2), "0.bias": torch.zeros(1), "1.weight": torch.zeros(1, 3)}
    back = [
        {k: torch.full_like(v, -(float((i + (k[0] == "1")) % 4) ** 2)) for k, v in sent.items()}
        for i in range(4)
    ]
    # By one dimension, Krum(f=0) takes the one of 0, 1, 4, 9 with the nearest two others: 1.
    rule = jaxfl.PerLayer(rule=jaxfl.Krum(f=0))
    answer = ours.aggregate_models(rule, sent, back)
    assert {key: set(value.flatten().tolist()) for key, value in answer.items()} == {
        "0.weight": {-1.0},
        "0.bias": {-1.0},
        "1.weight": {-1.0},
    }
    with pytest.raises(ValueError, match=r"PerLayer needs the model's layers.* aggregate_models"):
        ours.aggregate(rule, torch.zeros(4, 6))


def test_models_that_differ_are_refused(torch):
    sent, back = models(torch)
    for change, said in (
        (
            {"weight": torch.ones(3, 2)},
            r"client 1: 'weight' must have shape \(2, 3\); got \(3, 2\)",
        ),
        ({"other": torch.ones(1)}, "client 1: the model that was sent has no 'other'"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.aggregate_models(jaxfl.Median(), sent, [back[0], back[1] | change])
    with pytest.raises(ValueError, match="client 0: the model lacks 'steps'"):
        ours.aggregate_models(jaxfl.Median(), sent, [{"weight": sent["weight"]}])
    with pytest.raises(ValueError, match="no client sent a model back"):
        ours.aggregate_models(jaxfl.Median(), sent, [])
    whole = back[0] | {"weight": torch.ones(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match="client 0: 'weight' must be float32; got int64"):
        ours.aggregate_models(jaxfl.Median(), sent, [whole])
    with pytest.raises(ValueError, match="needs an array of floats"):
        ours.aggregate_models(jaxfl.Median(), {"k": torch.tensor(1)}, [{"k": torch.tensor(1)}])


def test_a_loop_in_pytorch_learns_under_attack_with_one_line_more(torch):
    data = jaxfl.data.digits()
    inputs, labels = (torch.from_numpy(np.array(x)) for x in (data.inputs, data.labels))
    parts = [(inputs[i::8].flatten(1), labels[i::8].long()) for i in range(8)]

    def accuracy_with(rule):
        torch.manual_seed(0)
        model, client = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
        for _ in range(15):
            states = []
            for i, (x, y) in enumerate(parts):
                client.load_state_dict(model.state_dict())
                torch.nn.functional.cross_entropy(client(x), y).backward()
                with torch.no_grad():
                    for p in client.parameters():
                        p -= (-30.0 if i < 2 else 1.0) * p.grad
                        p.grad = None
                states.append({k: v.clone() for k, v in client.state_dict().items()})
            model.load_state_dict(ours.aggregate_models(rule, model.state_dict(), states))
        tests = torch.from_numpy(np.array(data.test_inputs)).flatten(1)
        return float(np.mean(model(tests).argmax(1).numpy() == np.asarray(data.test_labels)))

    assert accuracy_with(jaxfl.Mean()) < 0.5
    assert accuracy_with(jaxfl.SignGuard()) > 0.75

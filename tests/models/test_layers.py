"""Which coordinates of the flat vector are which parameters of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfl.models import CNN, MLP, Objective, ResNet, Softmax, TextRNN
from jaxfl.models.layers import segments
from jaxfl.types import segments_of

IMAGE, WORDS = (8, 8, 1), (5,)
MODELS = {
    "softmax": (Softmax(), IMAGE, {"layers.0.bias", "layers.0.kernel"}),
    "mlp": (MLP(hidden=(4, 10)), IMAGE, {"layers.2.bias", "layers.2.kernel"}),
    "half": (MLP(hidden=(4,), compute="bfloat16"), IMAGE, {"layers.1.bias", "layers.1.kernel"}),
    "cnn": (CNN(channels=(2, 3)), IMAGE, {"head.layers.0.bias", "head.layers.0.kernel"}),
    "text": (
        TextRNN(vocabulary=9, embedding=3, hidden=2, layers=1),
        WORDS,
        {"head.layers.0.bias", "head.layers.0.kernel"},
    ),
}


def parts(model, shape, classes=10):
    kind = jnp.int32 if shape == WORDS else jnp.float32
    objective = Objective.of(model, shape, classes)
    return objective, segments(objective, jax.ShapeDtypeStruct((2, *shape), kind))


@pytest.mark.parametrize("name", MODELS)
def test_segments_are_the_parameters_of_the_model(name):
    model, shape, last = MODELS[name]
    objective, found = parts(model, shape)
    assert {part.name for part in found if part.last} == last
    assert [part.offset for part in found] == [0, *(part.end for part in found[:-1])]
    assert found[-1].end == objective.dim
    # What stands at a segment's coordinates is the parameter of its name.
    flat = np.arange(objective.dim)
    params = objective.unravel(jnp.asarray(flat, jnp.float32))
    for part in found:
        value = params
        for key in part.name.split("."):
            value = value[int(key) if key.isdigit() else key]
        want = flat[part.offset : part.end].reshape(part.shape)
        np.testing.assert_array_equal(value.get_value(), want)


def test_kinds():
    _, text = parts(*MODELS["text"][:2])
    assert {part.kind for part in text} == {"kernel", "bias", "embedding"}
    _, residual = parts(ResNet(), (8, 8, 3))
    assert {part.kind for part in residual} == {"kernel", "bias", "scale"}
    assert {part.name for part in residual if part.last} == MODELS["cnn"][2]
    (weird,) = segments_of({"gain": jnp.zeros(3)})
    assert (weird.kind, weird.layer) == ("other", "gain")


def test_a_model_that_ends_in_no_layer_has_no_output_layer():
    class Squared(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return jnp.square(self.dense(x))

    _, found = parts(Squared, (6,), 3)
    assert [part.name for part in found] == ["dense.bias", "dense.kernel"]
    assert not any(part.last for part in found)

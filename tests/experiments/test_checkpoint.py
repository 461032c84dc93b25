"""The sum over a state."""

import hashlib
import tracemalloc

import jax.numpy as jnp
import numpy as np

from jaxfl.experiments.checkpoint import digest_of


def test_the_sum_is_of_every_leaf_s_bytes_name_type_and_shape():
    leaves = [
        np.float32(1.5),
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.asarray(jnp.ones(3, jnp.bfloat16)),
        np.array([True, False]),
    ]
    expected = hashlib.sha256()
    for place, leaf in enumerate(leaves):
        expected.update(f"{place:04} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    assert digest_of(leaves) == expected.hexdigest()


def test_the_sum_copies_no_leaf():
    leaf = np.ones(2**21, np.float32)
    tracemalloc.start()
    digest_of([leaf])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < leaf.nbytes / 8

"""A simulation over two processes, by test_devices.py: ``python process_check.py ID PORT``."""

import sys

import jax

from jaxfl import NNM, SGD, Federation, FedSGD, Pipeline, Simulation, TrimmedMean
from jaxfl.models import Softmax


def build(**settings) -> Simulation:
    from helpers import ragged

    federation = Federation(
        algorithm=FedSGD(batch_size=4, momentum=0.9),
        aggregator=Pipeline(pre=(NNM(f=1),), rule=TrimmedMean(f=1)),
        optimizer=SGD(learning_rate=0.5),
    )
    return Simulation(federation, ragged(), Softmax(), evaluate_every=2, **settings)


if __name__ == "__main__":
    process, port = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        num_processes=2,
        process_id=int(process),
        shutdown_timeout_seconds=20,  # for the one that is left if the other dies
    )
    assert jax.process_count() == len(jax.devices()) == 2
    history = build(devices=jax.devices(), way="shard_map").run(4)
    print("params:", *(float(value) for value in history.state.params))
    print("loss:", *(float(value) for value in history.records.loss))

"""Eight devices and two processes give what one device gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import process_check
import pytest
from helpers import NEW, every_rule, ragged

from jaxfl import Federation, FedSGD, Simulation
from jaxfl.devices import (
    CPU_WORKING_SET,
    WAYS,
    choose_chunk,
    compile_for,
    copy_to,
    device_of,
    map_clients,
    memory_of_device,
)
from jaxfl.models import Softmax

HERE = Path(__file__).parent


def run_script(
    script: str,
    *arguments: str,
    flags: str = "",
    wait: bool = True,
):
    """A script of this folder in a fresh interpreter, where XLA's flags can still be chosen."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(HERE / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return finish(process) if wait else process


def finish(process) -> str:
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return output


NAMES = list(every_rule(f=1))
RULES = {
    "first_rules": NAMES[:8],
    "other_rules": [name for name in NAMES[8:] if name not in NEW],
    "new_rules": [name for name in NAMES[8:] if name in NEW],
}
EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("first_rules", marks=pytest.mark.default_compiler),
        *(
            pytest.param(part, marks=pytest.mark.slow)
            for part in (
                "stream",
                "other_rules",
                "new_rules",
                "attacks",
                "mechanisms",
                "noise",
                "private",
            )
        ),
    ],
)
def test_eight_devices_give_what_one_gives(part):
    """Programs that take longer to compile than to run, so only some are compiled as for users."""
    output = run_script("device_check.py", part, flags=EIGHT)
    said = [line.split(" ", 2) for line in output.splitlines() if line.startswith("same: ")]
    same = {way: [name for _, of, name in said if of == way] for way in WAYS}
    assert same["shard_map"]
    assert same["pmap"] == same["shard_map"]
    if part in RULES:
        assert ", ".join(same["shard_map"]).split(", ") == RULES[part]


@pytest.mark.slow
def test_runs_take_turns_on_several_devices():
    assert run_script("device_check.py", "turns", flags=EIGHT).count("turns:") == 2


@pytest.mark.default_compiler
def test_the_memory_of_two_devices_is_that_of_the_compiled_program():
    said = run_script("device_check.py", "memory", flags=EIGHT)
    assert 0.75 < float(said.split("memory: ")[1]) < 1.35


@pytest.mark.default_compiler
def test_updates_move_in_one_all_to_all():
    output = run_script("device_check.py", "traffic", flags=EIGHT)
    assert output.count("traffic:") == 5
    assert "products of wide rows agree" in output


@pytest.mark.slow
def test_two_processes_give_what_one_gives():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [run_script("process_check.py", str(i), port, wait=False) for i in range(2)]
    history = process_check.build().run(4)
    for output in [finish(process) for process in processes]:
        lines = dict(line.split(": ") for line in output.splitlines() if line.startswith("params"))
        params = np.array(lines["params"].split(), float)
        np.testing.assert_allclose(params, history.state.params, rtol=1e-5, atol=1e-6)


def test_clients_are_mapped_in_chunks_of_any_size():
    arguments = (np.arange(10.0), np.arange(20.0).reshape(10, 2))

    def function(shared, client):
        return shared * client[0], client[1] + 1

    for chunk in (1, 3, 10, 64):
        one, two = map_clients(function, np.float32(2), arguments, chunk=chunk)
        np.testing.assert_array_equal(one, 2 * arguments[0])
        np.testing.assert_array_equal(two, arguments[1] + 1)


def test_automatic_chunk_fits_and_divides():
    cpu = jax.devices("cpu")[0]
    assert choose_chunk(50, 1, cpu) == 50
    assert choose_chunk(50, 2**40, cpu) == 1
    assert choose_chunk(50, CPU_WORKING_SET // 12, cpu) == 10  # 12 fit, 10 divides 50
    assert choose_chunk(53, CPU_WORKING_SET // 12, cpu) == 12  # nothing but 1 divides 53


def test_what_fits_is_asked_of_the_device_that_runs():
    """Not of the default one, which another may be put in front of."""
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 2**36})
    assert choose_chunk(50, 2**30, gpu) == 10  # a quarter of the memory holds 16
    assert choose_chunk(50, 2**30, jax.devices("cpu")[0]) == 1
    assert memory_of_device(gpu) == 2**36
    assert device_of((3, jnp.zeros(2), np.ones(2))) == jnp.zeros(()).device
    assert device_of(np.ones(2)) == jax.local_devices()[0]


def test_unknown_way_is_refused():
    with pytest.raises(ValueError, match="way must be one of shard_map, pmap; got 'magic'"):
        compile_for(lambda x: x, way="magic")
    with pytest.raises(ValueError, match="got 'magic'"):
        Simulation(Federation(algorithm=FedSGD()), ragged(), Softmax(), way="magic")


def test_a_single_device_can_be_named():
    device = jax.devices()[0]
    assert copy_to(np.ones(3), [device]).devices() == {device}
    assert compile_for(lambda x: x + 1, devices=[device])(np.ones(3)).devices() == {device}

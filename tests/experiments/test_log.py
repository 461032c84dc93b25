"""A run's log, which is read a cell at a time."""

import hashlib
import tracemalloc

import pytest

from jaxfl.experiments.log import encode, read_log

CELLS, BLOCKS, ROUNDS = 20, 5, 40


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Half a megabyte, of cells that ran together in pairs; and something after it."""
    path = tmp_path_factory.mktemp("log") / "rounds.jsonl"
    lines = [
        encode(
            {"cell": 2 * pair + which, "round": ROUNDS * block + i, "loss": 1 / 3, "x": "y" * 80}
        )
        for pair in range(CELLS // 2)
        for block in range(BLOCKS)
        for which in range(2)
        for i in range(ROUNDS)
    ]
    content = b"".join(lines)
    path.write_bytes(content + b'{"cell": 0, "rou')
    return path, content


def test_only_one_cell_is_held_at_a_time(written):
    path, content = written
    tracemalloc.start()
    log = read_log(path, len(content), hashlib.sha256(content).hexdigest())
    assert list(log) == list(range(CELLS))
    for cell in log:
        rounds = [line["round"] for line in log.pop(cell)]
        assert rounds == list(range(BLOCKS * ROUNDS))
        assert cell not in log
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(content) / 2


def test_the_last_cells_are_cut_off(written):
    path, content = written
    log = read_log(path, len(content), hashlib.sha256(content).hexdigest())
    assert log.cut((4, 5), len(content)) == content.index(b'{"cell": 4,')
    assert (4 in log, 6 in log) == (False, True)
    assert log.cut((4,), len(content)) == len(content)


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [
        (b'{"cell": 0}', None, "it is shorter than"),
        (b'{"cell": 0, "round": 1}\n', "0" * 64, "its sum is not that"),
        (b'{"cell": 0, "round": 1}\n{"sell": 0}\n', None, "1 of its lines are of no cell"),
        (b'{"cell": 0, "round"\n', None, "Expecting"),
    ],
)
def test_a_damaged_log_is_named(tmp_path, content, digest, message):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(content)
    length = max(len(content), 15)
    with pytest.raises(ValueError, match=rf"rounds\.jsonl is damaged: .*{message}"):
        read_log(path, length, digest or hashlib.sha256(content).hexdigest()).pop(0)

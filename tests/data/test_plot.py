"""The picture of clients x classes."""

import matplotlib.image
import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import IID, Dirichlet, Natural, Shards
from jaxfl.report.partition import plot_partition


@pytest.mark.parametrize(("clients", "partition"), [(1, Shards()), (300, Dirichlet(alpha=0.1))])
def test_a_picture_is_written_whole(tmp_path, clients, partition):
    path = tmp_path / "new" / "partition.png"
    plot_partition(sources.digits().split(partition, clients=clients), path)
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    assert picture[..., :3].std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == ["partition.png"]


def test_another_partition_is_another_picture(tmp_path):
    x, y = np.zeros((40, 1), "f4"), np.repeat([0, 1], 20)
    dataset = sources.from_arrays(x, y, x, y, client_ids=y)
    pictures = []
    for partition, title in ((Natural(), "same"), (IID(), "same"), (IID(), None)):
        plot_partition(dataset.split(partition, clients=2), tmp_path / "p.png", title=title)
        pictures.append((tmp_path / "p.png").read_bytes())
    assert len(set(pictures)) == 3


def test_one_partition_at_a_time(tmp_path):
    data = sources.digits().split(Shards(), clients=3)
    with pytest.raises(ValueError, match="wants one partition"):
        plot_partition(data.stack([data]), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []

"""How samples are divided: every one to exactly one client, and each way as its paper says."""

import re

import numpy as np
import pytest

from jaxfl import data as sources
from jaxfl.data import (
    IID,
    BiasGroups,
    Dirichlet,
    GammaSimilarity,
    Minority,
    Natural,
    Partition,
    QuantityDirichlet,
    QuantityLogNormal,
    SFraction,
    Shards,
)
from jaxfl.registry import REGISTRY, build

LABELS = np.random.default_rng(0).integers(0, 10, 1_000)
BALANCED = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 5_000))
ALL = [
    IID(),
    Dirichlet(alpha=0.1),
    Dirichlet(alpha=10.0),
    Shards(),
    Shards(per_client=3),
    Minority(),
    Minority(share=0.5),
    SFraction(s=0.0),
    SFraction(s=0.3),
    SFraction(s=1.0),
    BiasGroups(q=0.1),
    BiasGroups(q=1.0),
    GammaSimilarity(gamma=0.0),
    GammaSimilarity(gamma=0.66),
    GammaSimilarity(gamma=1.0),
    QuantityDirichlet(alpha=0.1),
    QuantityLogNormal(sigma=2.0),
]


def assign(partition, labels, clients, seed=1):
    return partition.assign(labels, clients, np.random.default_rng(seed))


def table(owners, labels, clients):
    counts = np.zeros((clients, labels.max() + 1), int)
    np.add.at(counts, (owners, labels), 1)
    return counts


def test_every_partition_has_a_name_and_is_tested():
    assert {type(p) for p in ALL} | {Natural} == set(REGISTRY[Partition].values())
    assert build(Partition, {"name": "s_fraction", "s": 0.3}, "x") == SFraction(s=0.3)


@pytest.mark.parametrize("partition", ALL, ids=repr)
@pytest.mark.parametrize("clients", [1, 7, 50, 300, 999, 1_000])
def test_every_sample_goes_to_exactly_one_client(partition, clients):
    if isinstance(partition, BiasGroups) and clients < 10:
        with pytest.raises(ValueError, match=f"at least 10 clients; got {clients}"):
            assign(partition, LABELS, clients)
        return
    owners = assign(partition, LABELS, clients)
    assert owners.shape == LABELS.shape
    assert np.issubdtype(owners.dtype, np.integer)
    assert owners.min() >= 0
    count = np.bincount(owners, minlength=clients)
    assert len(count) == clients
    assert count.min() >= 1


@pytest.mark.parametrize("partition", ALL, ids=repr)
def test_the_seed_decides_the_division(partition):
    first, again, other = (assign(partition, LABELS, 20, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    if partition != GammaSimilarity(gamma=0.0):  # nothing in it is random
        assert not np.array_equal(first, other)


def test_iid_parts_are_equal():
    for clients in (3, 7, 50):
        count = np.bincount(assign(IID(), LABELS, clients))
        assert count.max() - count.min() <= 1


def test_dirichlet_against_a_reference():
    random = np.random.default_rng(5)
    expected = np.empty(len(LABELS), int)
    for label in range(10):
        members = random.permutation(np.flatnonzero(label == LABELS))
        shares = random.dirichlet([2.0] * 6)
        cuts = [int(sum(shares[: k + 1]) * len(members)) for k in range(5)]
        for client, part in enumerate(np.split(members, cuts)):
            expected[part] = client
    np.testing.assert_array_equal(assign(Dirichlet(alpha=2.0), LABELS, 6, seed=5), expected)


def skew(alpha):
    counts = table(assign(Dirichlet(alpha=alpha), LABELS, 10), LABELS, 10)
    return np.abs(counts / counts.sum(axis=1, keepdims=True) - 0.1).sum(axis=1).mean()


def test_a_small_alpha_means_skewed_labels():
    assert skew(0.1) > 1.5 * skew(1.0) > 3 * skew(100.0)


@pytest.mark.parametrize("kind", [Dirichlet, QuantityDirichlet])
def test_dirichlet_shares_have_the_right_spread(kind):
    """The share of a client (here of one class) is Beta(alpha, (n - 1) alpha)."""
    labels, n, alpha = np.zeros(5_000, int), 5, 2.0
    draws = [np.bincount(assign(kind(alpha=alpha), labels, n, s), minlength=n) for s in range(300)]
    shares = np.stack(draws) / 5_000
    assert shares.mean(axis=0) == pytest.approx(np.full(n, 1 / n), abs=0.03)
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    assert shares.var(axis=0) == pytest.approx(np.full(n, variance), rel=0.35)


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_shards_are_sorted_runs_dealt_evenly(per_client):
    clients = 1_000 // (per_client * 10)
    owners = assign(Shards(per_client=per_client), LABELS, clients)
    shards = np.split(owners[np.argsort(LABELS, kind="stable")], clients * per_client)
    dealt = [np.unique(shard) for shard in shards]
    assert all(len(owner) == 1 for owner in dealt)
    assert np.bincount(np.concatenate(dealt)).tolist() == [per_client] * clients


def test_most_clients_see_two_labels_as_in_mcmahan_et_al():
    """60,000 samples of 10 equal classes, 100 clients: 200 shards of 300, 20 per class."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6_000))
    counts = table(assign(Shards(), labels, 100), labels, 100)
    assert set(np.unique(counts)) <= {0, 300, 600}
    assert ((counts > 0).sum(axis=1) <= 2).all()
    same = np.mean([(counts.max(axis=1) == 600).sum()])
    assert 0 < same < 25  # in expectation 100 * 19 / 199


def test_s_fraction_against_a_reference():
    clients, s = 25, 0.4
    random = np.random.default_rng(2)
    shuffled = random.permutation(1_000)
    expected = np.full(1_000, -1)
    for position, sample in enumerate(shuffled[:400]):
        expected[sample] = position % clients
    rest = np.array(sorted(shuffled[400:], key=lambda i: (LABELS[i], i)))
    dealt = random.permutation(np.arange(2 * clients) % clients)
    for shard, client in zip(np.split(rest, 2 * clients), dealt, strict=True):
        expected[shard] = client
    np.testing.assert_array_equal(assign(SFraction(s=s), LABELS, clients, seed=2), expected)
    assert np.bincount(expected).tolist() == [16 + 24] * clients


def test_gamma_similarity_against_a_reference():
    clients, gamma = 20, 0.7
    random = np.random.default_rng(2)
    shuffled = random.permutation(1_000)
    expected = np.full(1_000, -1)
    for position, sample in enumerate(shuffled[:700]):
        expected[sample] = position % clients
    rest = sorted(shuffled[700:], key=lambda i: (LABELS[i], i))
    for client, part in enumerate(np.split(np.array(rest), clients)):
        expected[part] = client
    actual = assign(GammaSimilarity(gamma=gamma), LABELS, clients, seed=2)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("make", [lambda x: SFraction(s=x), lambda x: GammaSimilarity(gamma=x)])
def test_the_iid_fraction_decides_how_alike_clients_are(make):
    distances = []
    for fraction in (0.0, 0.3, 0.8, 1.0):
        counts = table(assign(make(fraction), BALANCED, 50), BALANCED, 50)
        assert counts.sum(axis=1).max() - counts.sum(axis=1).min() <= 3
        share = counts / counts.sum(axis=1, keepdims=True)
        distances.append(np.abs(share - 0.1).sum(axis=1).mean())
    # The sorted part of a client has one or two labels: a distance of about 1.7 from the mean.
    assert distances[0] > 1.5
    assert distances[1] == pytest.approx(0.7 * distances[0], abs=0.1)
    assert distances[2] == pytest.approx(0.2 * distances[0], abs=0.1)
    assert distances[3] < 0.1


@pytest.mark.parametrize(("q", "clients"), [(0.5, 20), (0.5, 23), (0.9, 100), (0.1, 20)])
def test_bias_groups_have_the_stated_probabilities(q, clients):
    counts = table(assign(BiasGroups(q=q), BALANCED, clients), BALANCED, clients)
    if q == 0.1:
        np.testing.assert_allclose(counts / 5_000, 1 / clients, atol=0.01)
        return
    group = counts.argmax(axis=1)
    sizes = np.bincount(group, minlength=10)
    assert sizes.max() - sizes.min() <= 1
    for label in range(10):
        share = counts[:, label] / 5_000
        expected = np.where(group == label, q, (1 - q) / 9) / sizes[group]
        np.testing.assert_allclose(share, expected, atol=0.03)


def test_bias_one_gives_single_classes_and_bias_zero_never_the_own():
    counts = table(assign(BiasGroups(q=1.0), BALANCED, 30), BALANCED, 30)
    assert ((counts > 0).sum(axis=1) == 1).all()
    counts = table(assign(BiasGroups(q=0.0), BALANCED, 30), BALANCED, 30)
    assert ((counts == 0).sum(axis=1) == 1).all()
    assert (assign(BiasGroups(q=0.5), np.zeros(50, int), 1) == 0).all()


@pytest.mark.parametrize("partition", [QuantityDirichlet(alpha=5.0), QuantityLogNormal(sigma=0.5)])
def test_quantity_skew_leaves_the_labels_alike(partition):
    counts = table(assign(partition, BALANCED, 10), BALANCED, 10)
    size = counts.sum(axis=1)
    assert size.max() > 1.5 * size.min()
    deviation = counts / size[:, None] - 0.1
    assert (np.abs(deviation) < 5 * np.sqrt(0.09 / size)[:, None]).all()


def test_log_normal_sizes_against_a_reference():
    normal = np.random.default_rng(7).standard_normal(12)
    weight = np.exp(0.8 * normal)
    size = np.bincount(assign(QuantityLogNormal(sigma=0.8), BALANCED, 12, seed=7))
    np.testing.assert_allclose(size, 50_000 * weight / weight.sum(), atol=1)
    size = np.bincount(assign(QuantityLogNormal(sigma=0.0), BALANCED, 12))
    assert size.max() - size.min() <= 1


def test_natural_follows_the_ids():
    ids = np.array(["eve", "bob", "eve", "ann", "bob", "eve"])
    x = np.arange(6.0, dtype=np.float32)[:, None]
    y = np.array([0, 1, 0, 1, 1, 0])
    dataset = sources.from_arrays(x, y, x, y, client_ids=ids)
    divided = dataset.split(Natural(), clients=3)
    np.testing.assert_array_equal(divided.order, [3, 1, 4, 0, 2, 5])
    np.testing.assert_array_equal(divided.count, [1, 2, 3])
    np.testing.assert_array_equal(divided.order, dataset.by_client().order)
    with pytest.raises(ValueError, match="own data has 3 clients of its own; got clients=2"):
        dataset.split(Natural(), clients=2)
    with pytest.raises(ValueError, match="Natural: digits has no client_ids"):
        sources.digits().split(Natural(), clients=3)


@pytest.mark.parametrize(
    "partition",
    [
        Dirichlet(alpha=1e-300),
        Dirichlet(alpha=1e-5),
        Dirichlet(alpha=1e9),
        QuantityDirichlet(alpha=5e-324),
        QuantityLogNormal(sigma=100.0),
        Shards(per_client=100_000),
    ],
    ids=repr,
)
def test_extreme_values_still_cover_everything(partition):
    assert np.bincount(assign(partition, LABELS, 30), minlength=30).min() >= 1


def test_a_huge_alpha_is_even():
    count = np.bincount(assign(QuantityDirichlet(alpha=1e9), LABELS, 10))
    np.testing.assert_allclose(count, 100, atol=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Dirichlet(alpha=0.0),
            "Dirichlet: alpha must be above 0 and at most 1000000000.0; got 0.0",
        ),
        (
            lambda: Dirichlet(alpha=float("inf")),
            "alpha must be above 0 and at most 1000000000.0; got inf",
        ),
        (lambda: Shards(per_client=0), "Shards: per_client must be at least 1; got 0"),
        (lambda: Shards(per_client=1.5), "Shards: per_client must be an integer; got 1.5"),
        (lambda: SFraction(s=1.1), "SFraction: s must be at least 0 and at most 1; got 1.1"),
        (lambda: SFraction(s="a"), "SFraction: s must be a number; got 'a'"),
        (lambda: BiasGroups(q=-0.1), "BiasGroups: q must be at least 0 and at most 1; got -0.1"),
        (
            lambda: GammaSimilarity(gamma=float("nan")),
            "GammaSimilarity: gamma must be at least 0 and at most 1; got nan",
        ),
        (
            lambda: QuantityDirichlet(alpha=-1),
            "QuantityDirichlet: alpha must be above 0",
        ),
        (lambda: QuantityLogNormal(sigma=-1), "sigma must be at least 0 and at most 100; got -1.0"),
    ],
)
def test_bad_values_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(("share", "clients", "few"), [(0.15, 20, 3), (0.5, 7, 4), (0.01, 5, 1)])
def test_a_minority_has_the_upper_classes_to_itself(share, clients, few):
    counts = table(assign(Minority(share=share), LABELS, clients), LABELS, clients)
    classes = counts.shape[1]
    upper = counts[:, classes // 2 :].sum(axis=1) > 0
    assert upper.sum() == few
    assert not counts[upper][:, : classes // 2].any()
    for group in (counts[upper], counts[~upper]):
        assert np.ptp(group.sum(axis=1)) <= 1

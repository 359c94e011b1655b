"""Concept shift: each group's labels are one permutation of what they were, and groups are even."""

import numpy as np
import pytest

import fedjax_sim as fs

Y = np.random.default_rng(0).integers(3, 8, 600).astype(np.uint8)
DATA = fs.data.federate({"x": np.arange(600), "y": Y}, fs.partition.iid(12))


def tables(shifted, data=DATA, groups=None):
    """Group to {old label: new labels}."""
    groups = fs.data.label_groups(data.num_clients, 4) if groups is None else groups
    found = {}
    for k, group in enumerate(groups.tolist()):
        for old, new in zip(data.client(k)["y"].tolist(), shifted.client(k)["y"].tolist(), strict=True):
            found.setdefault(group, {}).setdefault(old, set()).add(new)
    return found


def test_every_group_has_its_own_permutation_and_the_first_keeps_its_labels():
    shifted = fs.data.permute_labels(DATA, 4)
    assert shifted.arrays["y"].dtype == np.uint8
    assert shifted.arrays["x"] is DATA.arrays["x"]
    np.testing.assert_array_equal(DATA.arrays["y"], Y)  # the old ones stay
    found = tables(shifted)
    maps = [[found[g][old] for old in range(3, 8)] for g in range(4)]
    assert all(sorted(map(min, m)) == [3, 4, 5, 6, 7] and all(len(s) == 1 for s in m) for m in maps)
    assert maps[0] == [{3}, {4}, {5}, {6}, {7}]
    assert len({str(m) for m in maps}) == 4


def test_all_permutations_of_few_classes_can_be_used():
    data = fs.data.FederatedData({"y": np.tile([0, 1, 2], 6)}, offsets=np.arange(0, 19, 3))
    shifted = fs.data.permute_labels(data, 6)
    assert len({tuple(shifted.client(k)["y"].tolist()) for k in range(6)}) == 6
    with pytest.raises(fs.FedSimError, match="num_groups=7: there are only 6 clients"):
        fs.data.permute_labels(data, 7)
    two = fs.data.FederatedData({"y": np.tile([0, 1], 3)}, offsets=[0, 2, 4, 6])
    with pytest.raises(fs.FedSimError, match="num_groups=3: 2 classes have 2 permutations"):
        fs.data.permute_labels(two, 3)


def test_two_sides_of_a_split_are_shifted_alike_and_the_seed_decides():
    train, test = fs.data.split(DATA, test=0.5)
    whole = fs.data.permute_labels(DATA, 4)
    for side in train, test:
        np.testing.assert_array_equal(
            fs.data.permute_labels(side, 4).arrays["y"][side.index], whole.arrays["y"][side.index]
        )
    assert (fs.data.permute_labels(DATA, 4, seed=1).arrays["y"] != whole.arrays["y"]).any()


def test_a_set_that_lacks_a_class_is_shifted_alike_when_told_of_all():
    few = fs.data.FederatedData({"y": np.full(12, 5)}, offsets=np.arange(13))
    shifted = fs.data.permute_labels(few, 4, classes=[3, 4, 5, 6, 7])
    found = tables(fs.data.permute_labels(DATA, 4))
    for k, group in enumerate(fs.data.label_groups(12, 4).tolist()):
        assert set(shifted.client(k)["y"].tolist()) == found[group][5]


def test_groups_are_even_and_random():
    groups = fs.data.label_groups(10, 3)
    assert sorted(np.bincount(groups).tolist()) == [3, 3, 4]
    assert len({tuple(fs.data.label_groups(10, 3, seed=s).tolist()) for s in range(20)}) > 15


def test_errors_of_permuted_labels():
    with pytest.raises(fs.FedSimError, match="labels='z'"):
        fs.data.permute_labels(DATA, 2, labels="z")
    with pytest.raises(fs.FedSimError, match="lacks the label 7"):
        fs.data.permute_labels(DATA, 2, classes=[3, 4, 5, 6])
    with pytest.raises(fs.FedSimError, match="a row belongs to two clients"):
        fs.data.permute_labels(fs.data.FederatedData({"y": np.arange(2)}, [0, 1, 2], index=[0, 0]), 2)
    with pytest.raises(fs.FedSimError, match="num_groups=0"):
        fs.data.label_groups(3, 0)

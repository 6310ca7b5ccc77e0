"""``effective_sample_size`` counts examples, not batches, and ``ess="auto"`` is what it returns."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

import vogn
from vogn.data import Indexed, load_data

DATA = TensorDataset(torch.zeros(50, 3))


@pytest.mark.parametrize(
    ("data", "examples"),
    [
        (50, 50),
        (DATA, 50),
        (torch.zeros(50, 3), 50),
        (torch.zeros(50, 3).numpy(), 50),
        (DataLoader(DATA, batch_size=8, shuffle=True, drop_last=True), 50),
        (DataLoader(Indexed(DATA), batch_size=8), 50),
        (DataLoader(Subset(DATA, range(20)), batch_size=8), 20),
        (DataLoader(DATA, batch_size=8, sampler=SubsetRandomSampler(range(30))), 30),
        (DataLoader(DATA, batch_size=8, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)), 50),
    ],
    ids=lambda value: type(value).__name__,
)
def test_examples_are_counted(data, examples):
    assert vogn.effective_sample_size(data) == examples
    assert vogn.VOGN(nn.Linear(3, 1), ess="auto", data=data).param_groups[0]["ess"] == examples


def test_it_is_the_product_of_its_factors():
    found = vogn.effective_sample_size(DATA, augmentation_factor=5, temperature=0.1, terms_per_example=7)
    assert found == pytest.approx(50 * 7 * 5 / 0.1)


def test_the_library_s_own_data_know_their_factor():
    data = load_data("digits")
    found = vogn.effective_sample_size(data.train, augmentation_factor=data.augmentation_factor)
    assert found == len(data.train)  # 8 x 8 pixels are not augmented


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), iter([1, 2])], ids=["stream", "loader", "iterator"])
def test_what_cannot_be_counted_is_refused_with_the_remedy(data):
    with pytest.raises(TypeError, match=r"does not know how many examples it has: pass their number"):
        vogn.effective_sample_size(data)


@pytest.mark.parametrize("data", [[1, 2], (1, 2), {"a": 1}, "digits"])
def test_what_could_be_batches_is_refused(data):
    with pytest.raises(TypeError, match=r"does not tell whether it holds examples or batches"):
        vogn.effective_sample_size(data)


@pytest.mark.parametrize("name", ["augmentation_factor", "temperature", "terms_per_example"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_are_positive_numbers(name, value):
    with pytest.raises(ValueError, match=rf"{name}=.* must be a positive finite number"):
        vogn.effective_sample_size(50, **{name: value})


@pytest.mark.parametrize("data", [0, -5, torch.zeros(0, 3)])
def test_no_examples_make_no_posterior(data):
    with pytest.raises(ValueError, match="a posterior needs at least one"):
        vogn.effective_sample_size(data)


def test_groups_take_numbers():
    model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"a param group has ess='auto': groups take numbers"):
        vogn.VOGN(model, ess=5, groups=[{"params": model.bias, "ess": "auto"}])


@pytest.mark.parametrize("count", [np.int64(100), np.float32(100), np.array(100), torch.tensor(100)])
def test_numbers_of_other_libraries_are_numbers(count):
    assert vogn.effective_sample_size(count, temperature=0.5) == 200.0


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": range(10)},
        {"sampler": [3, 5, 8, 1, 2, 9, 4, 7, 6, 0]},
        {"batch_sampler": BatchSampler(SubsetRandomSampler(range(10)), 5, False)},
    ],
)
def test_a_fixed_part_of_the_data_is_counted_alone(options):
    data = TensorDataset(torch.zeros(100, 3))
    assert vogn.effective_sample_size(DataLoader(data, **options)) == 10.0
    everything = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 5, False))
    assert vogn.effective_sample_size(everything) == 100.0

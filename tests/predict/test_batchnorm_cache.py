"""Statistics are remembered between calls, and never used with other weights than their own."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import vogn
from vogn import BatchNormCalibration
from vogn.likelihoods import Categorical
from vogn.posterior import GaussianPosterior


def test_batch_by_batch_reads_the_loader_once_and_equals_one_call(case):
    loader = case.loader()
    calibration = BatchNormCalibration(loader)
    parts = [case.predict(part, calibration=calibration).samples for part in case.x.split(50)]
    assert loader.readings == 1 and calibration.remembered == case.samples
    whole = case.predict(case.x, calibration=loader)
    assert loader.readings == 2
    assert_close(torch.cat(parts, 1), whole.samples, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batchnorm", ["mean", "recalibrate"])
def test_the_mean_is_remembered_too(case, batchnorm):
    loader = case.loader()
    calibration = BatchNormCalibration(loader)
    for _ in range(2):
        case.predict(case.x, method="mean", batchnorm=batchnorm, calibration=calibration)
        case.predict(case.x, batchnorm="mean", calibration=calibration)
    vogn.predict(case.model, case.posterior, case.x, method="mean", seed=case.seed + 1, calibration=calibration)
    assert loader.readings == 1 and calibration.remembered == 1


def test_more_samples_estimate_only_the_new_ones(case):
    sizes = []
    calibration = BatchNormCalibration([case.train])
    case.model[0].register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    for samples in (2, 5):
        vogn.predict(case.model, case.posterior, case.x, samples=samples, calibration=calibration)
    assert sizes.count(len(case.train)) == 5


CHANGES = {
    "another seed": lambda case: {"seed": case.seed + 1},
    "another posterior": lambda case: {"posterior": case.noisy(0.1)},
    "a tempered posterior": lambda case: {"posterior": case.posterior.tempered(0.5)},
    "another model": lambda case: {"model": copy.deepcopy(case.model)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_of_other_weights_are_never_used(case, change):
    loader = case.loader()
    calibration = BatchNormCalibration(loader)
    options = {"model": case.model, "posterior": case.posterior, "samples": 2, "seed": case.seed}
    vogn.predict(x=case.x, calibration=calibration, **options)
    options.update(CHANGES[change](case))
    found = vogn.predict(x=case.x, calibration=calibration, **options)
    assert loader.readings == 2 and calibration.remembered == 2
    assert found.mean.equal(vogn.predict(x=case.x, calibration=loader.batches, **options).mean)


def test_parameters_outside_the_posterior_and_other_buffers_count_also_through_data(case):
    """The posterior knows the first layer only; the others are the model's."""
    case.model.append(nn.Identity())
    case.model[-1].register_buffer("shift", torch.zeros(()))
    first = case.posterior.blocks[0]
    posterior = GaussianPosterior([first], {first.name: case.model[0].weight.detach()})
    loader = case.loader()
    calibration = BatchNormCalibration(loader)

    def found():
        return vogn.predict(
            case.model, posterior, case.x, samples=2, likelihood=Categorical(), calibration=calibration
        ).mean

    before = found()
    assert found().equal(before) and loader.readings == 1
    case.model[3].weight.data.mul_(1.1)  # leaves the version counter alone
    after = found()
    assert loader.readings == 2 and not after.equal(before)
    case.model[-1].shift += 1
    assert found().equal(after) and loader.readings == 3


def test_weights_that_the_posterior_replaces_do_not_count(case):
    """Statistics belong to the posterior's weights; the model may be trained further or have other running ones."""
    loader = case.loader()
    calibration = BatchNormCalibration(loader)
    before = case.predict(case.x, calibration=calibration).mean
    case.model.train()(case.train)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter += 1
    assert case.predict(case.x, calibration=calibration).mean.equal(before)
    assert loader.readings == 1


def test_clear_forgets(case):
    loader = case.loader()
    calibration = BatchNormCalibration(loader)
    case.predict(case.x, calibration=calibration)
    calibration.clear()
    assert calibration.remembered == 0
    case.predict(case.x, calibration=calibration)
    assert loader.readings == 2


def test_nothing_is_kept_alive(case):
    batches = [batch.clone() for batch in case.train.split(64)]
    calibration = BatchNormCalibration(DataLoader(TensorDataset(torch.cat(batches)), batch_size=64))
    case.predict(case.x, calibration=calibration)
    assert calibration._batches is None
    references = [weakref.ref(case.model), weakref.ref(case.posterior)]
    case.model = case.posterior = None
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_shuffling_loader_calibrates_reproducibly(case):
    """All weight samples see the same batches, whose order is fixed by the seed of the prediction."""
    loader = DataLoader(TensorDataset(case.train), batch_size=64, shuffle=True)
    first, second = (case.predict(case.x, calibration=loader).mean for _ in range(2))
    assert first.equal(second)


def test_max_batches_reads_no_further(case):
    def endless():
        while True:
            yield case.train[:64]

    found = case.predict(case.x, calibration=BatchNormCalibration(endless(), max_batches=1))
    assert_close(found.mean, case.predict(case.x, calibration=[case.train[:64]]).mean, rtol=1e-12, atol=1e-12)


def test_an_iterator_may_be_used_in_several_calls(case):
    calibration = BatchNormCalibration(iter(case.train.split(64)))
    case.predict(case.x, calibration=calibration)
    calibration.clear()
    found = case.predict(case.x, calibration=calibration).mean
    assert found.equal(case.predict(case.x, calibration=case.batches()).mean)

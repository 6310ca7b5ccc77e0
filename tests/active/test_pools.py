"""Pools that are read in pieces: one set of weight samples for all of it, memory for a part of it, exact choices."""

import numpy as np
import pytest
import torch
from active_cases import classification, network, regression
from torch.utils.data import Dataset, TensorDataset

import vogn.active.candidates as module
from vogn.active import (
    ACQUISITIONS,
    BALD,
    ArrayPool,
    BatchBALD,
    Candidates,
    CoreSet,
    DatasetPool,
    PoolError,
    Random,
    bald,
    batchbald,
    joint_information_gain,
    k_centres,
)
from vogn.active.acquisition import LABELS, NUMBERS
from vogn.active.acquisitions import acquisition_of
from vogn.active.pool import as_pool
from vogn.likelihoods import Categorical, Gaussian
from vogn.posterior import Ensemble


def ensemble(outputs, members=5):
    torch.manual_seed(0)
    models = [network(outputs) for _ in range(members)]
    return models[0], Ensemble(models)


class Counting(ArrayPool):
    """Counts how often an example is read, and how many at a time."""

    def __init__(self, rows):
        super().__init__(rows)
        self.reads = np.zeros(len(rows), dtype=int)
        self.most = 0

    def inputs(self, indices):
        self.reads[indices.numpy()] += 1
        self.most = max(self.most, len(indices))
        return super().inputs(indices)


def candidates(kind=LABELS, pool=None, **options):
    x, _ = classification(31) if kind == LABELS else regression(31)
    pool = pool if pool is not None else Counting(x)
    model, posterior = ensemble(3 if kind == LABELS else 1)
    likelihood = Categorical() if kind == LABELS else Gaussian(noise=0.3)
    chosen = {"open": torch.arange(1, 31), "samples": 5, "known": x[:1]}
    return Candidates(model, posterior, likelihood, as_pool(pool), **chosen | options)


def outputs(found):
    """Predictions of all candidates at once, ``(S, N, C)``."""
    return found.predict(found.pool.inputs(found.open), keep_samples=True).samples


@pytest.mark.parametrize("kind", [LABELS, NUMBERS])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_every_choice_is_that_of_the_whole_pool_at_once(kind, chunk):
    for name, info in ACQUISITIONS.items():
        if kind not in info.kinds:
            continue
        whole = acquisition_of(name).select(candidates(kind, chunk=1000), 6)
        pieces = candidates(kind, chunk=chunk)
        found = acquisition_of(name).select(pieces, 6)
        assert found.indices.tolist() == whole.indices.tolist(), name
        assert torch.allclose(found.scores, whole.scores, atol=1e-6), name
        assert set(found.indices.tolist()) <= set(range(1, 31)) and len(set(found.indices.tolist())) == 6
        assert pieces.pool.most <= max(chunk, 30 if name == "epig" else 0)  # EPIG also reads its target inputs


def test_bald_scores_are_those_of_the_formula_and_one_pass_is_enough():
    found = candidates(chunk=4)
    selection = BALD().select(found, 3)
    assert found.pool.reads[1:].tolist() == [1] * 30 and found.pool.reads[0] == 0
    expected = bald(outputs(candidates()))
    best = expected.topk(3)
    assert (selection.indices - 1).tolist() == best.indices.tolist()
    assert torch.allclose(selection.scores.float(), best.values, atol=1e-6)


def test_batch_acquisitions_are_the_functions_of_the_whole_pool():
    p = outputs(candidates())
    expected = batchbald(p, 4)
    found = BatchBALD(configurations=10_000).select(candidates(chunk=4), 4)
    assert (found.indices - 1).tolist() == expected.indices.tolist() and found.exact
    y = outputs(candidates(NUMBERS))
    greedy, gains = joint_information_gain(lambda: [(torch.arange(1, 31), y.squeeze(-1))], 4, 0.09)
    other = acquisition_of("batch_information_gain").select(candidates(NUMBERS, chunk=4), 4)
    assert other.indices.tolist() == greedy.tolist() and torch.allclose(other.scores, gains)


def test_batchbald_says_whether_a_part_of_the_pool_was_enough():
    whole = BatchBALD(kept=30, configurations=10_000).select(candidates(chunk=4), 4)
    enough = BatchBALD(kept=29, configurations=10_000).select(candidates(chunk=4), 4)
    assert enough.exact and enough.indices.tolist() == whole.indices.tolist()
    few = BatchBALD(kept=4, configurations=10_000).select(candidates(chunk=4), 4)
    assert not few.exact and float(few.scores.sum()) <= float(whole.scores.sum()) + 1e-12
    sampled = BatchBALD(configurations=9).select(candidates(chunk=4), 4)
    assert not sampled.exact


def test_what_does_not_fit_is_computed_again(monkeypatch):
    kept = candidates(chunk=4)
    expected = CoreSet().select(kept, 3)
    assert kept.pool.reads[1:].tolist() == [1] * 30
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    read = candidates(chunk=4)
    found = CoreSet().select(read, 3)
    assert found.indices.tolist() == expected.indices.tolist() and read.pool.reads[1:].tolist() == [3] * 30


def test_core_set_looks_at_the_last_layer_or_at_features_of_ones_own():
    found = candidates(chunk=4)
    with torch.no_grad():
        mean = network(3)
        mean.load_state_dict({name: m for name, m in found.posterior.mean().items()})
        features = mean[:2](found.pool.rows)
    expected, _ = k_centres(lambda: [(torch.arange(1, 31), features[1:])], [features[:1]], 5)
    assert CoreSet().select(found, 5).indices.tolist() == expected.tolist()
    plain, _ = k_centres(lambda: [(torch.arange(1, 31), found.pool.rows[1:])], [found.pool.rows[:1]], 5)
    assert CoreSet(lambda model, x: x).select(found, 5).indices.tolist() == plain.tolist()
    with pytest.raises(ValueError, match="shape"):
        CoreSet(lambda model, x: x[:1]).select(found, 2)


def test_equal_scores_are_broken_at_random_and_reproducibly():
    found = [Random().select(candidates(seed=seed), 30).indices.tolist() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and sorted(found[0]) == list(range(1, 31))
    assert found[0] != sorted(found[0])


def test_random_reads_nothing():
    found = candidates()
    Random().select(found, 2)
    assert found.pool.reads.sum() == 0


class Squares(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((2,), float(index**2)), index


def test_kinds_of_pools(tmp_path):
    rows = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "rows.npy", rows)
    mapped = as_pool(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert isinstance(mapped.rows, np.memmap)
    pick = torch.tensor([4, 1])
    assert torch.equal(mapped.inputs(pick), torch.tensor(rows[[4, 1]], dtype=torch.float32))
    assert torch.equal(as_pool(Squares()).inputs(pick), torch.tensor([[16.0, 16.0], [1.0, 1.0]]))
    assert isinstance(as_pool(TensorDataset(torch.ones(3, 2), torch.ones(3))), DatasetPool)
    assert torch.equal(as_pool(np.arange(6)).inputs(pick), pick)
    own = Counting(torch.ones(3, 2))
    assert as_pool(own) is own
    with pytest.raises(PoolError, match="empty"):
        as_pool(np.zeros((0, 3)))


def test_inputs_of_another_number_are_refused():
    class Short(Counting):
        def inputs(self, indices):
            return super().inputs(indices)[:-1]

    with pytest.raises(PoolError, match="3 inputs for 4"):
        BALD().select(candidates(pool=Short(torch.ones(31, 2)), chunk=4), 1)

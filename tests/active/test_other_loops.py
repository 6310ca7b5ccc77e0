"""Loops of other packages, written as those packages do: baal's step over a pool, scikit-activeml's query with NaN."""

import numpy as np
import pytest
import torch
from active_cases import classification, method, network, regression

from vogn.active import (
    BaalHeuristic,
    PoolError,
    PoolExhaustedError,
    PredictedCandidates,
    QueryStrategy,
    bald,
    batchbald,
    epig,
    information_gain,
)
from vogn.likelihoods import Categorical, Gaussian

PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(3) * 0.4, size=(20, 8)).transpose(0, 2, 1)
"""``(N, C, S)``."""
FIRST = torch.from_numpy(PROBABILITIES).permute(2, 0, 1)


class BaalLoop:
    """``baal.active.ActiveLearningLoop``: predict the pool, rank it, label the first ones."""

    def __init__(self, pool, get_probabilities, heuristic, query_size):
        self.pool, self.labelled = pool, []
        self.get_probabilities, self.heuristic, self.query_size = get_probabilities, heuristic, query_size

    def step(self):
        if not self.pool:
            return False
        to_label, uncertainty = self.heuristic.get_ranks(self.get_probabilities(self.pool), None)
        assert np.isfinite(np.sort(uncertainty)[-1])
        places = np.array(self.pool)[np.array(to_label)][: self.query_size]
        self.labelled += places.tolist()
        self.pool = [n for n in self.pool if n not in self.labelled]
        return True


@pytest.mark.parametrize("name", ["bald", "batchbald", "epig", "entropy", "margin", "random"])
def test_a_loop_of_baal_runs_to_the_end_of_its_pool(name):
    loop = BaalLoop(list(range(20)), lambda pool: PROBABILITIES[pool], BaalHeuristic(name, count=3), 3)
    while loop.step():
        pass
    assert sorted(loop.labelled) == list(range(20)) and len(loop.labelled) == 20


def test_ranks_and_scores_for_baal_are_those_of_the_formulas():
    heuristic = BaalHeuristic("bald")
    ranks, scores = heuristic.get_ranks(PROBABILITIES)
    assert np.allclose(scores, bald(FIRST)) and ranks.tolist() == np.argsort(scores)[::-1].tolist()
    assert heuristic(PROBABILITIES).tolist() == ranks.tolist()
    assert np.array_equal(heuristic.get_uncertainties(PROBABILITIES), scores)
    pieces = (PROBABILITIES[start : start + 6] for start in range(0, 20, 6))
    assert heuristic(pieces).tolist() == ranks.tolist()
    joint = BaalHeuristic("batchbald", count=4)
    assert joint(PROBABILITIES)[:4].tolist() == batchbald(FIRST, 4, configurations=1000).indices.tolist()
    assert sorted(joint(PROBABILITIES)) == list(range(20))
    targets = PROBABILITIES[:5]
    found = BaalHeuristic("epig").get_uncertainties(PROBABILITIES, targets)
    assert np.allclose(found, epig(FIRST, FIRST[:, :5]))
    outputs = np.random.default_rng(1).normal(size=(6, 1, 9))
    gain = BaalHeuristic("information_gain", noise=0.5).get_uncertainties(outputs)
    assert np.allclose(gain, information_gain(torch.tensor(outputs.var(-1)), 0.25))


def test_what_baal_must_not_hand_over():
    for call, message in (
        (lambda: BaalHeuristic("bald")(PROBABILITIES[..., 0]), r"\(N, C, S\)"),
        (lambda: BaalHeuristic("bald")(2 * PROBABILITIES), "probabilities"),
        (lambda: BaalHeuristic("bald")(iter([])), "no predictions"),
        (lambda: BaalHeuristic("information_gain")(PROBABILITIES), "meant for"),
        (lambda: BaalHeuristic("core_set")(PROBABILITIES), "inputs and network"),
        (lambda: BaalHeuristic("bald", count=0), "count=0"),
        (lambda: PredictedCandidates(FIRST, targets=torch.ones(8, 2)), "target predictions"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def strategy(name="bald", likelihood=None, outputs=3, **options):
    how = options.pop("method", method())
    return QueryStrategy(name, lambda: network(outputs), how, likelihood or Categorical(), samples=4, **options)


@pytest.mark.parametrize("name", ["bald", "batchbald", "core_set", "random"])
def test_a_loop_of_scikit_activeml_runs_to_the_end_of_its_pool(name):
    x, y_true = (part.numpy() for part in classification(12))
    y = np.full(12, np.nan)
    y[:4] = y_true[:4]
    asks = strategy(name)
    while np.isnan(y).any():
        chosen = asks.query(x, y, batch_size=3)
        assert np.isnan(y[chosen]).all() and len(chosen) == min(3, np.isnan(y).sum())
        y[chosen] = y_true[chosen]
    with pytest.raises(PoolExhaustedError):
        asks.query(x, y)


def test_candidates_and_utilities_are_those_of_scikit_activeml():
    x, y_true = (part.numpy() for part in classification(12))
    y = np.full(12, np.nan)
    y[:4] = y_true[:4]
    chosen, utilities = strategy().query(x, y, candidates=np.array([11, 5, 7]), batch_size=2, return_utilities=True)
    assert utilities.shape == (2, 12) and set(chosen) < {5, 7, 11}
    assert np.flatnonzero(~np.isnan(utilities[0])).tolist() == [5, 7, 11]
    assert np.nanargmax(utilities[0]) == chosen[0] and np.nanargmax(utilities[1]) == chosen[1]
    assert np.isnan(utilities[1, chosen[0]])
    again = strategy().query(x, y, candidates=np.array([5, 7, 11]), batch_size=2)
    assert again.tolist() == chosen.tolist()  # the same in every process


def test_labels_that_come_later_are_learnt_as_the_method_updates():
    x, y_true = classification(12)
    y = np.full(12, np.nan)
    y[:4] = y_true[:4]
    seen = []

    class Spy(type(method())):
        def update(self, factory, likelihood, x, y, *, new, seed, watch=lambda *a: None):
            seen.append((self.model is None, len(x), new.tolist()))
            super().update(factory, likelihood, x, y, new=new, seed=seed, watch=watch)

    asks = strategy(method=Spy("vogn", steps=2, update_steps=2, lr=0.05))
    asks.query(x.numpy(), y)
    y[[9, 6]] = y_true[[9, 6]]
    asks.query(x.numpy(), y)
    asks.query(x.numpy(), y)  # nothing is new
    assert seen == [(True, 4, [0, 1, 2, 3]), (False, 6, [4, 5]), (True, 6, [0, 1, 2, 3, 4, 5])]


def test_numbers_and_what_is_refused():
    x, y = regression(8)
    targets = y.squeeze(1).numpy().copy()
    targets[3:] = np.nan
    asks = strategy("information_gain", Gaussian(noise=0.3), 1)
    assert len(asks.query(x.numpy(), targets, batch_size=2)) == 2
    with pytest.raises(PoolError, match="no label yet"):
        asks.query(x.numpy(), np.full(8, np.nan))
    with pytest.raises(PoolError, match="8 rows"):
        asks.query(x.numpy(), targets[:3])
    with pytest.raises(PoolError, match="NaN"):
        asks.query(np.where(np.arange(16).reshape(8, 2) == 13, np.nan, x.numpy()), targets)
    with pytest.raises(PoolError, match="numbers of rows"):
        asks.query(x.numpy(), targets, candidates=x.numpy())
    with pytest.raises(ValueError, match="batch_size=0"):
        asks.query(x.numpy(), targets, batch_size=0)
    with pytest.raises(ValueError, match="no utilities"):
        strategy("core_set").query(x.numpy(), targets, return_utilities=True)

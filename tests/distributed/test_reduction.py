"""Leaves of several ranks become one, whoever has them."""

import pickle

import pytest
import torch

from vogn.distributed import Replicas

pytestmark = pytest.mark.xdist_group("gloo")


@pytest.mark.parametrize("bucket", [1, 1 << 20])
def test_leaves_are_summed_or_concatenated_over_the_ranks(ranks, bucket):
    for both, one, ragged, lonely in (
        (first, second, fourth, third) for first, second, third, fourth in ranks.run("reduced", bucket=bucket)
    ):
        assert both.keys() == {"x", "y"} and both["x"].dtype == torch.float64
        assert torch.equal(both["x"], torch.full((2, 3), 3.0, dtype=torch.float64))
        assert torch.equal(both["y"], torch.full((2,), 2.0, dtype=torch.float64))
        assert one.keys() == {"x"} and torch.equal(one["x"], torch.ones(4))
        assert torch.equal(ragged["rows"], torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
        assert torch.equal(lonely["rows"], torch.ones(3, 5))


def test_a_posterior_as_prior_is_refused_on_several_ranks(ranks):
    for found in ranks.run("second_task"):
        assert len(found) == 2
        assert all("a posterior as prior is not supported where several processes train" in text for text in found)


def test_a_single_process_draws_for_its_own_rows_only():
    seen = []
    assert Replicas().size == 1
    Replicas().sharded(lambda rows: seen.append(len(rows)), torch.zeros(5, 2), 0)
    assert seen == [5]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"sample_sync": "none"}, "choose 'shared' or 'independent'"), ({"process_group": "world"}, "'auto', None")],
)
def test_unknown_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Replicas(**options)


def test_a_pickled_choice_to_train_apart_stays():
    assert pickle.loads(pickle.dumps(Replicas(process_group=None))).group is None


@pytest.mark.slow
def test_a_blocked_rank_fails_the_test_instead_of_hanging_it(ranks):
    ranks.pool.seconds, seconds = 2, ranks.pool.seconds
    try:
        with pytest.raises(AssertionError, match=r"ranks \[0\] are blocked"):
            ranks.run("wait_for_nobody")
    finally:
        ranks.pool.seconds = seconds
    assert len(ranks.run("reduced", bucket=1)) == 2

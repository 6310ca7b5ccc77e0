"""``fully_shard``: the trajectory is that of one process."""

import re

import pytest

pytestmark = pytest.mark.xdist_group("gloo")

CASES = {
    "vogn": {"method": "vogn"},
    "vogn ggn": {"method": "vogn", "fisher": "ggn"},
    "vogn det": {"method": "vogn", "variational": False},
    "ivon": {"method": "ivon"},
    "vadam": {"method": "vadam"},
    "kfac": {"method": "kfac"},
    "ekfac": {"method": "ekfac"},
    "evon": {"method": "evon"},
    "slang": {"method": "slang", "rank": 4},
    "fngd": {"method": "fngd"},
    "kalman": {"method": "kalman"},
    "lissa": {"method": "lissa", "rows_per_term": 2},
    "smw": {"method": "smw", "partition": "layer"},
    "smw merged": {"method": "smw", "window": 4},
    "skfac": {"method": "skfac"},
    "sngd": {"method": "sngd", "refresh_every": 2},
    "seng": {"method": "seng", "observe_every": 2},
    "hylo": {"method": "hylo", "rank": 0.5, "observe_every": 1, "curvature_decay": 0.5},
    "hylo hybrid": {
        "method": "hylo",
        "compression": "hybrid",
        "rank": 0.5,
        "observe_every": 2,
        "curvature_decay": 0.5,
        "switch_every": 1,
        "threshold": 9.0,
    },
    "seng pairs": {"method": "seng", "implicit_above": 0, "positions": 1, "observe_every": 1, "curvature_decay": 0.5},
    "mfac": {"method": "mfac", "window": 3},
    "ggt": {"method": "ggt", "window": 3},
    "tonga": {"method": "tonga", "rank": 1, "truncate_every": 1},
    "tonga units": {"method": "tonga", "partition": "unit", "rank": 1, "truncate_every": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_two_sharded_ranks_equal_one_process(ranks, case):
    results = ranks.run("train", file="sharded.py", **CASES[case])
    ranks.assert_identical(results)
    ranks.assert_equal(results[0], ranks.alone("train", **CASES[case]), 1e-12)


@pytest.mark.parametrize("case", ["vogn", "ivon", "kfac"])
@pytest.mark.parametrize("size", [2, 4])
def test_padding_entries_take_no_noise_in_any_shard(ranks, case, size):
    arguments = CASES[case] | {"network": "padded", "sizes": (8 // size,) * size}
    results = ranks.run("train", size, file="sharded.py", **arguments)
    ranks.assert_equal(results[0], ranks.alone("train", **arguments), 1e-12)


@pytest.mark.parametrize("case", ["vogn", "ivon", "kfac"])
def test_four_ranks_with_uneven_shards_and_two_samples_equal_one_process(ranks, case):
    arguments = CASES[case] | {
        "sizes": (2, 2, 2, 2),
        "contexts": 2,
    }
    results = ranks.run("train", 4, file="sharded.py", **arguments)
    ranks.assert_equal(results[0], ranks.alone("train", **arguments), 1e-12)


@pytest.mark.parametrize("case", ["vogn", "ivon", "kfac"])
def test_micro_batches_that_are_averaged_once_equal_one_process_with_the_same_micro_batches(ranks, case):
    arguments = CASES[case] | {"micro": 2, "contexts": 2}
    results = ranks.run("train", file="sharded.py", **arguments)
    ranks.assert_equal(results[0], ranks.alone("train", **arguments), 1e-12)


def test_products_with_the_hessian_of_sharded_parameters_are_refused(ranks):
    with pytest.raises(AssertionError, match="is sharded .* products with the Hessian cannot be taken"):
        ranks.run("entries", file="sharded.py", method="lissa", products="hessian")


def test_contexts_that_are_not_averaged_are_refused(ranks):
    with pytest.raises(AssertionError, match="1 sampled contexts .* not a multiple of mc_samples=2"):
        ranks.run("train", file="sharded.py", method="ivon", contexts=2, quiet_contexts=True)


def test_an_evaluation_before_and_after_leaves_no_gathered_copy_behind(ranks):
    """The outermost module keeps its gathered parameters after a forward pass: they would hide the sample."""
    results = ranks.run("train", file="sharded.py", evaluate=True, method="ivon", outer_only=True)
    ranks.assert_equal(results[0], ranks.alone("train", method="ivon"), 1e-12)


@pytest.mark.parametrize("case", ["vogn", "kfac"])
def test_a_checkpoint_moves_between_sharded_and_single_runs(ranks, case):
    whole = ranks.alone("train", **CASES[case], sizes=(2, 2, 2, 2))
    rest = CASES[case] | {"steps": 2, "start": 2}
    saved = ranks.run("train", 4, file="sharded.py", sizes=(2, 2, 2, 2), steps=2, save=True, **CASES[case])[0]
    ranks.assert_equal(ranks.alone("train", sizes=(8,), checkpoint=saved, **rest), whole, 1e-12)
    resumed = ranks.run("train", 2, file="sharded.py", sizes=(4, 4), checkpoint=saved, **rest)[0]
    ranks.assert_equal(resumed, whole, 1e-12)


def test_the_posterior_of_a_sharded_model_is_whole(ranks):
    first, second = ranks.run("posterior", file="sharded.py")
    ranks.assert_identical([first, second])
    assert {tuple(tensor.shape) for tensor in first.values()} == {(3, 3)}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "vogn", "sample_sync": "independent"}, ".*'0.weight' is sharded.*weights of its own.*'shared'"),
        ({"method": "ivon", "variational": False}, ".*'0.weight' is sharded.*Hessian products.*variational IVON"),
        ({"method": "ivon", "process_group": None}, ".*sharded over 2 processes.*has 1.*process_group=mesh.get_group"),
        ({"method": "ivon", "parameters": True}, ".*pass the model"),
        ({"method": "vogn", "bare": True}, ".*'token' is sharded.*per-example gradients.*ignored_params"),
    ],
)
def test_what_sharded_parameters_cannot_do_names_the_remedy(ranks, arguments, text):
    for message in ranks.run("message", file="sharded.py", **arguments):
        assert re.match("(UnsupportedObservation|Value|Type)Error: " + text, message), message


@pytest.mark.parametrize("arguments", [{"method": "ivon", "bare": True}, {"method": "vadam", "bare": True}])
def test_methods_without_per_example_gradients_take_sharded_bare_parameters(ranks, arguments):
    assert ranks.run("message", file="sharded.py", **arguments) == ["", ""]


def test_frozen_coefficients_of_sharded_layers_are_those_of_one_process(ranks):
    """By position: every process counts its own examples, so the same coefficients stand in other places."""
    arguments = {"method": "fngd", "variational": False, "freeze_after": 2, "share": "batch"}
    results = ranks.run("train", file="sharded.py", **arguments)
    sharded, one = (
        {key: value for key, value in result.items() if "coefficients" not in key}
        for result in (results[0], ranks.alone("train", **arguments))
    )
    ranks.assert_equal(sharded, one, 1e-12)

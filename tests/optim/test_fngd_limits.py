"""FNGD after freezing: what it does no more, and what is refused."""

import pytest
import torch
from torch import nn

from fngd_cases import DETERMINISTIC, build, coefficients, directions, frozen, network, per_example, run, weights
from tiny_models import batch, fill, normal
from vogn import FNGD
from vogn.errors import MissingCurvatureError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian


def test_no_gram_matrix_and_no_inverse_after_freezing(monkeypatch):
    from vogn.structures import SampleSpace

    x, y = batch(8)
    model = network()
    opt = frozen(model, x, y)
    for name in ("observe", "coefficients", "combine", "solve", "update"):
        monkeypatch.setattr(SampleSpace, name, lambda *args, **kwargs: pytest.fail("curvature was used"))
    run(opt, model, x, y, torch.arange(8))
    for parameter in (model[0].weight, model[2].weight):
        assert all(not tensor.numel() for key, tensor in opt.state[parameter]["curvature"].items() if key != "scale")


def test_layers_of_another_structure_are_solved_for_and_then_follow_the_gradient():
    x, y = batch(8)
    model = network()
    opt = build(model, structure={"4": "diagonal"}, freeze_after=1)
    rows, before = per_example(model, x, y), weights(model)
    run(opt, model, x, y, torch.arange(8))
    g, c = rows["4.weight"].mean(0), rows["4.weight"].square().mean(0)
    torch.testing.assert_close(directions(opt, model, before)["4.weight"], 0.1 * g / (c + 0.1))
    rows, before = per_example(model, x, y), weights(model)
    run(opt, model, x, y, torch.arange(8))
    torch.testing.assert_close(directions(opt, model, before)["4.weight"], rows["4.weight"].mean(0))
    expected = torch.einsum("n,n...->...", coefficients(opt)["2.weight"], rows["2.weight"]) / 8
    torch.testing.assert_close(directions(opt, model, before)["2.weight"], expected)


# ---------------------------------------------------------------------- what is refused


def test_frozen_coefficients_have_no_posterior():
    x, y = batch(8)
    model = network()
    opt = frozen(model, x, y, freeze_after=2, weight_decay=0.01)
    opt.posterior()
    run(opt, model, x, y, torch.arange(8))
    with pytest.raises(MissingCurvatureError, match="there is no posterior: the coefficients are frozen since step 2"):
        opt.posterior()
    opt.param_groups[0]["variational"] = True
    with pytest.raises(MissingCurvatureError, match="weights cannot be sampled: the coefficients are frozen"):
        opt.sample_()
    opt.param_groups[0]["freeze_after"] = None  # thawed: the first context has no curvature to draw from
    before = weights(model)
    with opt.sampled_params():
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        Categorical()(model(x), y).backward()
    opt.step()
    opt.posterior()
    assert "steps" in opt.diagnostics()


def test_diagnostics_of_frozen_coefficients_leave_out_what_needs_curvature():
    x, y = batch(8)
    model = network()
    opt = frozen(model, x, y, freeze_after=2, weight_decay=0.01)
    assert "condition_number" in opt.diagnostics()
    run(opt, model, x, y, torch.arange(8))
    assert "condition_number" not in opt.diagnostics()


def test_sharing_by_index_needs_indices():
    opt = build(network(), freeze_after=1)
    with pytest.raises(ValueError, match="say which ones a batch holds"):
        opt.sample_()
    with opt.sampled_params(torch.arange(4)):  # nothing is left open
        pass


@pytest.mark.parametrize("freeze_after", [1, 2])
@pytest.mark.parametrize(
    ("indices", "message"),
    [(torch.arange(7), "indices has 7 places"), (torch.arange(9), "indices has 9 places, but backward saw 8")],
)
def test_as_many_indices_as_examples(freeze_after, indices, message):
    x, y = batch(8)
    model = network()
    opt = build(model, freeze_after=freeze_after)
    run(opt, model, x, y, torch.arange(8))
    with pytest.raises(UnsupportedObservationError, match=message):
        run(opt, model, x, y, indices)


@pytest.mark.parametrize(
    ("indices", "message"),
    [(torch.zeros(8), "whole numbers"), (torch.zeros(2, 4).long(), "whole numbers"), (torch.arange(-1, 7), "from 0")],
)
def test_indices_are_places_in_the_data_set(indices, message):
    with pytest.raises(ValueError, match=message):
        build(network(), freeze_after=1).sample_(indices)


def test_losses_of_two_batches_in_one_backward_cannot_be_told_apart():
    x, y = batch(8)
    model = network()
    opt = frozen(model, x, y)
    with pytest.raises(UnsupportedObservationError, match="once per micro-batch"), opt.sampled_params(torch.arange(8)):
        (Categorical()(model(x[:4]), y[:4]) + Categorical()(model(x[4:]), y[4:])).backward()


def test_old_rows_have_no_coefficients():
    model = network()
    opt = build(model)
    opt.param_groups[0]["curvature_decay"] = 0.5
    with pytest.raises(ValueError, match="must be 0: coefficients are those of the present batch"):
        run(opt, model, *batch(8))


def test_a_regression_with_frozen_coefficients_converges():
    """The frozen direction still descends, to where a linear map is."""
    x = normal(24, 3)
    targets = x @ normal(3, 2, seed=1)
    model = fill(nn.Linear(3, 2).double())
    opt = FNGD(model, lr=0.1, damping=1.0, weight_decay=0.0, freeze_after=3, **DETERMINISTIC)
    losses = []
    for step in range(300):
        chunk = torch.randperm(24, generator=torch.Generator().manual_seed(step // 3)).split(8)[step % 3]
        opt.zero_grad()
        with opt.sampled_params(indices=chunk):
            loss = Gaussian(noise=1.0)(model(x[chunk]), targets[chunk])
            loss.backward()
        opt.step()
        losses.append(float(loss))
    assert losses[-1] - 2 * 0.9189385332046727 < 1e-2 < losses[0] - 2 * 0.9189385332046727

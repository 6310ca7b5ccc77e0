"""Models that people use: every parameter is measured, and measured right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import vogn
from plain_loop import METHODS
from tiny_models import flat
from vogn.errors import UnsupportedObservationError
from vogn.likelihoods import Categorical

MODES = {"variational": True, "deterministic": False}
OPTIONS = {"lr": 0.01, "ess": 100.0, "weight_decay": 0.01, "damping": 0.01}
BARE = {
    "vit": {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"},
    "convnext": {f"convnext.encoder.stages.{k}.layers.0.layer_scale_parameter" for k in (0, 1)},
}
"""Parameters that no layer uses as its own."""

pytestmark = pytest.mark.filterwarnings("ignore:no layer rule for.*:UserWarning")


def observed_once(zoo, model, inputs, labels):
    """The diagonal curvature of one batch, by parameter."""
    opt = vogn.VOGN(model, variational=False, norms="sampled", **OPTIONS)
    opt.zero_grad()
    with opt.sampled_params():
        zoo.loss(model, inputs, labels).backward()
    opt.step()
    found = {}
    for block in opt.posterior().blocks:
        found |= block.layout.unpack(block.state["c"])
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_of_the_ordinary_loop(zoo, method, mode):
    # deterministic IVON differentiates twice, which fused attention does not allow
    options = {"attn_implementation": "eager"} if method == "ivon" and mode == "deterministic" else {}
    model = zoo.model(**options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = METHODS[method](model, variational=MODES[mode], **OPTIONS)
    for step in range(3):
        inputs, labels = zoo.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            zoo.loss(model, inputs, labels).backward()
        opt.step()
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert not torch.equal(parameter, before[name]), name
    assert set(opt.posterior().sample(2)) == set(before)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_covered_exactly_once(family, zoo, method):
    model = zoo.model()
    rows = METHODS[method](model, **OPTIONS).coverage()
    assert sorted(row["parameter"] for row in rows) == sorted(name for name, _ in model.named_parameters())
    assert all(row["block"] for row in rows)
    if method != "ivon":
        own = {row["parameter"] for row in rows if row["per_example"] == "own pass"}
        assert own == BARE.get(family, set())


def test_the_diagonal_is_the_mean_of_the_squared_gradients(family, zoo):
    """The sum over the examples of the square of each one's gradient, over the number of loss terms."""
    model = zoo.model().eval()  # batch norm in training mode has no per-example gradients
    inputs, labels = zoo.batch()
    outputs, targets, mask = zoo.terms(model, inputs, labels)
    losses = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)
    losses, count = (losses, targets.numel()) if mask is None else (losses * mask, int(mask.sum()))
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    for loss in losses:
        gradients = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, materialize_grads=True)
        for name, gradient in zip(names, gradients, strict=True):
            expected[name] += gradient.square() / count
    found = observed_once(zoo, model, inputs, labels)
    for name in names:
        # Llama's norm layers compute in single precision, forward and backward
        rtol, atol = (1e-4, 1e-5 * float(expected[name].max())) if family == "llama" else (1e-8, 1e-14)
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_positions_looked_up_once_for_all_examples_change_nothing(zoo):
    inputs, labels = zoo.batch()
    expected = observed_once(zoo, zoo.model(), inputs, labels)
    shared, _ = replace(zoo, positions=False).batch()
    found = observed_once(zoo, zoo.model(), shared, labels)
    for name, diagonal in expected.items():
        torch.testing.assert_close(found[name], diagonal, rtol=1e-10, atol=1e-16, msg=lambda m, n=name: f"{n}: {m}")


def test_fused_attention_and_second_derivatives_are_refused_with_the_remedy(zoo_of):
    zoo = zoo_of("vit")
    opt = vogn.IVON(zoo.model(), variational=False, **OPTIONS)
    with pytest.raises(UnsupportedObservationError, match="sdpa_kernel"), opt.sampled_params():
        zoo.loss(opt._model, *zoo.batch())


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2"])
def test_a_loss_inside_the_model_is_announced_with_observe(zoo):
    inputs, labels = zoo.batch(dtype=torch.float32)
    ignored, targets, mask = labels, labels, None
    if zoo.task == "tokens":  # the outputs of the last position predict nothing
        ignored = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        targets = labels.roll(-1, 1)
        mask = (ignored.roll(-1, 1) != -100) & (torch.arange(labels.shape[1]) < labels.shape[1] - 1)

    def run(inside):
        model = zoo.model(dtype=torch.float32)
        opt = vogn.VOGN(model, fisher="ggn", **OPTIONS)
        for _ in range(2):
            opt.zero_grad()
            with opt.sampled_params():
                if inside:
                    outputs = model(**inputs, labels=ignored)
                    opt.observe(outputs.logits, Categorical(), targets, mask)
                    outputs.loss.backward()
                else:
                    zoo.loss(model, inputs, labels).backward()
            opt.step()
        return flat(model)

    # float32: the loss inside the model sums in another order
    torch.testing.assert_close(run(True), run(False), rtol=1e-6, atol=2e-6)


def test_positions_that_all_examples_share_are_refused_where_they_look_like_one_per_example():
    """``wpe(torch.arange(T))`` with as many positions as examples: the rows would be those of positions."""

    class Language(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = torch.nn.Embedding(7, 4), torch.nn.Embedding(5, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, index):
            words = self.words(index)
            return self.head((words + self.places(torch.arange(index.shape[1]))).mean(1))

    model = Language()
    opt = vogn.VOGN(model, **OPTIONS)
    index = torch.arange(25).reshape(5, 5) % 7
    message = "positions that all examples share"
    with pytest.raises(UnsupportedObservationError, match=message), opt.sampled_params():
        Categorical()(model(index), torch.zeros(5, dtype=torch.long)).backward()

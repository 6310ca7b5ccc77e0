"""The Laplace approximation against dense matrices, and that it leaves the network alone."""

import math
import warnings
from pathlib import Path

import pages
import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.likelihoods import Categorical, Gaussian


def network():
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double())


def loader(sizes=(5, 3, 4)):
    x, y = batch(sum(sizes), 0, torch.float64)
    return list(zip(x.split(sizes), y.split(sizes), strict=True)), x, y


def exact_ggn(model, x, names):
    """``sum_n J_n^T H_n J_n`` over the named parameters, flattened one after another."""
    total = None
    for one in x:
        parameters = {name: dict(model.named_parameters())[name] for name in names}
        outputs = model(one.unsqueeze(0)).squeeze(0)
        rows = [torch.autograd.grad(out, list(parameters.values()), retain_graph=True) for out in outputs]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        p = outputs.softmax(-1).detach()
        part = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        total = part if total is None else total + part
    return total


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_precision_is_that_of_the_formula(structure, temperature):
    model, (batches, x, _) = network(), loader()
    options = {"structure": structure, "prior_precision": 3.0, "temperature": temperature, "partition": "model"}
    posterior = vogn.laplace(model, Categorical(), batches, **options)
    flat = torch.arange(posterior.numel).double()
    names = [name for name, _ in model.named_parameters()]
    sizes = {name: p.shape for name, p in model.named_parameters()}
    order, start = {}, 0
    for name in names:  # where each parameter of the loop's order is in the posterior's
        count = sizes[name].numel()
        order[name] = flat[start : start + count].view(sizes[name])
        start += count
    places = posterior.flatten(order).long()
    ggn = exact_ggn(model, x, names)[places][:, places]
    data = ggn if structure == "dense" else ggn.diagonal().diag()
    (found,) = posterior.precision_matrices().values()
    torch.testing.assert_close(found, data / temperature + 3.0 * torch.eye(len(ggn)).double())


def test_kronecker_factors_of_batches_are_those_of_all_data():
    model, (batches, x, y) = network(), loader()
    one = vogn.laplace(model, Categorical(), [(x, y)])
    several = vogn.laplace(model, Categorical(), batches)
    for left, right in zip(one.blocks, several.blocks, strict=True):
        torch.testing.assert_close(left.precision_matrix(), right.precision_matrix())
    assert one.method == "laplace" and one.likelihood == several.likelihood == Categorical().to_dict()


def test_structures_of_rows_take_the_batches_into_an_average():
    model, (batches, *_) = network(), loader()
    structure = vogn.structures.DiagonalLowRank(rank=40)  # more than there are directions
    posterior = vogn.laplace(model, Categorical(), batches, structure=structure, subset="last_layer")
    dense = vogn.laplace(model, Categorical(), batches, structure="dense", subset="last_layer")
    for name, found in posterior.precision_matrices().items():
        torch.testing.assert_close(found, dense.precision_matrices()[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("subset", "names"),
    [
        ("all", {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}),
        ("last_layer", {"3.weight", "3.bias"}),
        (["0.*"], {"0.weight", "0.bias"}),
        (["0"], {"0.weight", "0.bias"}),
        (["*.bias"], {"0.bias", "2.bias", "3.bias"}),
    ],
)
def test_subsets(subset, names):
    model, (batches, x, _) = network(), loader()
    posterior = vogn.laplace(model, Categorical(), batches, subset=subset, structure="dense")
    assert set(posterior.names) == names
    for block in posterior.blocks:
        if set(block.layout.names) == {"3.weight", "3.bias"}:
            last = exact_ggn(model, x, ["3.weight", "3.bias"])
            order = [*range(0, 4), 12, *range(4, 8), 13, *range(8, 12), 14]  # the bias is the last column
            expected = last[order][:, order] + torch.eye(15).double()
            torch.testing.assert_close(block.precision_matrix(), expected)


def test_the_network_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    fill(model)
    batches, x, y = loader()
    model.train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    Categorical()(model(x), y).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    posterior = vogn.laplace(model, Categorical(), batches, fisher="mc", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert [m.training for m in model] == [True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert not any(m._forward_hooks for m in model.modules())
    assert "0.weight" in posterior.names
    again = vogn.laplace(model, Categorical(), batches, fisher="mc", seed=3)
    other = vogn.laplace(model, Categorical(), batches, fisher="mc", seed=4)
    assert torch.equal(posterior.blocks[0].precision_matrix(), again.blocks[0].precision_matrix())
    assert not torch.equal(posterior.blocks[0].precision_matrix(), other.blocks[0].precision_matrix())


def test_a_failure_leaves_the_network_alone_too():
    model = network()
    with pytest.raises(ValueError, match="targets"):
        vogn.laplace(model, Categorical(), [(normal(2, 3), torch.tensor([0, 7]))])
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_attention_and_a_thousand_classes():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 1000)

        def forward(self, x):
            return self.head(self.encoder(x).mean(1))

    model = fill(Classifier())
    data = [(torch.randn(4, 5, 8), torch.randint(1000, (4,)))]
    posterior = vogn.laplace(model, Categorical(), data, fisher="mc", prior_precision=10.0)
    predictive = vogn.predict(model, posterior, data[0][0], samples=4)
    assert predictive.mean.shape == (4, 1000)
    assert bool(predictive.mean.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior_precision": 0.0}, "prior_precision=0.0 must be a positive finite number"),
        ({"temperature": math.inf}, "temperature=inf must be"),
        ({"subset": "head"}, "subset='head': choose"),
        ({"subset": ["nothing.*"]}, "no parameter matches 'nothing"),
        ({"loader": []}, "the loader is empty"),
        ({"loader": [torch.ones(2, 3)]}, "batch 0 of the loader is no pair"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    batches, *_ = loader()
    with pytest.raises(ValueError, match=message):
        vogn.laplace(network(), Categorical(), **({"loader": batches} | arguments))


def test_a_deterministic_run_gives_the_same_object_without_another_pass():
    """Full batches, at rest: the tracked curvature is that of the weights."""
    model, (_, x, y) = network(), loader()
    opt = vogn.KFAC(model, lr=0.0, ess=len(x), weight_decay=2.0 / len(x), fisher="ggn", factored=False,
                    variational=False)  # fmt: skip
    for _ in range(2):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    ours, other = opt.posterior(), vogn.laplace(model, Categorical(), [(x, y)], prior_precision=2.0)
    for left, right in zip(ours.blocks, other.blocks, strict=True):
        torch.testing.assert_close(left.precision_matrix(), right.precision_matrix())


def test_regression_counts_loss_terms():
    model = fill(nn.Linear(3, 2).double())
    x, y = normal(6, 3, seed=1), normal(6, 2, seed=2)
    posterior = vogn.laplace(model, Gaussian(noise=0.5), [(x, y)], structure="dense", prior_precision=1.0)
    a = torch.cat([x, torch.ones(6, 1).double()], 1)
    expected = torch.kron(torch.eye(2).double(), a.T @ a / 0.25) + torch.eye(8).double()
    torch.testing.assert_close(posterior.precision_matrices()["weight"], expected)


def test_the_page_runs():
    names = pages.run(Path(__file__).parents[2] / "docs" / "laplace.md")
    assert names["found"].mean.shape == (5, 3) and bool(names["evidence"].isfinite())


def test_a_learnable_noise_is_left_alone():
    likelihood = Gaussian("learn", initial=0.4)
    vogn.laplace(nn.Linear(3, 3), likelihood, [(torch.randn(4, 3), torch.randn(4, 3))])
    assert likelihood.log_noise.grad is None and likelihood.log_noise.requires_grad
    likelihood.log_noise.grad = torch.tensor(2.0)
    vogn.laplace(nn.Linear(3, 3), likelihood, [(torch.randn(4, 3), torch.randn(4, 3))])
    assert float(likelihood.log_noise.grad) == 2.0


@pytest.mark.parametrize("bias", [True, False])
def test_a_last_layer_that_shares_its_weight_is_refused(bias):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=bias)
            self.out.weight = self.table.weight

        def forward(self, x):
            return self.out(self.table(x).mean(1))

    data = [(torch.randint(6, (8, 3)), torch.randint(6, (8,)))]
    with pytest.raises(ValueError, match=r"'out' shares a weight with 'table'.*subset=\['table'\]"):
        vogn.laplace(Tied(), Categorical(), data, subset="last_layer")
    assert vogn.laplace(Tied(), Categorical(), data, subset=["table"]).names == ("table.weight",)


def test_parameters_that_no_gradient_reaches_are_told():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 3)

        def forward(self, x):
            with torch.no_grad():
                features = torch.tanh(self.body(x))
            return self.head(features)

    model = Frozen().double()
    with pytest.warns(vogn.errors.PosteriorWarning, match="no gradient has reached block 'body.weight'") as seen:
        vogn.laplace(model, Categorical(), [batch(8, 0, torch.float64)])
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vogn.laplace(model, Categorical(), [batch(8, 0, torch.float64)], subset=["head"])


def test_rounding_errors_above_the_prior_are_told():
    """The same in double precision, where the posterior is another one, is silent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
    x = torch.linspace(-3, 3, 500)[:, None]

    def entropy():
        dtype = next(model.parameters()).dtype
        data = [(x.to(dtype), x.to(dtype).sin())]
        found = vogn.laplace(model, Gaussian(0.03), data, structure="dense", partition="model", prior_precision=0.3)
        return float(found.entropy())

    with pytest.warns(vogn.errors.PosteriorWarning, match=r"rounding errors.* larger than the prior precision 3.0e"):
        single = entropy()
    model.double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        double = entropy()
    assert double > single + 10


def test_what_cannot_be_measured_says_what_to_do():
    model, data = nn.Linear(3, 3), [(torch.randn(4, 3), torch.randn(4, 3))]
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside of torch.inference_mode\(\)"):
        vogn.laplace(model, Gaussian(0.1), data)
    with pytest.raises(ValueError, match=r"no pair \(inputs, targets\): give a generator of such pairs"):
        vogn.laplace(model, Gaussian(0.1), [{"x": data[0][0], "labels": data[0][1]}])


def test_a_last_layer_may_have_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 3)
            self.net = nn.Sequential(self.body, nn.Tanh(), self.head)

        def forward(self, x):
            return self.net(x)

    found = vogn.laplace(fill(Twice().double()), Categorical(), [batch(8, 0, torch.float64)], subset="last_layer")
    assert found.names == ("head.weight", "head.bias")


def test_a_large_well_conditioned_curvature_is_no_news():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = [(torch.randn(4000, 400), torch.randn(4000, 1))]
        vogn.laplace(nn.Linear(400, 1), Gaussian(1.0), data, structure="dense", prior_precision=0.1)

"""The entry of an embedding's ``padding_idx`` gets no gradient, and so no noise: it is a constant."""

import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Gaussian

METHODS = {
    "vogn": {"fisher": "ggn"},
    "von": {},
    "kfac": {},
    "ekfac": {},
    "slang": {},
    "vadam": {},
    "ivon": {"initial_curvature": 1.0},
    "evon": {"initial_curvature": 1.0},
}


class Bag(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.table = kind(6, 3, padding_idx=2)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        found = self.table(x)
        return self.head(found.sum(1) if found.ndim == 3 else found)


def model_and_data(kind=nn.Embedding):
    torch.manual_seed(0)
    model = Bag(kind).double()
    with torch.no_grad():
        model.table.weight[2] = torch.tensor([1.0, 2.0, 3.0])  # any constant, not only zero
    x = torch.randint(6, (60, 5))
    x[:, 3:] = 2
    return model, x, torch.randn(60, 1, dtype=torch.float64)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("method", METHODS)
def test_training_never_moves_it_by_noise(method, kind):
    model, x, y = model_and_data(kind)
    opt = vogn.METHODS[method].build(model, lr=0.05, ess=60, weight_decay=1e-3, **METHODS[method])
    for _ in range(3):
        before = model.table.weight.detach().clone()
        opt.zero_grad()
        with opt.sampled_params():
            assert torch.equal(model.table.weight[2], before[2])
            if opt.param_groups[0]["steps_done"]:
                assert not torch.equal(model.table.weight[1], before[1])
            Gaussian(0.5)(model(x), y).backward()
        assert torch.equal(model.table.weight.detach(), before)
        opt.step()


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "eigen_kronecker", "diagonal_low_rank"])
@pytest.mark.parametrize("partition", ["layer", "model", "parameter"])
def test_posteriors_hold_it_in_every_way_to_predict(structure, partition, tmp_path):
    if partition == "model" and "kronecker" in structure:
        pytest.skip("no Kronecker product over several layers")
    model, x, y = model_and_data()
    posterior = vogn.laplace(model, Gaussian(0.5), [(x, y)], structure=structure, partition=partition)
    posterior.save(tmp_path / "p.safetensors")
    for found in (posterior, vogn.load_posterior(tmp_path / "p.safetensors"), posterior.tempered(2.0)):
        assert not found.variance()["table.weight"][2].any()
        assert bool((found.variance()["table.weight"][[0, 1, 3, 4, 5]] > 0).all())
        for noise in ("independent", "antithetic"):
            draws = found.sample(4, noise=noise)["table.weight"]
            assert torch.equal(draws[:, 2], model.table.weight[2].detach().expand(4, 3))
            assert not torch.equal(draws[0, 1], draws[2, 1])
    options = {"method": "linearized"}
    exact = vogn.predict(model, posterior, x[:3], **options).epistemic
    sampled = vogn.predict(model, posterior, x[:3], link="mc", samples=4000, **options).epistemic
    torch.testing.assert_close(sampled, exact, rtol=0.1, atol=0.0)
    # forward derivatives do not know of the padding: the posterior must leave its row out itself
    forward = {name: torch.func.jacfwd(lambda w: torch.func.functional_call(model, w, (x[:3],)))(
        {name: p.detach() for name, p in model.named_parameters()})[name] for name in posterior.names}  # fmt: skip
    torch.testing.assert_close(posterior.functional_variance(forward).diagonal(dim1=1, dim2=2), exact)


def test_a_weight_that_another_layer_shares_is_one():
    """An output layer over the same table has a gradient there."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(6, 3, padding_idx=2), nn.Linear(3, 6, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x):
            return self.out(self.table(x).sum(1))

    torch.manual_seed(0)
    model = Tied().double()
    data = [(torch.randint(6, (30, 4)), torch.randint(6, (30,)))]
    posterior = vogn.laplace(model, vogn.likelihoods.Categorical(), data)
    assert bool((posterior.variance()["table.weight"] > 0).all())


class Shared(nn.Module):
    """Two tables of one weight, which is a constant for one of them at one place."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.b = nn.Embedding(6, 3, padding_idx=first), nn.Embedding(6, 3, padding_idx=second)
        self.b.weight = self.a.weight
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.a(x).sum(1) + self.b(x).prod(1))


@pytest.mark.parametrize(("first", "second"), [(2, None), (None, 2), (2, 3), (2, 2)])
@pytest.mark.parametrize("method", ["vogn", "kfac", "ekfac", "von"])
def test_tables_that_share_a_weight_with_other_paddings_train(method, first, second):
    torch.manual_seed(0)
    model, x = Shared(first, second).double(), torch.randint(6, (40, 4))
    options = METHODS[method]
    opt = vogn.METHODS[method].build(model, lr=0.05, ess=40, weight_decay=1e-3, **options)
    for _ in range(2):
        opt.zero_grad()
        with opt.sampled_params():
            Gaussian(0.5)(model(x), torch.zeros(40, 1, dtype=torch.float64)).backward()
        opt.step()
    held = opt.posterior().variance()["a.weight"][2]
    assert bool((held == 0).all()) == (first == second)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "dense"])
def test_merging_keeps_it(structure):
    model, x, y = model_and_data()
    parts = [vogn.laplace(model, Gaussian(0.5), [(x[k::2], y[k::2])], structure=structure) for k in range(2)]
    merged = vogn.posterior.merge(parts, vogn.Prior(0.0, 1.0))
    assert torch.equal(merged.mean()["table.weight"][2], model.table.weight[2].detach())
    assert not merged.variance()["table.weight"][2].any()


def test_its_length_says_nothing_about_the_prior():
    found = []
    for constant in (0.0, 20.0):
        model, x, y = model_and_data()
        x[x == 2] = 3  # it never enters: only its length could be seen
        with torch.no_grad():
            model.table.weight[2] = constant
        posterior = vogn.laplace(model, Gaussian(0.5), [(x, y)], structure="diagonal")
        tuned = [block.shift * block.ess for block in vogn.tune_prior_precision(posterior).sampled_blocks]
        evidence = float(vogn.log_evidence(posterior, 0.0))
        opt = vogn.VOGN(model, lr=0.0, ess=60, weight_decay=1e-3, fisher="ggn", variational=False)
        opt.zero_grad()
        with opt.sampled_params():
            Gaussian(0.5)(model(x), y).backward()
        opt.step()
        found.append([*tuned, evidence, *vogn.PriorTuner(opt, every=1).tune().values()])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_posterior_of_before_still_fits():
    """Files that do not know of the constant have layouts that pack alike."""
    model, x, y = model_and_data()
    posterior = vogn.laplace(model, Gaussian(0.5), [(x, y)], structure="diagonal")
    description, tensors = posterior.content()
    for block in description["blocks"]:
        block["layout"].pop("constant", None)
    old = vogn.GaussianPosterior.from_content(description, tensors)
    assert old.variance()["table.weight"][2].any()
    vogn.posterior.merge([posterior, old], vogn.Prior(0.0, 1.0))


def test_the_weight_of_a_table_is_not_computed_to_look_for_it():
    torch.manual_seed(0)
    # reading this weight computes it, and moves the buffers of its power iteration
    table = torch.nn.utils.parametrizations.spectral_norm(nn.Embedding(6, 3, padding_idx=2))
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(6, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opt = vogn.VOGN(model.double(), ess=10)
    opt.coverage()
    assert all(torch.equal(value, before[name].to(value)) for name, value in model.state_dict().items())

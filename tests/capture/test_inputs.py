"""The statistic of inputs alone, and the outputs that a structure may read beside them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tiny_models import fill, normal
from vogn import NaturalGradient
from vogn.errors import UnsupportedObservationError
from vogn.likelihoods import Categorical
from vogn.structures import REGISTRY, Identity, LocalFisher


def metrics(model, loss, scope, statistic="inputs", **options):
    """``{block: M}`` after one observation."""
    opt = NaturalGradient(
        model, LocalFisher(scope=scope), statistic, lr=0.0, damping=0.1, variational=False, **options
    )
    with opt.sampled_params():
        loss().backward()
    opt.step()
    names = {p: n for group in opt.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)}
    return {names[p]: state["curvature"]["M"] for p, state in opt.state.items() if "curvature" in state}


class Twice(nn.Module):
    """A layer that is called twice, whose output the activation changes in place."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(F.relu(self.layer(F.relu(self.layer(x), inplace=True)), inplace=True))


def ones(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


@pytest.mark.parametrize("scope", ["layer", "unit"])
def test_several_calls_of_a_layer_are_further_inputs(scope):
    model, x, y = fill(Twice().double()), normal(4, 3), torch.tensor([0, 1, 1, 0])
    found = metrics(model, lambda: Categorical()(model(x), y), scope)["layer.weight"]
    first = model.layer(x).detach()
    second = model.layer(F.relu(first)).detach()
    a, outputs = ones(torch.cat([x, F.relu(first)])), torch.cat([first, second])
    if scope == "layer":
        expected = a.T @ a / 8
    else:
        expected = torch.einsum("no,ni,nj->oij", outputs.sigmoid() ** 2, a, a) / 8
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scope", ["layer", "unit"])
def test_masked_loss_terms_are_no_inputs(scope):
    model, x = fill(nn.Linear(3, 2).double()), normal(3, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    y = torch.zeros(3, 4, dtype=torch.int64)
    found = metrics(model, lambda: Categorical()(model(x), y, mask=mask), scope)["weight"]
    kept = ones(x[mask])
    weights = model(x[mask]).detach().sigmoid() ** 2
    expected = torch.einsum("no,ni,nj->oij", weights, kept, kept) if scope == "unit" else kept.T @ kept
    torch.testing.assert_close(found, expected / 6, rtol=1e-12, atol=1e-12)


class Everything(nn.Module):
    """One layer of many families, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.convolution = nn.Conv1d(3, 4, 2, groups=1)
        self.shift = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.table(tokens)
        x = self.norm(self.attention(x, x, x)[0])
        x = self.recurrent(x)[0]
        return self.head(torch.tanh(self.convolution(x.mT)).mean(2) + self.shift)


@pytest.mark.parametrize("statistic", ["inputs", "mc"])
def test_a_units_metric_is_below_the_layers_for_every_family_of_layers(statistic):
    """``sigmoid^2 <= 1``, hence ``0 <= M_j <= M``; a bare parameter has the same weight of one in both."""
    tokens, y = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [0, 0, 1, 2, 5]]), torch.tensor([0, 1, 2])
    model = fill(Everything().double(), vectors=0.1)
    layer, unit = (
        metrics(model, lambda: Categorical()(model(tokens), y), scope, statistic) for scope in ("layer", "unit")
    )
    assert layer.keys() == unit.keys() and len(layer) >= 8
    for name, m in layer.items():
        difference = m.unsqueeze(-3) - unit[name]
        size = float(m.abs().max())
        assert float(torch.linalg.eigvalsh(unit[name]).min()) > -1e-12 * size, name
        assert float(torch.linalg.eigvalsh(difference).min()) > -1e-12 * size, name
        assert bool(difference.any()) == (name != "shift"), name
        assert bool(unit[name].any()), name
    assert torch.equal(layer["shift"], torch.ones(4, 1, 1).double())


def test_structures_that_read_gradients_are_refused_by_name():
    for name, kind in REGISTRY.items():
        reads = kind().reads
        assert reads <= {"inputs", "gradients", "outputs"}
        if "gradients" in reads:
            with pytest.raises(UnsupportedObservationError, match=f"{kind.__name__} .*'inputs'"):
                NaturalGradient(nn.Linear(2, 2), name, "inputs", lr=0.1, variational=False)
    NaturalGradient(nn.Linear(2, 2), Identity(), "inputs", lr=0.1, variational=False)


def test_a_fallback_that_reads_gradients_is_refused_by_the_name_of_its_block():
    model = nn.Linear(30, 20)
    opt = NaturalGradient(model, LocalFisher(scope="unit", max_elements=10), "inputs", lr=0.1, variational=False)
    with pytest.raises(UnsupportedObservationError, match="block 'weight': Diagonal reads gradients"):
        opt.coverage()


def test_outputs_are_kept_only_for_those_who_read_them():
    model, x = nn.Linear(3, 2), torch.ones(2, 3)
    for scope, kept in (("layer", False), ("unit", True)):
        opt = NaturalGradient(model, LocalFisher(scope=scope), "inputs", lr=0.1, damping=0.1, variational=False)
        with opt.sampled_params():
            loss = model(x).sum()
            (call,) = opt._collector._taps.calls
            assert (call.output is not None) == kept
            loss.backward()
            assert call.output is None

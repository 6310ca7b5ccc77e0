"""SKFAC against K-FAC, against Woodbury's identity by hand, and on positions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import KFAC, SKFAC
from vogn.likelihoods import Categorical

OPTIONS = {"lr": 0.05, "ess": 80.0, "weight_decay": 1e-2, "damping": 2e-2, "curvature_decay": 0.7, "seed": 3}


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 2)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.convolution(x)).mean((2, 3)))


def pictures(n=6, seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return torch.randn((n, 2, 5, 5), generator=source, dtype=dtype), torch.randint(0, 3, (n,), generator=source)


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("approx", ["reduce", "expand"])
@pytest.mark.parametrize("fisher", ["empirical", "mc", "ggn"])
def test_with_all_directions_it_is_kfac(tools, fisher, approx, factored, variational):
    """12 steps with a memory, a convolution and a factorisation every third step; the same draws."""
    results = []
    for kind, options in ((SKFAC, {"rank": None}), (KFAC, {})):
        model = tools.fill(Pictures().double())
        opt = kind(
            model,
            fisher=fisher,
            kfac_approx=approx,
            factored=factored,
            variational=variational,
            refresh_every=3,
            **options,
            **OPTIONS,
        )
        start = tools.weights(model)
        tools.train(opt, model, 12, batches=pictures)
        results.append((tools.weights(model), opt.posterior().precision_matrices()))
    for ours, theirs in zip(*results, strict=True):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
    assert float((results[0][0]["head.weight"] - start["head.weight"]).abs().max()) > 1e-2


def test_without_memory_a_step_inverts_matrices_of_the_size_of_the_batch(tools):
    """The paper's step: ``A_g^-1 = (1 / d) (I - H (m d I + H^T H)^-1 H^T)`` on both sides of the gradient."""
    m, lr = 3, 0.1
    model = tools.network()
    opt = SKFAC(
        model,
        lr=lr,
        rank=m,
        weight_decay=0.0,
        damping=0.02,
        momentum=0.0,
        curvature_decay=0.0,
        refresh_every=1,
        kl_clip=None,
        variational=False,
    )
    for step in range(4):
        x, y = tools.batch(m, seed=step)
        twin = tools.twin(model)
        hidden = torch.tanh(twin[0](x))
        outputs = twin[2](hidden)
        b_upper = torch.softmax(outputs, 1) - torch.eye(3).double()[y]
        b_lower = (b_upper @ twin[2].weight) * (1 - hidden**2)
        mean = [torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).detach() for layer in (model[0], model[2])]
        tools.backward(opt, lambda model=model, x=x, y=y: Categorical()(model(x), y))
        opt.step()
        for k, (a, b, layer) in enumerate(((x, b_lower, model[0]), (hidden, b_upper, model[2]))):
            h, s = torch.cat([a, torch.ones(m, 1).double()], 1).T.detach(), b.T.detach()
            pi = float(((h.square().sum() / len(h)) / (s.square().sum() / len(s))).sqrt())

            def inverse(columns, d):
                inner = torch.linalg.solve(m * d * torch.eye(m).double() + columns.T @ columns, columns.T)
                return (torch.eye(len(columns)).double() - columns @ inner) / d

            gradient = s @ h.T / m
            step_taken = inverse(s, 0.02**0.5 / pi) @ gradient @ inverse(h, pi * 0.02**0.5)
            new = torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).detach()
            torch.testing.assert_close(new, mean[k] - lr * step_taken, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("approx", ["reduce", "expand"])
def test_a_stride_is_a_strided_subset_of_the_positions(tools, approx):
    """``A`` from every third location, and the gradients of those, scaled to all of them."""
    model = tools.fill(Pictures().double())
    x, y = pictures()
    opt = SKFAC(model, lr=0.0, kfac_approx=approx, stride=3, rank=None, factored=False, variational=False)
    tools.backward(opt, lambda: Categorical()(model(x), y))
    opt.step()
    patches = F.unfold(x, 2).transpose(1, 2)
    a = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)[:, ::3]
    output = model.convolution(x).detach().requires_grad_()
    Categorical()(model.head(torch.tanh(output).mean((2, 3))), y).backward()
    g = len(x) * output.grad.flatten(2).transpose(1, 2)[:, ::3]
    if approx == "reduce":
        inputs, outputs = a.mean(1), g.sum(1) * (16 / 6)
    else:
        inputs, outputs = a.flatten(0, 1), g.flatten(0, 1) * (16 / 6) ** 0.5
    state = tools.curvature(opt)["convolution.weight"]
    torch.testing.assert_close(state["UA"] @ state["UA"].T, inputs.T @ inputs / len(inputs), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state["US"] @ state["US"].T, outputs.T @ outputs / len(x), rtol=1e-10, atol=1e-12)

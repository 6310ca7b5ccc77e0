"""Graph convolution: examples are nodes. The adjacency matrix couples them, so a gradient "per example" is that of a
row: what a layer's output at node ``n`` adds to the gradient, whichever nodes' losses it reaches. Rows sum to the batch
gradient; nothing more is promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vogn
from plain_loop import METHODS, OPTIONS
from vogn.capture import oracle
from vogn.likelihoods import Categorical

NODES, FEATURES, CLASSES = 12, 4, 3


class GraphConvolution(nn.Module):
    """Two layers ``A_hat H W``, Kipf and Welling (2017), Eq. 9."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.adjacency @ self.first(x))
        return self.adjacency @ self.second(hidden)


def normalised_adjacency() -> Tensor:
    """``D^-1/2 (A + I) D^-1/2`` of a random graph."""
    edges = torch.rand(NODES, NODES, generator=torch.Generator().manual_seed(0)) < 0.2
    adjacency = (edges | edges.T | torch.eye(NODES, dtype=torch.bool)).double()
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


@pytest.fixture(params=["dense", "sparse"])
def graph(request):
    torch.manual_seed(1)
    adjacency = normalised_adjacency()
    model = GraphConvolution(adjacency.to_sparse() if request.param == "sparse" else adjacency).double()
    source = torch.Generator().manual_seed(2)
    x = torch.randn(NODES, FEATURES, generator=source, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (NODES,), generator=source)
    known = torch.arange(NODES) < 7
    return model, x, labels, known


def test_rows_by_node_sum_to_the_batch_gradient_and_make_the_curvature(graph):
    model, x, labels, known = graph
    rows = oracle.zero_tensor_gradients(
        model, x, labels, lambda outputs, y: nn.functional.cross_entropy(outputs[known], y[known], reduction="sum")
    )
    opt = vogn.VOGN(model, variational=False, **OPTIONS)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), labels, mask=known).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(rows[name].sum(0) / known.sum(), parameter.grad)
    opt.step()
    for block in opt.posterior().blocks:
        for name, diagonal in block.layout.unpack(block.state["c"]).items():
            torch.testing.assert_close(diagonal, rows[name].square().sum(0) / known.sum(), rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", METHODS.values())
def test_the_whole_graph_is_one_batch(graph, method, variational):
    model, x, labels, known = graph
    opt = method(model, variational=variational, **OPTIONS)
    start = float(Categorical()(model(x), labels, mask=known).detach())
    for _ in range(20):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), labels, mask=known).backward()
        opt.step()
    assert float(Categorical()(model(x), labels, mask=known).detach()) < start
    found = vogn.predict(model, opt.posterior(), [x], samples=4, likelihood=Categorical())
    assert found.mean.shape == (NODES, CLASSES)

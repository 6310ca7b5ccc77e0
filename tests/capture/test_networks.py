"""Capture in whole networks: every statistic of every parameter against a loop over examples."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import NaturalGradient
from vogn.capture import oracle
from vogn.capture.statistics import GGN, Empirical, MonteCarlo
from vogn.likelihoods import Categorical
from vogn.structures import Diagonal

N = 4


class Residual(nn.Module):
    """In-place ReLU, in-place residual addition, grouped and circular convolutions, one layer called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding="same", groups=2, padding_mode="circular")
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.GroupNorm(2, 4)
        self.down = nn.Conv2d(4, 3, 2, stride=2, dilation=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.relu(self.first(x))
        h = self.twice(torch.tanh(self.grouped(x)))
        h += x
        h = self.relu(self.norm(self.twice(h)))
        return self.head(self.down(h).flatten(1))


class Sequence(nn.Module):
    """Embedding with padding, Conv1d, LayerNorm, a class token and a position table as bare parameters."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 3, padding_idx=0)
        self.token = nn.Parameter(torch.zeros(1, 1, 3))
        self.position = nn.Parameter(torch.zeros(1, 5, 3))
        self.mix = nn.Conv1d(5, 2, 1)
        self.norm = nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(6, 3)

    def forward(self, index):
        x = torch.cat([self.token.expand(len(index), -1, -1), self.table(index)], 1) + self.position
        return self.head((self.norm(torch.tanh(self.mix(x))) * (1 + self.scale)).flatten(1))


class Tied(nn.Module):
    """An embedding whose table is also the output layer, and a weight shared by two linear layers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.out = nn.Linear(4, 3, bias=False)
        self.out.weight = self.table.weight

    def forward(self, index):
        return self.out(torch.tanh(self.two(torch.tanh(self.one(self.table(index).sum(1))))))


def frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)  # bias only
    model[2].requires_grad_(False)
    model[4].bias.requires_grad_(False)  # weight only
    return model


class Volume(nn.Module):
    """Conv3d, PReLU, instance and RMS normalisation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2)
        self.norm = nn.InstanceNorm3d(2, affine=True)
        self.act = nn.PReLU(2)
        self.rms = nn.RMSNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.rms(self.act(self.norm(self.conv(x))).flatten(1)))


class Evaluated(nn.Module):
    """Batch normalisation in evaluation mode treats examples independently."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 3))
        self.body[1].eval()
        self.body[1].running_mean += 0.3

    def forward(self, x):
        return self.body(x)


class InPlace(nn.Module):
    """Layers that return views of what they have computed, followed by operations in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.conv = nn.Linear(3, 3), nn.Linear(3, 3), nn.Conv1d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.first(x)
        y += x
        z = self.conv(self.relu(self.second(y)).mT)
        z.add_(y.mT).mul_(2.0)
        return self.relu(z).mean(-1)


def indices(tools, *shape, high, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "residual": (Residual, lambda tools: tools.normal(N, 2, 4, 4)),
    "sequence": (Sequence, lambda tools: indices(tools, N, 4, high=6)),
    "tied": (Tied, lambda tools: indices(tools, N, 2, high=3)),
    "frozen": (frozen, lambda tools: tools.normal(N, 3)),
    "volume": (Volume, lambda tools: tools.normal(N, 1, 3, 3, 3)),
    "in place": (InPlace, lambda tools: tools.normal(N, 2, 3)),
    "batch norm evaluated": (Evaluated, lambda tools: tools.normal(N, 3)),
}


def make(tools, name):
    build, inputs = NETWORKS[name]
    return tools.fill(build()), inputs(tools), tools.labels(N, 3)


@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_empirical_fisher_of_every_parameter_is_exact(tools, name, partition):
    model, x, y = make(tools, name)
    ours, posterior = tools.measure(model, Empirical(), Categorical(), x, y, partition=partition)
    tools.assert_blocks(ours, tools.empirical(model, posterior, x, y))


@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_exact_ggn_of_every_parameter_is_exact(tools, name, partition):
    model, x, y = make(tools, name)
    ours, posterior = tools.measure(model, GGN(), Categorical(), x, y, partition=partition)
    tools.assert_blocks(ours, tools.ggn_blocks(model, posterior, x, tools.softmax_hessian, N))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_monte_carlo_fisher_is_the_empirical_fisher_of_its_draws(tools, monkeypatch, name, draws):
    model, x, y = make(tools, name)
    likelihood, drawn = Categorical(), []

    def sample(outputs, generator=None):
        drawn.append(tools.labels(N, 3, seed=40 + len(drawn)))
        return drawn[-1]

    monkeypatch.setattr(likelihood, "sample", sample)
    ours, posterior = tools.measure(model, MonteCarlo(draws), likelihood, x, y)
    assert len(drawn) == draws
    parts = [tools.empirical(model, posterior, x, labels) for labels in drawn]
    tools.assert_blocks(ours, {block: sum(part[block] for part in parts) / draws for block in parts[0]})


@pytest.mark.parametrize("statistic", ["empirical", "mc", "ggn", "hutchinson"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_left_bit_identical(tools, name, statistic):
    """But for layers with positions under the empirical Fisher: their gradients are the sums of its rows."""
    model, x, y = make(tools, name)
    Categorical()(model(x), y).backward()
    expected = {n: p.grad.clone() for n, p in oracle.trainable(model).items()}
    model.zero_grad()
    opt = NaturalGradient(
        model, Diagonal(negative="abs"), statistic, lr=0.0, weight_decay=1.0, variational=False, partition="layer"
    )
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    tolerance = {"rtol": 1e-11, "atol": 1e-13} if statistic == "empirical" else {"rtol": 0.0, "atol": 0.0}
    for n, p in model.named_parameters():
        assert (p.grad is None) == (not p.requires_grad)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[n], **tolerance)


@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
@pytest.mark.parametrize("name", NETWORKS)
def test_coverage_lists_every_trainable_parameter_exactly_once(tools, name, partition):
    model, _, _ = make(tools, name)
    rows = [row for row in tools.watch(model, "ggn", partition=partition).coverage() if not row["frozen"]]
    assert sorted(row["parameter"] for row in rows) == sorted(oracle.trainable(model))
    for block in {row["block"] for row in rows}:
        assert sum(row["bytes"] for row in rows if row["block"] == block) > 0
    assert {(tuple(row["statistics"]), row["structure"]) for row in rows} == {(("ggn",), "Dense")}


class Trained(nn.Module):
    """Batch normalisation in training mode couples the examples."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.fc, self.last = nn.Linear(12, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.norm(self.conv(x))), 2)
        return self.head(F.relu(self.last(self.fc(x.flatten(1)))))


@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
def test_batch_norm_in_training_is_taken_by_row(tools, partition):
    """The row of an example is what its own output row contributes; rows sum to the batch gradient."""
    model, x, y = tools.fill(Trained()), tools.normal(N, 2, 4, 4), tools.labels(N, 3)
    reference = copy.deepcopy(model)
    rows_of = oracle.zero_tensor_gradients(reference, x, y, tools.cross_entropy)
    ours, posterior = tools.measure(model, Empirical(), Categorical(), x, y, partition=partition)
    rows = tools.block_rows(posterior, rows_of)
    tools.assert_blocks(ours, {name: r.T @ r / N for name, r in rows.items()})
    for name, p in model.named_parameters():
        torch.testing.assert_close(rows_of[name].sum(0) / N, p.grad)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(reference.named_buffers())[name]), "no statistic runs the forward pass again"


def test_a_branch_that_a_batch_does_not_use_counts_as_zero(tools):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x, side):
            return self.head(torch.tanh(getattr(self, side)(x)))

    x, y = tools.normal(N, 3), tools.labels(N, 3)
    for statistic in (Empirical(), GGN()):
        for partition in ("layer", "parameter", "model"):
            model = tools.fill(Routed())
            alone = nn.Sequential(model.left, nn.Tanh(), model.head)
            exact, _ = tools.measure(alone, statistic, Categorical(), x, y, partition=partition)
            model.zero_grad()
            opt = tools.watch(model, statistic, partition=partition, initial_curvature=2.0)
            with opt.sampled_params():
                Categorical()(model(x, "left"), y).backward()
            blocks, _ = tools.measured(opt)
            if partition != "model":
                for name, block in blocks.items():
                    if name.startswith("right"):
                        assert torch.equal(block, 2.0 * torch.eye(len(block)).double())  # untouched
                    else:
                        torch.testing.assert_close(block, exact[name.replace("left", "0").replace("head", "2")])
                assert len(blocks) == {"layer": 3, "parameter": 6}[partition]
            else:
                joined, used = blocks["left.weight"], [k for k in range(47) if not 16 <= k < 32]
                torch.testing.assert_close(joined[used][:, used], exact["0.weight"])
                assert not joined[16:32].any() and not joined[:, 16:32].any()


@pytest.mark.parametrize("statistic", [Empirical, GGN])
@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
def test_positions_folded_into_the_batch_are_refused(tools, statistic, partition):
    """Two crops per example as two rows of the encoder: their sum is the example's gradient, not each of them."""

    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.encoder(x)).unflatten(0, (N, 2)).sum(1))

    model, x, y = tools.fill(Crops()), tools.normal(2 * N, 3), tools.labels(N, 3)
    opt = tools.watch(model, statistic(), partition=partition)
    with pytest.raises(TypeError, match="dimension 0|different numbers"), opt.sampled_params():
        Categorical()(model(x), y).backward()


def test_a_subclass_with_its_own_forward_is_measured_as_bare_parameters(tools):
    """Its mathematics is unknown, so its rule does not apply."""

    class Cosine(nn.Linear):
        def forward(self, x):
            return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1), self.bias)

    model, x, y = tools.fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Cosine(4, 3))), tools.normal(N, 3), None
    y = tools.labels(N, 3)
    for statistic in (Empirical(), GGN()):
        ours, posterior = tools.measure(model, statistic, Categorical(), x, y)
        exact = (
            tools.empirical(model, posterior, x, y)
            if isinstance(statistic, Empirical)
            else tools.ggn_blocks(model, posterior, x, tools.softmax_hessian, N)
        )
        tools.assert_blocks(ours, exact)


def test_an_input_changed_in_place_after_use_is_an_error_by_name(tools):
    """Where autograd does not need the input itself, nobody else would notice."""

    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            x = x * 2.0
            out = self.norm(x)
            with torch.no_grad():
                x.add_(1.0)
            return self.head(out)

    model, x, y = tools.fill(Careless()), tools.normal(N, 3), tools.labels(N, 3)
    opt = tools.watch(model, GGN(), partition="layer")
    message = "input of layer 'norm.weight' was changed in place after the layer had used it; make the operation"
    with pytest.raises(TypeError, match=message), opt.sampled_params():
        Categorical()(model(x), y).backward()


@pytest.mark.parametrize("statistic", [Empirical(), GGN(), MonteCarlo()], ids=lambda s: s.NAME)
@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
def test_activation_checkpointing_changes_nothing(tools, monkeypatch, partition, statistic):
    """The non-reentrant kind runs forward hooks twice; the second run is not another call."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, active):
            super().__init__()
            self.first, self.body, self.head, self.active = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3), active

        def inner(self, x):
            return torch.tanh(self.body(torch.relu(x)))

        def forward(self, x):
            x = self.first(x)
            return self.head(checkpoint(self.inner, x, use_reentrant=False) if self.active else self.inner(x))

    x, y = tools.normal(N, 3), tools.labels(N, 3)
    runs = []
    for active in (False, True):
        model = tools.fill(Checkpointed(active))
        opt = tools.watch(model, statistic, partition=partition)
        for half in (slice(0, 2), slice(2, 4)):
            with opt.sampled_params():
                (Categorical()(model(x[half]), y[half]) / 2).backward()
        runs.append(tools.measured(opt)[0])
    tools.assert_blocks(*runs)

"""The statistics: several heads, masks, weights, positions, random columns, Hessian products."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import NaturalGradient
from vogn.capture import oracle
from vogn.capture.statistics import GGN, REGISTRY, Empirical, Gradient, Hutchinson, Inputs, MonteCarlo, Price
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker

N, T, C = 4, 3, 3


class Tokens(nn.Module):
    """``(N, T, 2)`` to logits ``(N, T, C)`` with mixing between the positions and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(2, 3), nn.Linear(T, T), nn.Linear(3, C)
        self.shift = nn.Parameter(torch.zeros(1, T, 3))

    def forward(self, x):
        return self.last(torch.tanh(self.mix(self.first(x).mT).mT + self.shift))


class Heads(nn.Module):
    """A trunk with a classification and a regression head."""

    def __init__(self):
        super().__init__()
        self.trunk, self.label, self.value = nn.Linear(2, 3), nn.Linear(3, C), nn.Linear(3, 1)

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.label(h), self.value(h)


def tokens(tools):
    labels = tools.labels(N * T, C).reshape(N, T)
    return tools.fill(Tokens()), tools.normal(N, T, 2), labels


MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, True]])


def masked_rows(model, x, y, mask):
    """Gradient of every example's summed loss over the terms that count: ``{name: (N, *shape)}``."""
    parameters = oracle.trainable(model)
    rows = []
    for n in range(N):
        terms = F.cross_entropy(model(x[n : n + 1]).flatten(0, 1), y[n], reduction="none")
        rows.append(torch.autograd.grad((terms * mask[n]).sum(), list(parameters.values())))
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("partition", ["layer", "model"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_ggn_of_one_loss_term_per_position_is_exact(tools, masked, partition):
    """Outputs (N, T, C): N T loss terms, coupled through the network, the mean taken over those that count."""
    model, x, y = tokens(tools)
    mask = MASK if masked else torch.ones(N, T, dtype=torch.bool)
    opt = tools.watch(model, GGN(), partition=partition)
    with opt.sampled_params():
        Categorical()(model(x), y, mask=mask if masked else None).backward()
    ours, posterior = tools.measured(opt)

    def hessian(outputs):
        weight = mask.double().repeat_interleave(C, 1)
        return tools.softmax_hessian(outputs) * weight.unsqueeze(1) * weight.unsqueeze(2)

    tools.assert_blocks(ours, tools.ggn_blocks(model, posterior, x, hessian, int(mask.sum())))


@pytest.mark.parametrize("partition", ["layer", "model"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_empirical_fisher_of_one_loss_term_per_position_sums_within_an_example(tools, masked, partition):
    model, x, y = tokens(tools)
    mask = MASK if masked else torch.ones(N, T, dtype=torch.bool)
    opt = tools.watch(model, Empirical(), partition=partition)
    with opt.sampled_params():
        Categorical()(model(x), y, mask=mask if masked else None).backward()
    ours, posterior = tools.measured(opt)
    rows = tools.block_rows(posterior, masked_rows(model, x, y, mask))
    tools.assert_blocks(ours, {name: r.T @ r / int(mask.sum()) for name, r in rows.items()})


INVALID = -100  # the usual label of padding


@pytest.mark.parametrize("statistic", [Empirical(), MonteCarlo(), GGN(), Hutchinson()], ids=lambda s: s.NAME)
def test_what_stands_behind_a_mask_is_ignored(tools, statistic):
    """Invalid labels and NaN targets where the mask is False change nothing, in any pass of ours."""
    runs = []
    for poisoned in (False, True):
        model, x, y = tokens(tools)
        y = torch.where(MASK, y, INVALID) if poisoned else y
        opt = NaturalGradient(
            model, Diagonal(negative="abs"), statistic, lr=0.0, ess=1.0, weight_decay=1.0, variational=False
        )
        with opt.sampled_params():
            Categorical()(model(x), y, mask=MASK).backward()
        opt.step()
        runs.append(opt.posterior().precision_matrices())
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]) and bool(runs[0][name].isfinite().all())
    model, x, _ = tokens(tools)
    target = tools.normal(N, T, C).masked_fill(~MASK.unsqueeze(-1), float("nan"))
    opt = NaturalGradient(
        model, Diagonal(negative="abs"), statistic, lr=0.0, ess=1.0, weight_decay=1.0, variational=False
    )
    with opt.sampled_params():
        Gaussian(noise=1.0)(model(x), target, mask=MASK).backward()
    opt.step()
    assert all(bool(m.isfinite().all()) for m in opt.posterior().precision_matrices().values())


@pytest.mark.parametrize("statistic", [Empirical(), GGN()], ids=lambda s: s.NAME)
def test_masked_terms_are_those_of_the_smaller_batch(tools, statistic):
    """Masking two of six examples is a batch of four."""
    model = tools.fill(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, C)))
    x, y = tools.normal(6, 2), tools.labels(6, C)
    keep = torch.tensor([True, False, True, True, False, True])
    runs = []
    for masked in (False, True):
        opt = tools.watch(model, statistic)
        model.zero_grad()
        with opt.sampled_params():
            outputs = model(x if masked else x[keep])
            Categorical()(outputs, y if masked else y[keep], mask=keep if masked else None).backward()
        runs.append(tools.measured(opt)[0])
    tools.assert_blocks(*runs)


def test_term_weights_scale_the_curvature_of_their_terms(tools):
    """The GGN of sum_n w_n loss_n / N is the weighted mean; a number rescales the loss only, as 1 / accumulation."""
    model, x, y = tools.fill(nn.Linear(2, C)), tools.normal(N, 2), tools.labels(N, C)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0]).double()
    opt = tools.watch(model, GGN())
    with opt.sampled_params():
        Categorical()(model(x), y, weight=weight).backward()
    ours, posterior = tools.measured(opt)
    exact = tools.ggn_blocks(model, posterior, x, lambda out: tools.softmax_hessian(out) * weight[:, None, None], N)
    tools.assert_blocks(ours, exact)
    model.zero_grad()
    opt = tools.watch(model, GGN())
    with opt.sampled_params():
        Categorical()(model(x), y, weight=0.25).backward()
    tools.assert_blocks(tools.measured(opt)[0], tools.ggn_blocks(model, posterior, x, tools.softmax_hessian, N))


HALF = torch.tensor([True, False, False, True])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("partition", ["layer", "model"])
def test_two_heads_add_their_curvatures(tools, partition, masked):
    """One loss with two likelihood calls: N examples, not 2 N; each likelihood is the mean over its own terms."""
    model, x, y, z = tools.fill(Heads()), tools.normal(N, 2), tools.labels(N, C), tools.normal(N, 1, seed=3)
    opt = tools.watch(model, GGN(), partition=partition)
    with opt.sampled_params():
        label, value = model(x)
        loss = Categorical()(label, y) + Gaussian(noise=0.5)(value, z, mask=HALF if masked else None)
        loss.backward()
    ours, posterior = tools.measured(opt)
    regressed = HALF.double() if masked else torch.ones(N).double()

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return torch.cat(self.inner(x), 1)

    def hessian(outputs):
        first = tools.softmax_hessian(outputs[:, :C]) / N
        second = torch.full((N, 1, 1), 1 / 0.5**2).double() * (regressed / regressed.sum())[:, None, None]
        return torch.stack([torch.block_diag(a, b) for a, b in zip(first, second, strict=True)])

    joined = Joined()
    named = {n.removeprefix("inner."): g for n, g in tools.jacobian_rows(joined, x).items()}
    with torch.no_grad():
        matrices = hessian(joined(x))
    exact = {}
    for block in posterior.blocks:
        rows = block.layout.pack({n: named[n] for n in block.layout.names}).flatten(2)
        exact[block.name] = torch.einsum("nkd,nkl,nle->de", rows, matrices, rows)
    tools.assert_blocks(ours, exact)


@pytest.mark.parametrize("partition", ["layer", "model"])
def test_two_heads_are_one_empirical_fisher(tools, partition):
    """The gradient of an example is that of both of its losses."""
    model, x, y, z = tools.fill(Heads()), tools.normal(N, 2), tools.labels(N, C), tools.normal(N, 1, seed=3)
    opt = tools.watch(model, Empirical(), partition=partition)
    with opt.sampled_params():
        label, value = model(x)
        (Categorical()(label, y) + Gaussian(noise=1.0)(value, z)).backward()
    ours, posterior = tools.measured(opt)

    def loss(outputs, targets):
        label, value = outputs
        return F.cross_entropy(label, targets[0], reduction="sum") + 0.5 * (value - targets[1]).square().sum()

    parameters = oracle.trainable(model)
    rows = [
        torch.autograd.grad(loss(model(x[n : n + 1]), (y[n : n + 1], z[n : n + 1])), list(parameters.values()))
        for n in range(N)
    ]
    named = {name: torch.stack(parts) for name, parts in zip(parameters, zip(*rows, strict=True), strict=True)}
    tools.assert_blocks(ours, {k: r.T @ r / N for k, r in tools.block_rows(posterior, named).items()})


@pytest.mark.parametrize("structure", [Kronecker(), EigenKronecker(), DiagonalLowRank(rank=30), Diagonal()])
def test_two_heads_count_their_examples_once_in_every_structure(tools, structure):
    """Two equal heads with half the weight each are one head: C adds, the input factor does not."""

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Linear(2, 3), nn.Linear(3, C)

        def forward(self, x):
            return self.head(torch.tanh(self.trunk(x)))

    runs = []
    for twice in (False, True):
        model, x, y = tools.fill(Twins()), tools.normal(N, 2), tools.labels(N, C)
        opt = NaturalGradient(model, structure, GGN(), lr=0.0, ess=1.0, weight_decay=1.0, variational=False)
        with opt.sampled_params():
            outputs = model(x)
            loss = Categorical()(outputs, y)
            if twice:
                loss = loss + Categorical()(outputs, y)
            loss.backward()
        opt.step()
        posterior = opt.posterior()
        runs.append({n: m - torch.eye(len(m)) for n, m in posterior.precision_matrices().items()})
    tools.assert_blocks(runs[1], {name: 2 * matrix for name, matrix in runs[0].items()})


# ---------------------------------------------------------------------- random columns of the GGN


def test_random_columns_are_unbiased_by_enumeration(tools, monkeypatch):
    """One random combination of the columns, averaged over all of its signs, is the exact GGN."""
    model, x, y = tools.fill(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, C))), tools.normal(1, 2), None
    y = tools.labels(1, C)
    real, total = torch.randint, None
    for signs in itertools.product((0, 1), repeat=C):
        monkeypatch.setattr(torch, "randint", lambda *args, signs=signs, **kw: torch.tensor(signs).reshape(1, C, 1, 1))
        opt = tools.watch(model, GGN(samples=1))
        model.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        (matrix,) = tools.measured(opt)[0].values()
        total = matrix if total is None else total + matrix
    monkeypatch.setattr(torch, "randint", real)
    exact, _ = exact_ggn(tools, model, x, y)
    torch.testing.assert_close(total / 2**C, exact, rtol=1e-10, atol=1e-12)


def exact_ggn(tools, model, x, y):
    opt = tools.watch(model, GGN())
    model.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    blocks, posterior = tools.measured(opt)
    (matrix,) = blocks.values()
    return matrix, posterior


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("shape", ["labels", "positions"])
def test_random_columns_are_unbiased_within_their_standard_error(tools, shape, samples):
    if shape == "labels":
        model, x, y = tools.fill(nn.Linear(2, C)), tools.normal(N, 2), tools.labels(N, C)
    else:
        model, x, y = tokens(tools)
    exact, posterior = exact_ggn(tools, model, x, y)
    draws = []
    for seed in range(60):
        opt = tools.watch(model, GGN(samples=samples), seed=seed)
        model.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        (matrix,) = tools.measured(opt)[0].values()
        draws.append(matrix.trace())
    mean, error = torch.stack(draws).mean(), torch.stack(draws).std() / 60**0.5
    assert abs(float(mean - exact.trace())) < 4 * float(error)
    assert float(error) > 0


def test_many_columns_warn_with_the_way_out(tools):
    for outputs, warns in ((64, False), (65, True)):
        model = tools.fill(nn.Linear(2, outputs))
        opt = tools.watch(model, GGN(), partition="layer")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with opt.sampled_params():
                Categorical()(model(tools.normal(2, 2)), tools.labels(2, outputs)).backward()
        messages = [str(w.message) for w in caught if "exact GGN takes" in str(w.message)]
        assert bool(messages) == warns
        if warns:
            assert "65 backward passes" in messages[0] and "ggn_samples=1" in messages[0]


@pytest.mark.parametrize(
    ("likelihood", "outputs", "hessian"),
    [
        (Gaussian(noise=0.5), 2, lambda out: torch.eye(2).double().expand(len(out), 2, 2) / 0.25),
        (Bernoulli(), 2, lambda out: torch.diag_embed(torch.sigmoid(out) * (1 - torch.sigmoid(out)))),
    ],
    ids=["gaussian", "bernoulli"],
)
def test_the_ggn_of_the_other_likelihoods_is_exact(tools, likelihood, outputs, hessian):
    model = tools.fill(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs)))
    x = tools.normal(N, 2)
    y = tools.normal(N, outputs, seed=1)
    y = (y > 0).double() if isinstance(likelihood, Bernoulli) else y
    opt = tools.watch(model, GGN())
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    ours, posterior = tools.measured(opt)
    tools.assert_blocks(ours, tools.ggn_blocks(model, posterior, x, hessian, N))


# ---------------------------------------------------------------------- probes


def hessian_by_hand(model, x, y):
    """Dense Hessian of the mean loss over the flat parameters, by double differentiation."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [
        torch.cat([h.flatten() for h in torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)])
        for g in flat
    ]
    return torch.stack(rows)


def test_hutchinson_is_the_probe_times_the_hessian_product(tools):
    """Observation (v, H v) with the library's own v: the symmetric part of v (H v)^T in a dense structure."""
    from vogn.linalg.noise import normal as draw

    model = tools.fill(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, C, bias=False)))
    x, y = tools.normal(N, 2), tools.labels(N, C)
    opt = NaturalGradient(
        model,
        Dense(negative="retract"),
        Hutchinson(),
        lr=0.0,
        ess=1.0,
        weight_decay=50.0,
        variational=False,
        partition="model",
        curvature_decay=0.0,
        initial_curvature=1.0,
        seed=6,
    )
    hessian = hessian_by_hand(model, x, y)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    (matrix,) = opt.posterior().precision_matrices().values()
    where = {"seed": 6, "stream": "probes", "step": 0, "sample": 0, "name": "0.weight"}
    v = draw((15, 1), dtype=torch.float64, **where).flatten()
    outer = torch.outer(v, hessian @ v)
    delta = 0.5 * (outer + outer.T) - torch.eye(15).double()  # from C_0 = I with decay 0
    shifted = 51.0 * torch.eye(15).double()
    expected = shifted + delta + 0.5 * delta @ torch.linalg.solve(shifted, delta)  # the stated retraction
    torch.testing.assert_close(matrix, expected, rtol=1e-10, atol=1e-10)


def test_hutchinson_is_unbiased_within_its_standard_error(tools):
    model = tools.fill(nn.Linear(2, C))
    x, y = tools.normal(N, 2), tools.labels(N, C)
    exact = hessian_by_hand(model, x, y).diagonal()
    estimates = []
    for seed in range(100):
        # a large shift makes every C + shift positive, so that evidence of any sign is kept as it is
        opt = NaturalGradient(
            model, Diagonal(), Hutchinson(), lr=0.0, ess=1.0, weight_decay=1e3, variational=False, seed=seed
        )
        model.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        variance = opt.posterior().variance()
        estimates.append(torch.cat([(1 / variance[n] - 1e3).flatten() for n in ("weight", "bias")]))
    stacked = torch.stack(estimates)
    error = stacked.std(0) / 10
    assert bool(((stacked.mean(0) - exact).abs() < 4.5 * error).all())


def test_hessian_products_need_the_targets(tools):
    model, x = tools.fill(nn.Linear(2, C)), tools.normal(N, 2)
    opt = NaturalGradient(model, Diagonal(negative="abs"), Hutchinson(), lr=0.1, variational=False)
    with pytest.raises(TypeError, match=r"call opt.observe\(outputs, likelihood, targets\)"), opt.sampled_params():
        opt.observe(model(x), Categorical())


def test_bare_parameters_need_the_targets_for_the_empirical_fisher(tools):
    model, x, y = tokens(tools)
    opt = tools.watch(model, Empirical(), partition="layer")
    message = r"'shift' needs the targets: call opt.observe\(outputs, likelihood, targets\)"
    with pytest.raises(TypeError, match=message), opt.sampled_params():
        opt.observe(model(x), Categorical())
    with opt.sampled_params():
        outputs = model(x)
        opt.observe(outputs, Categorical(), y)
        F.cross_entropy(outputs.flatten(0, 1), y.flatten()).backward()
    ours, posterior = tools.measured(opt)
    rows = tools.block_rows(posterior, masked_rows(model, x, y, torch.ones(N, T)))
    tools.assert_blocks(ours, {name: r.T @ r / (N * T) for name, r in rows.items()})


def test_the_registry_names_every_statistic():
    assert {name: kind.NAME for name, kind in REGISTRY.items()} == {name: name for name in REGISTRY}
    assert set(REGISTRY.values()) == {Empirical, MonteCarlo, GGN, Gradient, Hutchinson, Inputs, Price}
    assert all(kind.CHANNEL in ("rows", "probe") for kind in REGISTRY.values())

"""A posterior as the next prior: exact sequential Bayes where the model is linear and the noise Gaussian."""

import io
import itertools

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.errors import CheckpointError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian
from vogn.optim.prior_handover import use_as_prior
from vogn.structures import Dense, DiagonalLowRank, EigenKronecker, Gram, Kronecker

PRECISION, NOISE = 0.7, 0.5
LIKELIHOOD = Gaussian(noise=NOISE)


def parts(features=4, sizes=(9, 5, 14)):
    """Three tasks of different sizes and slopes."""
    return [(normal(n, features, seed=n) * (k + 1), normal(n, 1, seed=50 + n)) for k, n in enumerate(sizes)]


def joint(tasks):
    """Precision and mean of the ridge regression on all data, by hand."""
    x, y = (torch.cat(part) for part in zip(*tasks, strict=True))
    precision = x.T @ x / NOISE**2 + PRECISION * torch.eye(x.shape[1], dtype=x.dtype)
    return precision, torch.linalg.solve(precision, x.T @ y / NOISE**2).T


def learn(model, tasks, structure, *, variational):
    """One natural-gradient step of rate 1 on all data of each task: Newton's step, exact for a quadratic."""
    posterior = None
    for x, y in tasks:
        opt = vogn.NaturalGradient(
            model, structure, "ggn", lr=1.0, ess=len(x), weight_decay=PRECISION / len(x), momentum=0.0,
            curvature_decay=0.0, mc_samples=2, antithetic=True, variational=variational,
        )  # fmt: skip
        if posterior is not None:
            use_as_prior(opt, posterior)
        opt.zero_grad()
        for _ in range(2):  # a mirrored pair: the noise of a quadratic's gradient cancels
            with opt.sampled_params():
                LIKELIHOOD(model(x), y).backward()
        opt.step()
        posterior = opt.posterior()
    return posterior


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize(
    "structure", [Dense(), Kronecker(), DiagonalLowRank(rank=4)], ids=["dense", "kronecker", "full rank"]
)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order_of_tasks_gives_the_joint_posterior(structure, order, variational):
    """With one output the output factor is the same number in all tasks, so Kronecker sums are exact too."""
    tasks = parts()
    precision, mean = joint(tasks)
    model = fill(nn.Linear(4, 1, bias=False).double())
    found = learn(model, [tasks[k] for k in order], structure, variational=variational)
    torch.testing.assert_close(found.blocks[0].precision_matrix(), precision, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean()["weight"], mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_diagonal_precisions_add_and_orthogonal_features_are_exact(order):
    tasks = [(torch.diag_embed(normal(4, seed=k)).reshape(4, 4), normal(4, 1, seed=9 + k)) for k in range(3)]
    precision, mean = joint(tasks)
    model = fill(nn.Linear(4, 1, bias=False).double())
    found = learn(model, [tasks[k] for k in order], vogn.structures.Diagonal(), variational=False)
    torch.testing.assert_close(found.blocks[0].precision_matrix(), precision, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean()["weight"], mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_eigen_corrected_factors_are_exact_where_tasks_share_an_eigenbasis(order, variational):
    """Inputs ``diag(c) R`` with one rotation ``R``: the joint precision has these eigenvectors too."""
    rotation = torch.linalg.qr(normal(4, 4, seed=5)).Q
    scales = [1.0 + normal(4, seed=k).abs() * (k + 1) for k in range(3)]
    tasks = [(torch.diag(scale) @ rotation, normal(4, 1, seed=9 + k)) for k, scale in enumerate(scales)]
    precision, mean = joint(tasks)
    model = fill(nn.Linear(4, 1, bias=False).double())
    found = learn(model, [tasks[k] for k in order], EigenKronecker(), variational=variational)
    torch.testing.assert_close(found.blocks[0].precision_matrix(), precision, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.mean()["weight"], mean, rtol=1e-8, atol=1e-8)


def test_few_columns_keep_the_exact_diagonal():
    """At rank 1 the precision's diagonal is that of all data, and the rest is not."""
    tasks = parts()
    precision, _ = joint(tasks)
    model = fill(nn.Linear(4, 1, bias=False).double())
    found = learn(model, tasks, DiagonalLowRank(rank=1), variational=False).blocks[0].precision_matrix()
    torch.testing.assert_close(found.diagonal(), precision.diagonal(), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, precision, rtol=1e-3)


def network():
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())


def steps(opt, model, n, seed=0):
    likelihood = Categorical()
    for k in range(n):
        x, y = batch(8, seed=seed + k)
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x), y).backward()
        opt.step()
    return opt


@pytest.mark.parametrize("method", ["vogn", "kfac", "von", "ivon", "slang", "ekfac", "evon"])
def test_the_bare_prior_as_a_posterior_changes_nothing(method):
    """A posterior without evidence, N(0, I / delta), as prior: bit for bit the plain method; Kronecker factors and
    columns go through a decomposition, to rounding."""
    runs = []
    for as_posterior in (False, True):
        model = network()
        options = {} if method != "ivon" else {"initial_curvature": 0.5}
        opt = vogn.METHODS[method].build(model, lr=0.1, ess=50.0, weight_decay=0.02, **options)
        if as_posterior:
            bare = network()
            with torch.no_grad():
                for p in bare.parameters():
                    p.zero_()
            first = vogn.METHODS[method].build(
                bare, lr=0.0, ess=100.0, weight_decay=0.01, **(options | {"initial_curvature": 1.0})
            )
            posterior = first.posterior()
            empty = [
                vogn.posterior.PosteriorBlock(
                    b.name, b.layout, b.structure,
                    b.structure.init(b.layout.block_shape, initial=0.0, dtype=torch.float64, device="cpu"),
                    b.shift, b.ess,
                )
                for b in posterior.blocks
            ]  # fmt: skip
            use_as_prior(opt, vogn.GaussianPosterior(empty, posterior.mean()))
        steps(opt, model, 5)
        runs.append([p.detach().clone() for p in model.parameters()])
    for plain, other in zip(*runs, strict=True):
        if method in ("kfac", "slang", "ekfac", "evon"):
            torch.testing.assert_close(plain, other, rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(plain, other)


def test_diagonal_step_is_the_written_formula():
    """``m - lr (c + wd)^-1 (g + (P / ess) (m - m_0))`` and ``c = EMA(h) + (P / ess - wd)``, deterministic VOGN."""
    model, likelihood = network(), Categorical()
    earlier = steps(vogn.VOGN(model, lr=0.1, ess=40.0, weight_decay=0.05), model, 3).posterior()
    precision = {n: 1 / v for n, v in earlier.variance().items()}
    centre = earlier.mean()
    opt = vogn.VOGN(model, lr=0.1, ess=20.0, momentum=0.0, damping=0.03, curvature_decay=0.6, variational=False)
    use_as_prior(opt, earlier)
    decay = 40.0 * 0.05 / 20.0
    assert opt.param_groups[0]["weight_decay"] == pytest.approx(decay)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    average = None
    for k in range(3):
        x, y = batch(8, seed=30 + k)
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x), y).backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        rows = [
            torch.autograd.grad(
                likelihood(torch.func.functional_call(model, w, (x[i : i + 1],)), y[i : i + 1]), list(w.values())
            )
            for w in [{n: p.clone().requires_grad_() for n, p in weights.items()}]
            for i in range(len(x))
        ]
        squares = {n: torch.stack([row[j] ** 2 for row in rows]).mean(0) for j, n in enumerate(weights)}
        average = squares if average is None else {n: 0.6 * average[n] + 0.4 * squares[n] for n in weights}
        for n in weights:
            c = average[n] + precision[n] / 20.0 - decay
            prior = precision[n] / 20.0 * (weights[n] - centre[n])
            weights[n] = weights[n] - 0.1 * (grads[n] + prior) / (c + decay + 0.03)
        opt.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), weights[n], rtol=1e-10, atol=1e-12)
    for n, v in opt.posterior().variance().items():
        torch.testing.assert_close(1 / v, 20.0 * average[n] + precision[n], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["vogn", "von", "ivon", "kfac", "slang", "ekfac", "evon"])
def test_forgetting_nothing_means_that_the_precision_only_grows(method):
    """Of every method: the determinant of the precision after new data is larger than before."""
    model = network()
    options = {"initial_curvature": 0.5} if method == "ivon" else {}
    first = steps(vogn.METHODS[method].build(model, lr=0.05, ess=40.0, weight_decay=0.05, **options), model, 8)
    earlier = first.posterior()
    opt = vogn.METHODS[method].build(model, lr=0.05, ess=40.0, **options)
    use_as_prior(opt, earlier)
    opt.zero_grad()
    later = steps(opt, model, 8, seed=20).posterior()
    assert float(later.entropy()) < float(earlier.entropy())


@pytest.mark.parametrize("method", ["vogn", "kfac", "slang", "ekfac", "evon"])
def test_a_checkpoint_goes_on_bit_for_bit(method):
    model = network()
    build = vogn.METHODS[method].build
    earlier = steps(build(model, lr=0.05, ess=40.0, weight_decay=0.05), model, 4).posterior()
    start = {n: p.detach().clone() for n, p in model.state_dict().items()}
    opt = build(model, lr=0.05, ess=30.0)
    use_as_prior(opt, earlier)
    steps(opt, model, 3)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True), {n: p.detach().clone() for n, p in model.state_dict().items()}
    steps(opt, model, 3, seed=3)
    whole = [p.detach().clone() for p in model.parameters()]
    model.load_state_dict(start)
    again = build(model, lr=0.05, ess=30.0)
    use_as_prior(again, earlier)
    again.load_state_dict(saved)
    model.load_state_dict(weights)
    steps(again, model, 3, seed=3)
    for a, b in zip(whole, model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_with_and_without_a_prior_are_not_confused():
    """Loading one into an optimizer without that prior would drop the prior's gradient silently."""
    model = network()
    options = {"lr": 0.05, "ess": 40.0, "weight_decay": 0.05}
    plain = steps(vogn.VOGN(model, **options), model, 2)
    later = vogn.VOGN(model, **options)
    use_as_prior(later, plain.posterior())
    steps(later, model, 1)
    with pytest.raises(CheckpointError, match="with vogn.continual.use_as_prior before load_state_dict"):
        vogn.VOGN(model, **options).load_state_dict(later.state_dict())
    fresh = vogn.VOGN(model, **options)
    use_as_prior(fresh, plain.posterior())
    with pytest.raises(CheckpointError, match="as its prior, the checkpoint has not"):
        fresh.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("method", ["vogn", "kfac", "ekfac"])
def test_strength_is_a_factor_on_the_gradient_of_the_earlier_curvature(method):
    """One deterministic step without momentum: with twice the strength the gradient of ``E`` is twice as large."""
    model = network()
    options = {"lr": 0.1, "ess": 40.0, "weight_decay": 0.05, "momentum": 0.0, "variational": False}
    options |= {} if method == "vogn" else {"kl_clip": None}
    build = vogn.METHODS[method].build
    posterior = steps(build(model, **options), model, 3).posterior()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.add_(0.3 * normal(*p.shape, seed=k))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = []
    for strength in (0.0, 1.0, 2.0):
        model.load_state_dict(start)
        opt = build(model, **options)
        use_as_prior(opt, posterior, strength=strength)
        steps(opt, model, 1, seed=9)
        moved.append({name: p.detach() - start[name] for name, p in model.named_parameters()})
    for name in start:
        without, once, twice = (found[name] for found in moved)
        assert float((once - without).norm()) > 1e-4
        torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-8, atol=1e-10)


def test_what_is_refused():
    model = network()
    options = {"lr": 0.05, "ess": 40.0, "weight_decay": 0.05}
    opt = steps(vogn.VOGN(model, **options), model, 2)
    posterior = opt.posterior()
    with pytest.raises(ValueError, match="strength=-1.0 must be a finite number"):
        use_as_prior(vogn.VOGN(model, **options), posterior, strength=-1.0)
    with pytest.raises(RuntimeError, match="has stepped already"):
        use_as_prior(opt, posterior)
    with pytest.raises(ValueError, match="block '0.*' of the optimizer is Kronecker"):
        use_as_prior(vogn.KFAC(model, **options), posterior)
    with pytest.raises(UnsupportedObservationError, match="VAdam does not step by"):
        use_as_prior(vogn.VAdam(model, **options), posterior)
    with pytest.raises(ValueError, match="effective sample size"):
        use_as_prior(vogn.VOGN(model, lr=0.1), posterior)
    twice = vogn.VOGN(model, **options)
    use_as_prior(twice, posterior)
    with pytest.raises(RuntimeError, match="posterior as its prior already"):
        use_as_prior(twice, posterior)
    batch_alone = steps(vogn.NaturalGradient(model, Gram(), "ggn", **options), model, 2).posterior()
    with pytest.raises(UnsupportedObservationError, match="block '0.*Gram cannot start from the posterior"):
        use_as_prior(vogn.NaturalGradient(model, Gram(), "ggn", **options), batch_alone)

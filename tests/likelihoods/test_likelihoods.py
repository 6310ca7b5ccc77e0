"""Each likelihood against torch.distributions, autograd and plain loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliOracle
from torch.distributions import Categorical as CategoricalOracle
from torch.distributions import Normal

from vogn.announcement import start_listening, stop_listening
from vogn.likelihoods import REGISTRY, Bernoulli, Categorical, Gaussian, Likelihood, likelihood_from_dict

NOISE = 0.3


def make(kind: str) -> Likelihood:
    return {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": lambda: Gaussian(NOISE)}[kind]()


def oracle_log_prob(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if kind == "categorical":
        return CategoricalOracle(logits=outputs).log_prob(targets)
    if kind == "bernoulli":
        log_prob = BernoulliOracle(logits=outputs).log_prob(targets)
    else:
        log_prob = Normal(outputs, NOISE).log_prob(targets)
    return log_prob if outputs.ndim == 1 else log_prob.sum(-1)


CASES = [
    ("categorical", (5, 3)),
    ("categorical", (4, 2, 3)),
    ("bernoulli", (5,)),
    ("bernoulli", (5, 1)),
    ("bernoulli", (5, 3)),
    ("bernoulli", (4, 2, 3)),
    ("gaussian", (5,)),
    ("gaussian", (5, 1)),
    ("gaussian", (5, 3)),
    ("gaussian", (4, 2, 3)),
]


def batch(
    kind: str, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    outputs = torch.randn(shape, generator=source, dtype=torch.float64)
    if kind == "categorical":
        targets = torch.randint(shape[-1], shape[:-1], generator=source)
    elif kind == "bernoulli":
        targets = torch.randint(2, shape, generator=source).to(dtype)
    else:
        targets = torch.randn(shape, generator=source, dtype=torch.float64)
    return outputs.to(dtype), targets


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def case(request):
    kind, shape = request.param
    return kind, make(kind), *batch(kind, shape)


def test_registry_covers_the_cases():
    assert set(REGISTRY) == {kind for kind, _ in CASES}


def test_terms_are_negative_log_densities_with_constants(case):
    kind, likelihood, outputs, targets = case
    terms = likelihood.terms(outputs, targets)
    assert tuple(terms.shape) == likelihood.term_shape(outputs)
    torch.testing.assert_close(terms, -oracle_log_prob(kind, outputs, targets))


def test_loss_is_the_mean_of_the_terms(case):
    _, likelihood, outputs, targets = case
    torch.testing.assert_close(likelihood(outputs, targets), likelihood.terms(outputs, targets).mean())


def test_loss_is_weighted_masked_sum_over_count_by_a_loop(case):
    _, likelihood, outputs, targets = case
    shape = likelihood.term_shape(outputs)
    source = torch.Generator().manual_seed(1)
    weight = torch.rand(shape, generator=source, dtype=torch.float64)
    mask = torch.rand(shape, generator=source) < 0.6
    total, count = 0.0, 0
    for l, w, m in zip(  # noqa: E741
        likelihood.terms(outputs, targets).flatten(), weight.flatten(), mask.flatten(), strict=True
    ):
        if m:
            total += float(w * l)
            count += 1
    assert 0 < count < mask.numel()
    assert float(likelihood(outputs, targets, weight=weight, mask=mask)) == pytest.approx(total / count, rel=1e-12)


def test_scalar_weight_scales_the_loss(case):
    _, likelihood, outputs, targets = case
    torch.testing.assert_close(likelihood(outputs, targets, weight=2.5), 2.5 * likelihood(outputs, targets))
    torch.testing.assert_close(
        likelihood(outputs, targets, weight=torch.tensor(2.5)), 2.5 * likelihood(outputs, targets)
    )


def test_masked_terms_may_hold_anything_and_get_zero_gradient(case):
    kind, likelihood, outputs, targets = case
    mask = torch.ones(likelihood.term_shape(outputs), dtype=torch.bool)
    mask[1] = False
    expected = likelihood(outputs, targets, mask=mask)
    broken_outputs, broken_targets = outputs.clone(), targets.clone()
    broken_outputs[1] = float("nan")
    broken_targets[1] = -100 if kind == "categorical" else float("nan")
    weight = torch.ones(mask.shape)
    weight[1] = float("nan")
    broken_outputs.requires_grad_()
    loss = likelihood(broken_outputs, broken_targets, weight=weight, mask=mask)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert torch.equal(broken_outputs.grad[1], torch.zeros_like(outputs[1]))
    assert broken_outputs.grad[0].abs().sum() > 0


def test_score_is_the_gradient_of_the_terms(case):
    _, likelihood, outputs, targets = case
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(likelihood.terms(leaf, targets).sum(), leaf)
    torch.testing.assert_close(likelihood.score(outputs, targets), gradient)


def test_hessian_is_the_hessian_of_the_terms(case):
    kind, likelihood, outputs, targets = case
    hessian = likelihood.hessian(outputs)
    size = outputs.shape[-1] if outputs.ndim > 1 else 1
    assert hessian.shape == (*likelihood.term_shape(outputs), size, size)
    rows = outputs.reshape(-1, size)
    labels = targets.reshape(len(rows), *(() if kind == "categorical" else (size,)))
    for row, label, block in zip(rows, labels, hessian.reshape(-1, size, size), strict=True):
        exact = torch.autograd.functional.hessian(lambda f, y=label: likelihood.terms(f[None], y[None]).sum(), row)
        torch.testing.assert_close(block, exact)


def test_hessian_sqrt_columns_sum_to_the_hessian(case):
    _, likelihood, outputs, _ = case
    columns = likelihood.hessian_sqrt(outputs)
    size = outputs.shape[-1] if outputs.ndim > 1 else 1
    assert columns.shape == (size, *outputs.shape)
    vectors = columns.reshape(size, *likelihood.term_shape(outputs), size)
    torch.testing.assert_close(sum(c.unsqueeze(-1) * c.unsqueeze(-2) for c in vectors), likelihood.hessian(outputs))


def test_score_of_sampled_labels_has_the_hessian_as_covariance(case):
    """z-test: E[score(y) score(y)^T] = Hessian for y drawn from the model; also proves ``sample``."""
    kind, likelihood, outputs, _ = case
    draws = 4000
    source = torch.Generator().manual_seed(3)
    repeated = outputs.unsqueeze(0).expand(draws, *outputs.shape).reshape(-1, *outputs.shape[1:])
    labels = likelihood.sample(repeated, source)
    scores = likelihood.score(repeated, labels).reshape(draws, *outputs.shape)
    if outputs.ndim == 1:
        scores = scores.unsqueeze(-1)
    mean_error = scores.std(0) / math.sqrt(draws)
    assert (scores.mean(0).abs() < 5 * mean_error).all()
    products = scores.unsqueeze(-1) * scores.unsqueeze(-2)
    error = products.std(0) / math.sqrt(draws)
    assert ((products.mean(0) - likelihood.hessian(outputs)).abs() < 5 * error + 1e-12).all()


def test_sample_is_a_function_of_its_generator_and_a_legal_target(case):
    _, likelihood, outputs, _ = case
    before = torch.get_rng_state()
    first = likelihood.sample(outputs, torch.Generator().manual_seed(5))
    second = likelihood.sample(outputs, torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.isfinite(likelihood(outputs, first))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_computed_in_float32(case, dtype):
    _, likelihood, outputs, targets = case
    half = outputs.to(dtype)
    assert likelihood.hessian_sqrt(half).dtype == torch.float32
    assert likelihood.score(half, targets).dtype == torch.float32
    loss = likelihood(half, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, likelihood(half.float(), targets), rtol=0, atol=0)


def test_extreme_logits_stay_finite():
    outputs = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss = Bernoulli()(outputs, torch.tensor([0.0, 1.0, 1.0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((400 + math.log(2)) / 3)
    torch.testing.assert_close(3 * outputs.grad, torch.tensor([1.0, -1.0, -0.5]))
    assert torch.isfinite(Categorical().hessian_sqrt(torch.tensor([[200.0, -200.0]]))).all()
    assert float(Bernoulli().hessian(torch.tensor([30.0]))) == pytest.approx(math.exp(-30), rel=1e-5)


def test_call_announces_the_arguments_and_the_count(case):
    _, likelihood, outputs, targets = case
    heard = []
    mask = torch.ones(likelihood.term_shape(outputs), dtype=torch.bool)
    mask[0] = False
    start_listening(heard.append)
    try:
        likelihood(outputs, targets)
        likelihood(outputs, targets, weight=2, mask=mask)
    finally:
        stop_listening(heard.append)
    likelihood(outputs, targets)
    assert [call.count for call in heard] == [mask.numel(), int(mask.sum())]
    assert all(call.likelihood is likelihood for call in heard)
    assert all(call.outputs is outputs and call.targets is targets for call in heard)
    assert heard[0].weight == 1.0 and heard[0].mask is None
    assert heard[1].weight == 2.0 and heard[1].mask is mask


def test_dictionary_round_trip(case):
    _, likelihood, outputs, targets = case
    copy = likelihood_from_dict(likelihood.to_dict())
    assert type(copy) is type(likelihood)
    assert torch.equal(copy(outputs, targets), likelihood(outputs, targets))


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown likelihood 'poissom'; known likelihoods: bernoulli, categorical"):
        likelihood_from_dict({"kind": "poissom"})


def test_learnable_noise_has_the_gradient_of_the_log_density_and_the_optimum_of_the_residuals():
    likelihood = Gaussian("learn", initial=0.5)
    (log_noise,) = likelihood.parameters()
    outputs, targets = batch("gaussian", (50, 2))
    likelihood(outputs, targets).backward()
    residual = float((outputs - targets).square().sum(-1).mean())
    assert float(log_noise.grad) == pytest.approx(2 - residual / 0.25, rel=1e-5)
    with torch.no_grad():
        log_noise.fill_(0.5 * math.log(residual / 2))
    log_noise.grad = None
    likelihood(outputs, targets).backward()
    assert float(log_noise.grad) == pytest.approx(0.0, abs=1e-5)
    assert float(likelihood.noise.detach()) == pytest.approx(math.sqrt(residual / 2))
    assert not likelihood.score(outputs, targets).requires_grad
    assert not likelihood.hessian_sqrt(outputs).requires_grad


def test_learnable_noise_survives_the_dictionary_bit_by_bit():
    likelihood = Gaussian("learn", initial=0.1)
    with torch.no_grad():
        likelihood.log_noise.add_(0.123)
    copy = likelihood_from_dict(likelihood.to_dict())
    assert torch.equal(copy.log_noise, likelihood.log_noise)
    assert copy.log_noise.requires_grad
    assert "learnable" in repr(copy)


def test_fixed_noise_has_no_parameters():
    assert list(Gaussian(0.2).parameters()) == list(Categorical().parameters()) == []
    assert Gaussian(0.2).noise == 0.2


# ------------------------------------------------------------------------------------------------ predictions


def output_samples(shape: tuple[int, ...]) -> Tensor:
    return torch.randn((4, *shape), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_predictive_moments_by_a_loop_over_samples(kind, shape):
    samples = output_samples(shape)
    mean, variance, kept = make(kind).predictive(samples)
    scale = {"categorical": lambda f: f.softmax(-1), "bernoulli": torch.sigmoid, "gaussian": lambda f: f}[kind]
    values = [scale(f) for f in samples]
    average = sum(values) / 4
    spread = sum((value - average) ** 2 for value in values) / 4 + (NOISE**2 if kind == "gaussian" else 0)
    torch.testing.assert_close(mean, average)
    torch.testing.assert_close(variance, spread)
    torch.testing.assert_close(kept, torch.stack(values))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_point_is_predictive_with_one_sample(kind, shape):
    likelihood = make(kind)
    outputs, targets = batch(kind, shape)
    mean, variance, samples = likelihood.point(outputs)
    assert samples.shape == (1, *shape)
    torch.testing.assert_close(variance, torch.full_like(variance, NOISE**2 if kind == "gaussian" else 0.0))
    torch.testing.assert_close(likelihood.nll(mean, targets), likelihood.terms(outputs, targets))
    torch.testing.assert_close(likelihood.nll(mean, targets, samples=samples), likelihood.terms(outputs, targets))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_nll_of_samples_is_the_density_of_the_mixture(kind, shape):
    likelihood = make(kind)
    samples, (_, targets) = output_samples(shape), batch(kind, shape)
    mean, variance, kept = likelihood.predictive(samples)
    mixture = -(sum(oracle_log_prob(kind, f, targets).exp() for f in samples) / 4).log()
    torch.testing.assert_close(likelihood.nll(mean, targets, variance=variance, samples=kept), mixture)


def test_gaussian_nll_without_samples_uses_the_variance():
    outputs, targets = batch("gaussian", (5, 2))
    variance = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1
    expected = -Normal(outputs, variance.sqrt()).log_prob(targets).sum(-1)
    torch.testing.assert_close(Gaussian(NOISE).nll(outputs, targets, variance=variance), expected)


@pytest.mark.parametrize(("kind", "mean"), [("categorical", [[1.0, 0.0]]), ("bernoulli", [0.0])])
def test_nll_of_probability_zero_is_finite(kind, mean):
    target = torch.tensor([1]) if kind == "categorical" else torch.tensor([1.0])
    assert float(make(kind).nll(torch.tensor(mean), target)) == pytest.approx(87.3365, abs=1e-3)


# ------------------------------------------------------------------------------------------------ illegal inputs

LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
ILLEGAL = [
    (Categorical(), LOGITS, torch.tensor([0, 1, 2, 3]), "targets range from 0 to 3; 3 outputs allow 0 to 2"),
    (Categorical(), LOGITS, torch.tensor([0, 1, 2, -1]), "targets range from -1 to 2"),
    (Categorical(), LOGITS, torch.zeros(4), "targets have dtype torch.float32; class indices"),
    (Categorical(), LOGITS, torch.zeros(4, dtype=torch.bool), "targets have dtype torch.bool"),
    (Categorical(), LOGITS, torch.zeros(3, dtype=torch.long), r"targets have shape \(3,\); .* need \(4,\)"),
    (Categorical(), torch.zeros(4), LABELS, r"outputs have shape \(4,\); \(N, ..., C\)"),
    (Categorical(), torch.zeros(4, 1), LABELS, "outputs have 1 class"),
    (Categorical(), torch.zeros(4, 3, dtype=torch.long), LABELS, "outputs have dtype torch.int64"),
    (Categorical(), torch.zeros(0, 3), LABELS[:0], "the batch is empty"),
    (Bernoulli(), torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 0.0]), "targets range from 0 to 2; labels between 0"),
    (Bernoulli(), torch.zeros(4), torch.tensor([0.0, 1.0, float("nan"), 0.0]), "labels between 0 and 1"),
    (Bernoulli(), torch.zeros(4, 1), torch.zeros(4), r"targets have shape \(4,\) but outputs \(4, 1\)"),
    (Bernoulli(), torch.zeros(0), torch.zeros(0), "the batch is empty"),
    (Gaussian(), torch.zeros(4), torch.tensor([0.0, float("nan"), 0.0, math.inf]), "2 of 4 targets are NaN"),
    (Gaussian(), torch.zeros(4, 1), torch.zeros(4), r"they must be equal \(use squeeze"),
    (Gaussian(), torch.zeros(4), torch.zeros(4, dtype=torch.complex64), "targets have dtype torch.complex64"),
    (Gaussian(), torch.zeros(()), torch.zeros(()), r"outputs have shape \(\); \(N,\) or"),
]


@pytest.mark.parametrize(("likelihood", "outputs", "targets", "message"), ILLEGAL)
def test_illegal_input_raises_one_clear_line(likelihood, outputs, targets, message):
    with pytest.raises(ValueError, match=message) as info:
        likelihood(outputs, targets)
    assert "\n" not in str(info.value)


def test_illegal_weight_and_mask_raise():
    likelihood = Categorical()
    with pytest.raises(ValueError, match=r"weight has shape \(4, 1\); one value per loss term is needed: \(4,\)"):
        likelihood(LOGITS, LABELS, weight=torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        likelihood(LOGITS, LABELS, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has dtype torch.float32"):
        likelihood(LOGITS, LABELS, mask=torch.ones(4))
    with pytest.raises(ValueError, match="mask excludes every loss term"):
        likelihood(LOGITS, LABELS, mask=torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan, "learnt"])
def test_illegal_noise_raises(noise):
    with pytest.raises(ValueError, match="noise="):
        Gaussian(noise)


def test_illegal_initial_noise_raises():
    with pytest.raises(ValueError, match="initial=0"):
        Gaussian("learn", initial=0.0)


def test_a_learnable_noise_follows_the_residuals():
    """All at once it is the most likely one; in shares it is an average of squares; a fixed one stays."""
    f, y = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.5], [1.0], [4.0]])
    square = (0.25 + 1.0 + 0.0) / 3
    learned = Gaussian("learn", initial=2.0)
    learned.follow(f, y, 0.25)
    assert float(learned.noise.detach()) ** 2 == pytest.approx(0.75 * 4.0 + 0.25 * square, rel=1e-6)
    learned.follow(f, y)
    assert float(learned.noise.detach()) ** 2 == pytest.approx(square, rel=1e-6) and learned.log_noise.requires_grad
    losses = []
    for factor in (0.9, 1.0, 1.1):
        losses.append(float(Gaussian(factor * square**0.5).terms(f, y).mean()))
    assert min(losses) == losses[1] == pytest.approx(float(learned.terms(f, y).mean().detach()), rel=1e-6)
    learned.follow(f, f)  # no residual: a noise of zero would be useless
    assert float(learned.noise.detach()) ** 2 == pytest.approx(square, rel=1e-6)
    fixed = Gaussian(0.3)
    fixed.follow(f, y)
    assert fixed.noise == 0.3


def test_a_noise_follows_residuals_down_to_its_floor():
    likelihood = Gaussian("learn", initial=2.0, floor=0.5)
    for residual, expected in ((1.0, 1.0), (0.1, 0.5), (3.0, 3.0), (0.0, 3.0)):  # none at all says nothing
        likelihood.follow(torch.zeros(4, 2), torch.full((4, 2), residual))
        assert float(likelihood.noise) == pytest.approx(expected)
    again = Gaussian.from_dict(likelihood.to_dict())
    again.follow(torch.zeros(4, 2), torch.full((4, 2), 0.1))
    assert float(again.noise) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="floor=3 must be between 0 and initial=2"):
        Gaussian("learn", initial=2.0, floor=3.0)

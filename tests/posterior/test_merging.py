"""Merged posteriors are the posterior of all data, exactly, where log-likelihoods are quadratic."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg.conjugate_gradient import conjugate_gradient
from vogn.linalg.layout import MatrixLayout
from vogn.linalg.nearest_kronecker import nearest_kronecker
from vogn.posterior import GaussianPosterior, PosteriorBlock, Prior, merge, task_arithmetic, unlearn
from vogn.structures import Dense, Diagonal, Kronecker

NOISE, DELTA = 0.7, 1.3


def spd(size, seed):
    root = normal(size, size, seed=seed)
    return root @ root.mT + 0.1 * torch.eye(size).double()


def regression(x, y, delta=DELTA):
    """The exact posterior of a linear model under the prior N(0, I / delta)."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    precision = x.T @ x / NOISE**2 + delta * torch.eye(x.shape[1]).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / NOISE**2).T)
    return vogn.laplace(model, Gaussian(noise=NOISE), [(x, y)], structure="dense", prior_precision=delta)


@pytest.fixture
def parts():
    x = normal(24, 3, seed=1)
    y = x @ normal(3, 1, seed=2) + NOISE * normal(24, 1, seed=3)
    return [(x[:5], y[:5]), (x[5:15], y[5:15]), (x[15:], y[15:])]


def of(parts):
    return regression(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def assert_same(found, wanted):
    torch.testing.assert_close(found.mean(), wanted.mean(), rtol=1e-10, atol=1e-10)
    ours, theirs = (q.precision_matrices().values() for q in (found, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_parts_of_the_data_merge_to_the_posterior_of_all_data(parts):
    merged, wanted = merge([of([part]) for part in parts]), of(parts)
    assert_same(merged, wanted)
    assert merged.blocks[0].ess == 24 and merged.likelihood == wanted.likelihood


def test_unlearning_is_the_posterior_of_the_remaining_data(parts):
    assert_same(unlearn(of(parts), of(parts[1:2])), of([parts[0], parts[2]]))


def test_a_posterior_may_be_the_base(parts):
    """Tasks that began from the posterior of the first part."""
    base = of(parts[:1])
    merged = merge([of(parts[:2]), of([parts[0], parts[2]])], base)
    assert_same(merged, of(parts))
    assert merged.blocks[0].ess == 24


def test_curvature_of_own_data_is_added_to_that_of_the_base(parts):
    """What ``vogn.laplace`` measures on a task's own data, at weights that were trained from a base."""
    base, wanted = of(parts[:1]), of(parts)
    own = []
    for part in parts[1:]:
        together = of([parts[0], part])
        model = nn.Linear(3, 1, bias=False).double()
        model.load_state_dict(together.mean())
        own.append(vogn.laplace(model, Gaussian(noise=NOISE), [part], structure="dense", prior_precision=7.0))
    merged = merge(own, base, includes_base=False)
    assert_same(merged, wanted)
    assert merged.blocks[0].ess == 24
    assert_same(merge([own[0], of([parts[0], parts[2]])], base, includes_base=[False, True]), wanted)
    assert_same(unlearn(wanted, own[1], base, includes_base=False), of(parts[:2]))


def test_the_base_of_another_prior_is_divided_out(parts):
    base = Prior(mean=0.0, precision=DELTA)
    assert_same(merge([of(parts[:1]), of(parts[1:])], base), of(parts))
    wrong = merge([of(parts[:1]), of(parts[1:])], Prior(precision=0.5)).precision_matrices()
    extra = next(iter(wrong.values())) - next(iter(of(parts).precision_matrices().values()))
    torch.testing.assert_close(extra, (DELTA - 0.5) * torch.eye(3).double())


def gaussian(structure, state, mean, ess=20.0, delta=1.0):
    layout = MatrixLayout(("w",), (tuple(mean.shape),), tuple(mean.shape))
    return GaussianPosterior([PosteriorBlock("w", layout, structure, state, delta / ess, ess)], {"w": mean})


def kronecker(s, a, mean, **options):
    structure = Kronecker()
    return gaussian(structure, structure.refresh({"S": s, "A": a}), mean, **options)


def diagonal(seed, shape=(2, 3)):
    return gaussian(Diagonal(), {"c": normal(*shape, seed=seed).square()}, normal(*shape, seed=seed + 50))


def product_mean(posteriors, weights, delta, centre):
    """``Lambda m`` and ``Lambda`` with dense matrices, term by term."""
    eye = torch.eye(centre.numel()).double()
    precision, right = delta * eye, delta * centre.flatten()
    for posterior, weight in zip(posteriors, weights, strict=True):
        (matrix,) = posterior.precision_matrices().values()
        precision = precision + weight * (matrix - delta * eye)
        mean = posterior.mean()["w"].flatten()
        right = right + weight * (matrix @ mean - delta * centre.flatten())
    return torch.linalg.solve(precision, right), precision


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, 1.3, 0.2], [1.0, 1.0, -0.02]])
def test_diagonals_equal_the_dense_sum(weights):
    posteriors = [diagonal(seed) for seed in (1, 2, 3)]
    centre = normal(2, 3, seed=9)
    merged = merge(posteriors, Prior(mean={"w": centre}, precision=1.0), weights=weights)
    mean, precision = product_mean(posteriors, weights, 1.0, centre)
    torch.testing.assert_close(merged.mean()["w"].flatten(), mean)
    torch.testing.assert_close(merged.precision_matrices()["w"], precision)


def three_kroneckers():
    return [kronecker(spd(3, k), spd(4, k + 10), normal(3, 4, seed=k + 20), ess=5.0 + k) for k in range(3)]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, 1.3, 0.2]])
def test_the_mean_of_merged_kronecker_factors_is_that_of_the_dense_sum(weights):
    posteriors = three_kroneckers()
    mean, _ = product_mean(posteriors, weights, 1.0, torch.zeros(3, 4).double())
    torch.testing.assert_close(merge(posteriors, weights=weights).mean()["w"].flatten(), mean, rtol=1e-9, atol=1e-10)


def test_kronecker_factors_that_share_a_side_merge_exactly():
    s = spd(3, 1)
    posteriors = [kronecker((k + 1) * s, spd(4, k + 10), normal(3, 4, seed=k)) for k in range(3)]
    merged = merge(posteriors)
    mean, precision = product_mean(posteriors, [1.0] * 3, 1.0, torch.zeros(3, 4).double())
    torch.testing.assert_close(merged.precision_matrices()["w"], precision, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged.mean()["w"].flatten(), mean, rtol=1e-9, atol=1e-10)
    back = unlearn(merge(posteriors), posteriors[2])
    torch.testing.assert_close(back.precision_matrices(), merge(posteriors[:2]).precision_matrices())
    torch.testing.assert_close(back.mean(), merge(posteriors[:2]).mean())


def test_factored_damping_is_read_as_the_sum_it_stands_for():
    exact = three_kroneckers()
    factored = [
        GaussianPosterior([replace(q.blocks[0], structure=Kronecker(damping="factored"))], q.mean()) for q in exact
    ]
    assert_same(merge(factored), merge(exact))


def test_the_nearest_product_is_the_best_of_the_rearranged_matrix():
    """Van Loan and Pitsianis by hand: entries of the blocks as rows, and a singular value decomposition of them."""
    weights = torch.tensor([0.5, 1.5, 1.0]).double()
    left, right = torch.stack([spd(3, k) for k in range(3)]), torch.stack([spd(4, k + 5) for k in range(3)])
    total = sum(w * torch.kron(s, a) for w, s, a in zip(weights, left, right, strict=True))
    rows = total.reshape(3, 4, 3, 4).permute(0, 2, 1, 3).reshape(9, 16)
    u, values, vh = torch.linalg.svd(rows)
    wanted = torch.kron((values[0] * u[:, 0]).reshape(3, 3), vh[0].reshape(4, 4))
    s, a = nearest_kronecker(weights, left, right)
    torch.testing.assert_close(torch.kron(s, a), wanted, rtol=1e-10, atol=1e-10)
    assert bool((torch.linalg.eigvalsh(s) > 0).all()) and bool((torch.linalg.eigvalsh(a) > 0).all())


def test_sub_blocks_and_diagonal_sides_have_products_of_their_own():
    weights = torch.tensor([1.0, 2.0]).double()
    left = torch.stack([torch.stack([spd(3, k), spd(3, k + 7)]) for k in range(2)])
    right = normal(2, 2, 1, 5, seed=4).square()
    s, a = nearest_kronecker(weights, left, right)
    for lead in range(2):
        alone = nearest_kronecker(weights, left[:, lead], torch.diag_embed(right[:, lead, 0]))
        torch.testing.assert_close(s[lead], alone[0])
        torch.testing.assert_close(a[lead, 0], alone[1].diagonal())


def test_conjugate_gradients_solve_and_notice_a_negative_direction():
    matrix, right = spd(6, 1), normal(6, seed=2)
    found = conjugate_gradient(lambda v: matrix @ v, right, preconditioner=lambda v: v / matrix.diagonal())
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), rtol=1e-9, atol=1e-10)
    with pytest.raises(NotPositiveDefiniteError, match="no solution"):
        conjugate_gradient(lambda v: -v, right, preconditioner=lambda v: v)


def test_task_arithmetic_is_merging_with_one_metric():
    """Where every posterior has the precision of the base, weights of any size give the task vectors' sum."""
    base = normal(2, 3, seed=1)
    tuned = [normal(2, 3, seed=k) for k in (2, 3)]
    scale = [0.4, 0.9]
    flat = {"c": torch.zeros(2, 3).double()}
    merged = merge([gaussian(Diagonal(), flat, mean) for mean in tuned], Prior({"w": base}, 1.0), weights=scale)
    found = task_arithmetic([{"w": mean} for mean in tuned], {"w": base}, scale)
    torch.testing.assert_close(merged.mean()["w"], found["w"])
    torch.testing.assert_close(found["w"], base + 0.4 * (tuned[0] - base) + 0.9 * (tuned[1] - base))
    average = task_arithmetic([{"w": mean} for mean in tuned], {"w": base}, 0.5)
    torch.testing.assert_close(average["w"], (tuned[0] + tuned[1]) / 2)


def test_point_masses_are_averaged_and_the_network_is_ready_to_predict(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    posteriors = []
    for seed in range(2):
        fill(model, seed)
        opt = vogn.VOGN(model, lr=0.1, ess=20, weight_decay=0.05)
        x, y = batch(20, seed)
        for _ in range(3):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
        posteriors.append(opt.posterior())
    merged = merge(posteriors, weights=[3.0, 1.0])
    wanted = 0.75 * posteriors[0].mean()["1.weight"] + 0.25 * posteriors[1].mean()["1.weight"]
    torch.testing.assert_close(merged.mean()["1.weight"], wanted)
    merged.save(tmp_path / "merged.safetensors")
    loaded = vogn.load_posterior(tmp_path / "merged.safetensors")
    assert vogn.predict(model, loaded, batch(5, 3)[0]).mean.shape == (5, 3)


def test_wrong_input_is_named(parts):
    first, second = of(parts[:1]), of(parts[1:])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])
    with pytest.raises(ValueError, match="1 weights for 2 posteriors"):
        merge([first, second], weights=[1.0])
    with pytest.raises(ValueError, match="1 answers for 2 posteriors"):
        merge([first, second], includes_base=[True])
    with pytest.raises(ValueError, match="must be finite"):
        merge([first, second], weights=[1.0, math.nan])
    with pytest.raises(ValueError, match="at least one must be positive"):
        merge([first], weights=[-1.0])
    with pytest.raises(ValueError, match="different priors"):
        merge([first, vogn.with_prior_precision(second, 7.0)])
    with pytest.raises(ValueError, match="other blocks or structures"):
        merge([diagonal(1), kronecker(spd(2, 1), spd(3, 2), normal(2, 3))])
    with pytest.raises(ValueError, match="nothing remains"):
        unlearn(first, second)
    with pytest.raises(NotPositiveDefiniteError, match="block 'w'.*more is taken away"):
        merge([diagonal(1), diagonal(2)], weights=[1.0, -0.99])
    low_rank = vogn.laplace(
        nn.Linear(3, 1).double(), Gaussian(noise=1.0), [parts[0]], structure="diagonal_low_rank"
    )
    with pytest.raises(UnsupportedObservationError, match="cannot be merged"):
        merge([low_rank, low_rank])


def test_taking_more_away_than_there_is_raises(parts):
    dense = [gaussian(Dense(), {"C": scale * torch.eye(6).double().reshape(2, 3, 2, 3)}, normal(2, 3), ess=ess)
             for scale, ess in ((1.0, 20.0), (5.0, 10.0))]  # fmt: skip
    with pytest.raises(NotPositiveDefiniteError, match="taken away"):
        unlearn(*dense)


def test_single_precision_reaches_its_own_tolerance():
    """Factors of condition 1e4 in float32, against the same merge in float64."""
    doubles = [
        kronecker(spd(6, k) * 100.0 + 0.01 * torch.eye(6), spd(8, k + 10) * 100.0, normal(6, 8, seed=k), ess=1e3)
        for k in range(3)
    ]
    found = merge([posterior.to(dtype=torch.float32) for posterior in doubles]).mean()["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), merge(doubles).mean()["w"], rtol=2e-3, atol=2e-3)

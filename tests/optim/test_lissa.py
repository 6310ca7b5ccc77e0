"""The power series against dense inverses."""

import math

import pytest
import torch
from torch import nn

import vogn
from vogn.errors import NotPositiveDefiniteError
from vogn.likelihoods import Gaussian
from vogn.optim.steps import BlockView, Neumann, StepContext
from vogn.structures import Gram

SHIFT = 0.2


def block(rows=6, size=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    structure = Gram()
    state = structure.init((size, 1), initial=0.0, dtype=torch.float64, device="cpu")
    leaf = {"J": torch.randn(rows, size, generator=source, dtype=torch.float64)}
    state = structure.update(state, leaf, decay=0.0, weight=1.0 / rows, shift=0.0)
    v = torch.randn(size, 1, generator=source, dtype=torch.float64)
    view = BlockView("b", structure, state, {}, {"weight_decay": 0.0, "damping": SHIFT, "lr": 1.0}, v, v)
    return view, v, structure.to_dense(state, SHIFT)


@pytest.mark.parametrize("depth", [0, 1, 5, 40])
def test_the_series_is_the_truncated_one_and_within_its_bound(depth):
    view, v, dense = block()
    (found,) = Neumann(depth)([v], StepContext([view], 0))
    spectrum = torch.linalg.eigvalsh(dense)
    scaled = torch.eye(4, dtype=torch.float64) - dense / spectrum[-1]
    series = sum(torch.linalg.matrix_power(scaled, j) for j in range(depth + 1)) / spectrum[-1]
    torch.testing.assert_close(found, series @ v, rtol=1e-10, atol=1e-12)
    inverse = torch.linalg.solve(dense, v)
    bound = (1 - float(spectrum[0] / spectrum[-1])) ** (depth + 1)
    assert float((found - inverse).norm() / inverse.norm()) <= bound * (1 + 1e-9)


def test_parts_of_the_rows_leave_the_truncated_series_unbiased():
    """A z-test over the chains of many steps: each term sees two of six rows."""
    view, v, dense = block()
    scale, depth, chains = 4.0 * float(torch.linalg.eigvalsh(dense)[-1]), 3, 4000
    step = Neumann(depth, 1, scale, rows=2)
    draws = torch.stack([step([v], StepContext([view], k))[0] for k in range(chains)])
    whole = Neumann(depth, 1, scale)([v], StepContext([view], 0))[0]
    error = (draws.mean(0) - whole) / (draws.std(0) / math.sqrt(chains))
    assert float(error.abs().max()) < 4.0
    assert float(draws.std(0).min()) > 1e-3 * float(whole.abs().max())  # the parts do differ
    (averaged,) = Neumann(depth, 50, scale, rows=2)([v], StepContext([view], 0))
    assert float((averaged - whole).norm()) < float((draws[:50] - whole).flatten(1).norm(dim=1).mean())


def test_a_scale_below_half_the_largest_eigenvalue_is_refused_by_name():
    view, v, dense = block()
    largest = float(torch.linalg.eigvalsh(dense)[-1])
    with pytest.raises(NotPositiveDefiniteError, match="block 'b': the Neumann series diverges.*raise scale"):
        Neumann(60, scale=0.4 * largest)([v], StepContext([view], 0))


def test_without_any_curvature_there_is_no_scale():
    view, v, _ = block()
    view.state = view.structure.init((4, 1), initial=0.0, dtype=torch.float64, device="cpu")
    view.group["damping"] = 0.0
    with pytest.raises(NotPositiveDefiniteError, match="the curvature is 0"):
        Neumann()([v], StepContext([view], 0))


def test_a_long_series_takes_the_step_of_an_exact_inverse():
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=source).double(), torch.randn(12, 1, generator=source).double()
    results = []
    for method, options in ((vogn.LiSSA, {"depth": 400, "fisher": "ggn"}), (vogn.SMW, {"fisher": "ggn"})):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        opt = method(model, 0.5, ess=12.0, damping=0.1, variational=False, **options)
        for _ in range(3):
            opt.zero_grad()
            with opt.sampled_params():
                Gaussian(noise=1.0)(model(x), y).backward()
            opt.step()
        results.append(model.weight.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_the_parts_are_a_function_of_seed_step_and_chain():
    view, v, _ = block()
    places = ((0, 0), (0, 0), (1, 0), (0, 1))
    draws = [Neumann(3, 1, 50.0, rows=2, seed=seed)([v], StepContext([view], k))[0] for seed, k in places]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])

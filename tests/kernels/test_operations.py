"""The reference of every public kernel against dense float64 matrices and plain loops, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from vogn import kernels
from vogn.kernels import philox, reference

STEP = {"lr": 0.1, "decay": 0.9, "weight": 0.1, "momentum_rate": 0.3, "weight_decay": 0.01}


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_operands(*shape):
    mean, curvature, momentum, gradient, evidence = (normal(*shape, seed=seed) for seed in range(5))
    return mean, curvature.square() + 0.1, momentum, gradient, evidence


@pytest.mark.parametrize("retract", [False, True])
@pytest.mark.parametrize("clip_radius", [math.inf, 0.5])
def test_diagonal_step_equals_a_loop_over_elements(retract, clip_radius):
    operands = step_operands(11)
    operands[4].abs_() if not retract else None
    options = STEP | {"damping": 0.02, "ess": 50.0, "clip_radius": clip_radius, "seed": 3, "offset": 7}
    result = kernels.diagonal_step(*operands, retract=retract, **options)
    noise = philox.normal(11, seed=3, offset=7).tolist()
    clipped = 0
    for k, (m, c, u, g, h) in enumerate(zip(*(x.tolist() for x in operands), strict=True)):
        if retract:
            delta = 0.1 * h - 0.1 * c
            c = c + delta + delta**2 / (2 * (c + 0.01))
        else:
            c = 0.9 * c + 0.1 * h
        u = 0.7 * u + 0.3 * g
        direction = (u + 0.01 * m) / (c + 0.01 + 0.02)
        clipped += abs(direction) > clip_radius
        m = m - 0.1 * min(max(direction, -clip_radius), clip_radius)
        theta = m + noise[k] / math.sqrt(50.0 * (c + 0.01))
        found = [float(x[k]) for x in (result.curvature, result.momentum, result.mean, result.sample)]
        assert found == pytest.approx([c, u, m, theta], rel=1e-12)
    assert result.clipped is None if clip_radius == math.inf else int(result.clipped) == clipped > 0


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("prior_in_momentum", [False, True])
def test_diagonal_step_as_in_adam_equals_a_loop_over_elements(prior_in_momentum, root):
    *operands, evidence = step_operands(11)
    operands.append(30.0 * evidence)  # curvatures of both signs: under the root a negative one counts as zero
    options = STEP | {"damping": 0.02, "ess": 50.0, "prior_in_momentum": prior_in_momentum, "root": root}
    result = kernels.diagonal_step(*operands, correction=1.7, **options)
    for k, (m, c, u, g, h) in enumerate(zip(*(x.tolist() for x in operands), strict=True)):
        c = 0.9 * c + 0.1 * h
        u = 0.7 * u + 0.3 * (g + 0.01 * m if prior_in_momentum else g)
        above = u if prior_in_momentum else u + 0.01 * m
        m = m - 0.1 * above / ((math.sqrt(max(0.0, 1.7 * c)) if root else 1.7 * c) + 0.01 + 0.02)
        assert [float(x[k]) for x in result[:3]] == pytest.approx([c, u, m], rel=1e-12)
    assert float(result.curvature.min()) < -0.01


def test_retraction_equals_the_law_of_the_structures():
    from vogn.structures.evidence import absorb

    _, c, _, _, h = operands = step_operands(40)
    expected = absorb(c, 30 * h, decay=0.9, weight=0.1, shift=0.01, negative="retract")
    found = kernels.diagonal_step(*operands[:4], 30 * h, retract=True, **STEP).curvature
    torch.testing.assert_close(found, expected)


def test_momentum_rate_debiases_an_average():
    """With rate (1 - b) / (1 - b^t) the average of t gradients is sum_s b^(t-s) g_s / sum_s b^(t-s)."""
    mean, c, momentum = torch.zeros(3).double(), torch.ones(3).double(), torch.zeros(3).double()
    gradients = normal(4, 3, seed=0)
    for t, g in enumerate(gradients, start=1):
        rate = (1 - 0.9) / (1 - 0.9**t)
        momentum = kernels.diagonal_step(mean, c, momentum, g, c, **STEP | {"momentum_rate": rate}).momentum
    weights = 0.9 ** torch.arange(3, -1, -1).double()
    torch.testing.assert_close(momentum, weights @ gradients / weights.sum())


def test_retraction_stays_above_the_shift():
    """Evidence of the worst size halves c + weight_decay in every step; rounding never takes it to zero."""
    c, zero = torch.full((5,), 1e-3), torch.zeros(5)
    for _ in range(50):
        worst = (0.1 * c - (c + 0.01)) / 0.1  # delta = -(c + weight_decay)
        result = kernels.diagonal_step(zero, c, zero, zero, worst, retract=True, ess=1.0, **STEP)
        c = result.curvature
        assert (c > -0.01).all() and result.sample.isfinite().all()
    assert (c < -0.00999).all()


def test_without_ess_there_is_no_sample():
    assert kernels.diagonal_step(*step_operands(3), **STEP).sample is None


def test_noise_shrinks_with_the_root_of_ess():
    operands = step_operands(50)
    wide, narrow = (kernels.diagonal_step(*operands[:4], operands[1], ess=ess, **STEP) for ess in (1.0, 1e4))
    torch.testing.assert_close(wide.sample - wide.mean, 100.0 * (narrow.sample - narrow.mean), rtol=1e-9, atol=1e-9)


def test_tensors_keep_their_dtypes():
    mean, curvature, momentum, gradient, evidence = (x.float() for x in step_operands(4, 3))
    result = kernels.diagonal_step(
        mean.bfloat16(), curvature, momentum, gradient.bfloat16(), evidence.half(), ess=1.0, **STEP
    )
    assert [x.dtype for x in result[:4]] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


def test_squared_gradients_equal_those_of_every_example():
    layer, x = nn.Linear(4, 3, bias=False).double(), normal(6, 4, seed=0)
    a, total = x, torch.zeros(3, 4).double()
    outputs = layer(x)
    (g,) = torch.autograd.grad(outputs.sin().sum(), outputs, retain_graph=True)
    for n in range(6):
        (gradient,) = torch.autograd.grad(outputs[n].sin().sum(), layer.weight, retain_graph=True)
        total += gradient.square()
    torch.testing.assert_close(kernels.squared_gradients(g, a), total)


def test_squares_of_half_precision_do_not_overflow():
    g, a = torch.full((3, 2), 300.0, dtype=torch.float16), torch.full((3, 4), 300.0, dtype=torch.float16)
    assert torch.equal(kernels.squared_gradients(g, a), torch.full((2, 4), 3 * 300.0**4))


@pytest.mark.parametrize("ones", [False, True])
def test_symmetric_update_equals_the_dense_sum(ones):
    root, a = normal(2, 5, 5, seed=0), normal(2, 7, 5 - ones, seed=1)
    c = root @ root.mT
    found = kernels.symmetric_update(c, a, decay=0.95, weight=0.3, ones=ones)
    full = torch.cat([a, torch.ones(2, 7, 1).double()], -1) if ones else a
    torch.testing.assert_close(found, 0.95 * c + 0.3 * torch.einsum("bni,bnj->bij", full, full))
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_symmetric_update_of_nothing_is_that_of_zero(dtype):
    a = normal(2, 7, 4, seed=1).to(dtype)
    found = kernels.symmetric_update(None, a, decay=math.nan, weight=0.3, ones=True)
    assert found.dtype == dtype
    assert torch.equal(found, kernels.symmetric_update(a.new_zeros(2, 5, 5), a, decay=0.5, weight=0.3, ones=True))


def test_symmetric_update_reads_the_lower_half_only():
    c, a = normal(4, 4, seed=0), normal(3, 4, seed=1)
    poisoned = torch.where(torch.ones(4, 4, dtype=torch.bool).triu(1), math.nan, c)
    options = {"decay": 0.5, "weight": 1.0}
    assert torch.equal(kernels.symmetric_update(poisoned, a, **options), kernels.symmetric_update(c, a, **options))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_woodbury_solve_inverts_the_dense_matrix(batch):
    d, u, v = normal(*batch, 9, seed=0).square() + 0.1, normal(*batch, 9, 3, seed=1), normal(*batch, 4, 9, seed=2)
    dense = torch.diag_embed(d) + u @ u.mT
    found = kernels.woodbury_solve(d, u, v)
    torch.testing.assert_close(found @ dense, v)


def test_woodbury_solve_in_double_precision_survives_cancellation():
    """|U|^2 / d is 1e6 and v lies in the span of U: single precision loses six digits, wide none."""
    u = normal(50, 2, seed=0).float()
    d, v = torch.full((50,), 1e-4), (u @ torch.tensor([[1.0], [2.0]])).T.contiguous()
    exact = torch.linalg.solve(d.double().diag() + u.double() @ u.double().T, v.double().T).T

    def error(wide):
        return float((kernels.woodbury_solve(d, u, v, wide=wide) - exact).norm() / exact.norm())

    assert error(True) < 1e-6 < 1e-4 < error(False)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_eigenbasis_solve_inverts_the_dense_matrix(batch):
    """(Q_S (x) Q_A) diag(eigenvalues + shift) (Q_S (x) Q_A)^T times the solution is G."""
    g, values = normal(*batch, 3, 4, seed=0), normal(*batch, 3, 4, seed=1).square()
    q_s = torch.linalg.qr(normal(*batch, 3, 3, seed=2)).Q
    q_a = torch.linalg.qr(normal(*batch, 4, 4, seed=3)).Q
    found = kernels.eigenbasis_solve(g, q_s, q_a, values, shift=0.3)
    for b in [(k,) for k in range(2)] if batch else [()]:
        q = torch.kron(q_s[b].contiguous(), q_a[b].contiguous())
        dense = q @ (values[b] + 0.3).flatten().diag() @ q.T
        torch.testing.assert_close(dense @ found[b].flatten(), g[b].flatten())


@pytest.mark.parametrize("root", [2, 4])
def test_inverse_root_inverts_the_matrix(root):
    """X^root A = I, for conditions from 1 to 1e6 in one batch."""
    q = torch.linalg.qr(normal(3, 6, 6, seed=0)).Q
    values = torch.stack([torch.ones(6), torch.logspace(0, 3, 6), torch.logspace(-6, 0, 6)]).double()
    a = (q * values.unsqueeze(1)) @ q.mT
    found, error = kernels.inverse_root(a, root)
    torch.testing.assert_close(found, (q * values.pow(-1.0 / root).unsqueeze(1)) @ q.mT, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.linalg.matrix_power(found, root) @ a, torch.eye(6).double().expand(3, 6, 6),
                               rtol=0.0, atol=1e-6)  # fmt: skip
    assert (error < 1e-9).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_inverse_root_of_extreme_scales(scale):
    """The sum of the squares of these elements is no number of single precision."""
    a = torch.diag(torch.tensor([1.0, 4.0])) * scale
    found, error = kernels.inverse_root(a, 2)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 0.5])) / math.sqrt(scale), rtol=1e-5, atol=0.0)
    assert float(error) < 1e-5


@pytest.mark.parametrize("a", [[[1.0, 2.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[math.nan, 0.0], [0.0, 1.0]]])
def test_the_error_tells_of_matrices_without_a_root(a):
    _, error = kernels.inverse_root(torch.tensor(a), 2)
    assert not float(error) < 0.1


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": (2, 1), "padding": (2, 0), "dilation": (1, 3)}],
    ids=["plain", "padded", "every option"],
)
def test_patch_factor_equals_a_loop_over_positions(ones, options):
    x, total = normal(2, 3, 7, 9, seed=0), 0.0
    pairs = {name: (v, v) if isinstance(v, int) else v for name, v in options.items()}
    (sy, sx), (dy, dx) = pairs.get("stride", (1, 1)), pairs.get("dilation", (1, 1))
    py, px = pairs.get("padding", (0, 0))
    padded = torch.zeros(2, 3, 7 + 2 * py, 9 + 2 * px).double()
    padded[:, :, py : py + 7, px : px + 9] = x
    for image in padded:
        for y in range(0, image.shape[1] - dy, sy):
            for z in range(0, image.shape[2] - 2 * dx, sx):
                patch = image[:, y : y + dy + 1 : dy, z : z + 2 * dx + 1 : dx].flatten()
                patch = torch.cat([patch, torch.ones(1).double()]) if ones else patch
                total = total + torch.outer(patch, patch)
    torch.testing.assert_close(kernels.patch_factor(x, (2, 3), ones=ones, **options), total)


def test_patch_factor_in_pieces_equals_the_one_in_one_piece(monkeypatch):
    x = normal(5, 2, 4, 4, seed=0)
    whole = kernels.patch_factor(x, 3, ones=True)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 200)  # two of five images
    torch.testing.assert_close(kernels.patch_factor(x, 3, ones=True), whole)


def test_results_carry_no_gradient():
    g, a = normal(3, 2, seed=0).requires_grad_(), normal(3, 4, seed=1)
    assert not kernels.squared_gradients(g, a).requires_grad


def test_empty_operands():
    empty = torch.zeros(0, 3)
    assert kernels.diagonal_step(*[empty] * 5, ess=1.0, **STEP).sample.shape == (0, 3)
    assert torch.equal(kernels.squared_gradients(torch.zeros(0, 2), empty), torch.zeros(2, 3))
    assert torch.equal(kernels.symmetric_update(torch.eye(3), empty, decay=0.5, weight=1.0), 0.5 * torch.eye(3))
    assert kernels.woodbury_solve(torch.ones(0), torch.zeros(0, 2), torch.zeros(4, 0)).shape == (4, 0)
    assert torch.equal(kernels.woodbury_solve(torch.ones(2), torch.zeros(2, 0), torch.ones(1, 2)), torch.ones(1, 2))
    assert kernels.eigenbasis_solve(empty, torch.zeros(0, 0), torch.eye(3), empty, shift=1.0).shape == (0, 3)
    assert [x.shape for x in kernels.inverse_root(torch.zeros(2, 0, 0), 2)] == [(2, 0, 0), (2,)]
    assert torch.equal(kernels.patch_factor(torch.zeros(0, 2, 4, 4), 3, ones=True), torch.zeros(19, 19))
    assert float(kernels.patch_factor(torch.zeros(2, 0, 4, 4), 3, ones=True)) == 2 * 2 * 2


one, mat, ids = torch.ones(3), torch.ones(2, 3), torch.ones(3, dtype=torch.int64)
REFUSED = {
    "shape": (lambda: kernels.diagonal_step(one, one, one, one, mat, **STEP), r"evidence has shape \(2, 3\), mean has"),
    "integers": (lambda: kernels.diagonal_step(one, one, one, one, ids, **STEP), "evidence has dtype torch.int64"),
    "ess": (lambda: kernels.diagonal_step(*[one] * 5, ess=0.0, **STEP), "ess is 0.0; it is > 0, or None"),
    "clip": (lambda: kernels.diagonal_step(*[one] * 5, clip_radius=0.0, **STEP), "clip_radius is 0.0; it is > 0"),
    "correction": (lambda: kernels.diagonal_step(*[one] * 5, correction=0.0, **STEP), "correction is 0.0; it is > 0"),
    "seed": (lambda: kernels.diagonal_step(*[one] * 5, seed=-1, **STEP), r"seed is -1; it is in \[0, 2\^63\)"),
    "offset": (lambda: kernels.diagonal_step(*[one] * 5, offset=2**63 - 2, **STEP), "offset 9223372036854775806"),
    "examples": (lambda: kernels.squared_gradients(mat, torch.ones(3, 2)), r"they are \(N, d_out\) and \(N, d_in\)"),
    "dtypes": (lambda: kernels.squared_gradients(mat, mat.double()), "a has dtype torch.float64, g has torch.float32"),
    "square": (lambda: kernels.symmetric_update(mat, mat, decay=1.0, weight=1.0), r"they are \(\*batch, d, d\)"),
    "one row": (lambda: kernels.symmetric_update(None, one, decay=1.0, weight=1.0), r"it is \(\*batch, n, d\)"),
    "columns": (
        lambda: kernels.symmetric_update(torch.eye(3), mat, decay=1.0, weight=1.0, ones=True),
        "a has 3 columns; c of size 3 takes 2 with ones=True",
    ),
    "vectors": (lambda: kernels.woodbury_solve(one, mat.T, one), r"d, u, v are \(\*batch, D\), \(\*batch, D, r\)"),
    "basis": (
        lambda: kernels.eigenbasis_solve(mat, torch.eye(3), torch.eye(3), mat, shift=1.0),
        r"q_s has shape \(3, 3\); with g of shape \(2, 3\) it is \(2, 2\)",
    ),
    "vector": (lambda: kernels.eigenbasis_solve(one, mat, mat, one, shift=1.0), r"it is \(\*batch, d_out, d_in\)"),
    "root": (lambda: kernels.inverse_root(torch.eye(2), 3), "root is 3; it is 2 or 4"),
    "not square": (lambda: kernels.inverse_root(mat, 2), r"a has shape \(2, 3\); it is \(\*batch, n, n\)"),
    "images": (lambda: kernels.patch_factor(mat, 2), r"x has shape \(2, 3\); it is \(N, C, H, W\)"),
    "stride": (lambda: kernels.patch_factor(torch.ones(1, 1, 4, 4), 2, stride=0), "stride is 0; it is an integer >= 1"),
    "too large": (lambda: kernels.patch_factor(torch.ones(1, 1, 4, 4), 5), r"a kernel of \(5, 5\) has no place in"),
    "devices": (
        lambda: kernels.squared_gradients(mat, torch.empty(2, 3, device="meta")),
        "a is on meta, g on cpu; move them to one device",
    ),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED.keys())
def test_bad_operands_are_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()

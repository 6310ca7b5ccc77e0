"""Optimizers whose steps run Triton's kernels on the CPU, in Triton's interpreter; see ``interpreted.py``."""

import copy

import pytest
import torch

from kernel_engine import METHODS, assert_equal_up_to, diagonal, launches, trained
from tiny_models import fill, normal
from vogn import IVON, VOGN
from vogn.errors import NonFiniteStatisticsError
from vogn.kernels import TABLE, dispatch, native
from vogn.likelihoods import Categorical
from vogn.linalg import noise
from vogn.linalg.patches import Patches
from vogn.linalg.rows import Rows
from vogn.linalg.sides import second_moment
from vogn.optim import NaturalGradient
from vogn.optim.steps import ClipElements, Momentum, Prior, RescaleToInitial, Solve
from vogn.structures import Diagonal, EigenKronecker, Kronecker

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "the noise of both ways is PyTorch's here")
    monkeypatch.setattr(noise, "fitting", lambda *operands: None)  # and so not Triton's
    monkeypatch.setenv("VOGN_KERNELS", "triton")


@pytest.fixture
def launched(monkeypatch):
    with launches(monkeypatch) as counter:
        yield counter


def plain(monkeypatch, call):
    """The result of a call without Triton's kernels."""
    with monkeypatch.context() as patch:
        patch.setenv("VOGN_KERNELS", "reference")
        return call()


def price(model, structure, **options):
    return NaturalGradient(model, structure, "price", **options)


@pytest.mark.parametrize("name", METHODS)
def test_steps_with_kernels_equal_steps_without(name, monkeypatch, launched):
    case = METHODS[name]
    expected = plain(monkeypatch, lambda: trained(case, CPU))
    assert not launched
    found = trained(case, CPU)
    assert set(launched) == case.kernels
    assert_equal_up_to(found, expected, case.tolerance)
    with pytest.raises(AssertionError):  # what a single step changes is seen
        assert_equal_up_to(found, plain(monkeypatch, lambda: trained(case, CPU, steps=3)), 10 * case.tolerance)


@pytest.mark.parametrize("name", ["IVON, two samples, without rescaling", "K-FAC, exact damping"])
def test_steps_with_the_noise_of_the_kernel(name, monkeypatch, launched):
    """Those without kernels, with the same numbers from PyTorch's integers."""
    case = METHODS[name]
    with monkeypatch.context() as patch:
        patch.setattr(noise, "fitting", lambda op, *operands: TABLE[op]["reference"])
        expected = plain(monkeypatch, lambda: trained(case, CPU))
    torches = plain(monkeypatch, lambda: trained(case, CPU))
    monkeypatch.setattr(noise, "fitting", dispatch.fitting)
    found = trained(case, CPU)
    assert set(launched) == case.kernels | {"fill_normal"}
    assert_equal_up_to(found, expected, case.tolerance)
    with pytest.raises(AssertionError):  # other noise is seen
        assert_equal_up_to(found, torches, 10 * case.tolerance)


@pytest.mark.parametrize(
    "case",
    [
        diagonal(
            VOGN, steps=(Momentum(), Prior(), Solve(), RescaleToInitial(), ClipElements(0.01)), initial_curvature=1.0
        ),
        diagonal(IVON, weight_decay=0.0),
        diagonal(VOGN, weight_decay=0.0, damping=0.0),
        diagonal(VOGN, steps=(Prior(), Solve(), Momentum())),
        diagonal(price, structure=Diagonal(), initial_curvature=10.0),
    ],
    ids=["a clip at the end", "nothing holds c above 0", "no shift", "another chain", "evidence that may raise"],
)
def test_what_the_diagonal_pass_does_not_know_goes_through_structure_and_chain(case, monkeypatch, launched):
    expected = plain(monkeypatch, lambda: trained(case, CPU, steps=1))
    assert_equal_up_to(trained(case, CPU, steps=1), expected, 0.0)
    assert not launched


@pytest.mark.parametrize("negative", ["abs", "clamp"])
def test_evidence_that_is_made_positive(negative, monkeypatch, launched):
    case = diagonal(price, structure=Diagonal(negative=negative), initial_curvature=1.0)
    assert_equal_up_to(trained(case, CPU), plain(monkeypatch, lambda: trained(case, CPU)), case.tolerance)
    assert launched["diagonal_step"] == 4


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_refused_step_leaves_everything(launched):
    model, x = fill(torch.nn.Linear(3, 2)), normal(5, 3, dtype=torch.float32)
    opt = IVON(model, ess=10.0)
    for _ in range(2):
        before = copy.deepcopy((model.state_dict(), opt.state_dict()["state"]))
        with opt.sampled_params():
            Categorical()(50.0 * model(x), torch.zeros(5, dtype=torch.int64)).backward()
        if launched:
            opt.param_groups[0]["lr"] = 3e38
            with pytest.raises(NonFiniteStatisticsError, match="block 'weight': the updated weight holds NaN or inf"):
                opt.step()
        else:
            opt.step()
            opt.zero_grad()
    assert launched["diagonal_step"] == 4  # the second time for both blocks together, then for each of them
    torch.testing.assert_close(dict(model.state_dict()), dict(before[0]), rtol=0.0, atol=0.0)
    torch.testing.assert_close(opt.state_dict()["state"], before[1], rtol=0.0, atol=0.0)


def test_double_precision_is_not_touched(monkeypatch, launched):
    for name in ("IVON", "K-FAC, exact damping"):
        case = METHODS[name]
        case.make(case.network().double())
        while_building = dict(launched)  # the structure is tried with a row in single precision
        launched.clear()
        found = trained(case, CPU, torch.float64, steps=1)
        assert dict(launched) == while_building
        launched.clear()
        assert_equal_up_to(found, plain(monkeypatch, lambda case=case: trained(case, CPU, torch.float64, steps=1)), 0.0)


def test_a_solve_that_is_differentiated_records_its_gradient(launched):
    v = normal(2, 3, dtype=torch.float32).requires_grad_()
    state = EigenKronecker().init((2, 3), initial=2.0, dtype=torch.float32, device="cpu")
    EigenKronecker().solve(state, v, 0.5).sum().backward()
    torch.testing.assert_close(v.grad, torch.full((2, 3), 0.4))
    assert not launched


@pytest.mark.parametrize("structure", [EigenKronecker(), Kronecker()], ids=["eigen-corrected", "Kronecker"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)], ids=["matrix", "groups"])
def test_a_solve_equals_that_with_the_dense_matrix(structure, shape, launched):
    wide = {"dtype": torch.float32, "device": "cpu"}
    rows = Rows(normal(*shape[:-2], 9, 1, 4, dtype=torch.float32), normal(*shape[:-2], 1, 9, 1, 3, dtype=torch.float32))
    state = structure.init(shape, initial=0.0, **wide)
    state = structure.refresh(structure.update(state, structure.observe(state, rows), decay=0.0, weight=1.0, shift=0.5))
    launched.clear()
    v = normal(*shape, seed=5, dtype=torch.float32)
    found = structure.solve(state, v, 0.5)
    assert launched == {"eigenbasis_solve": 1}
    expected = torch.linalg.solve(structure.to_dense(state, 0.5).double(), v.double().flatten()).view(shape)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    structure.solve(state, v.expand(2, *shape), 0.5)  # several right-hand sides
    structure.solve(state, v, 0.0 if isinstance(structure, EigenKronecker) else torch.tensor(0.5))
    assert launched == {"eigenbasis_solve": 1}


@pytest.mark.parametrize("size", [5, 200], ids=["one tile", "several"])
def test_second_moments(size, launched):
    x = normal(2, 7, size, dtype=torch.float32)
    found = second_moment(x, x, diagonal=False)
    torch.testing.assert_close(found, x.mT @ x, rtol=1e-5, atol=1e-5)
    assert launched == {"symmetric_update": 1}
    second_moment(x, x, diagonal=True), second_moment(x, x.clone(), diagonal=False)
    assert launched == {"symmetric_update": 1}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_input_factors_of_convolutions(dims, bias, launched):
    x = normal(3, 2, *(7, 6, 5)[:dims], dtype=torch.float32)
    patches = Patches(x, (2, 3, 1)[:dims], (2, 1, 1)[:dims], (1, 2, 1)[:dims], 1, bias)
    found = patches.factor_in_place()
    if dims == 3:
        assert found is None and not launched
        return
    flat = patches.matrix().flatten(0, 1)
    torch.testing.assert_close(found, flat.mT @ flat, rtol=1e-5, atol=1e-5)
    assert launched == {"patch_factor": 1}
    assert Patches(x, patches.kernel, patches.stride, patches.dilation, 2, bias).factor_in_place() is None

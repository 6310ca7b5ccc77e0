"""Which implementation a call takes."""

import subprocess
import sys

import pytest
import torch

from kernel_engine import METHODS, assert_equal_up_to, trained
from vogn import kernels
from vogn.errors import MissingExtraError
from vogn.kernels import TABLE, dispatch, native
from vogn.linalg import sides

CPU = torch.ones(2, 3)


class OnCuda:
    """What the dispatch reads of a tensor."""

    is_cuda = True

    def __init__(self, dtype=torch.float32, device="cuda:0", requires_grad=False):
        self.dtype, self.device, self.requires_grad = dtype, torch.device(device), requires_grad


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("VOGN_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "installed", lambda: True)


def fits(*tensors, op="symmetric_update", **options):
    function = dispatch.fitting(op, *tensors, **options)
    assert function is None or function is TABLE[op]["triton"]
    return function is not None


def taken(*tensors, op="symmetric_update", limit=""):
    function = dispatch.select(op, *tensors, limit=limit)
    return next(backend for backend, other in TABLE[op].items() if other is function)


def test_the_device_chooses():
    assert taken(CPU, CPU) == "reference"
    assert taken(OnCuda(), OnCuda()) == "triton"
    assert taken(OnCuda(), CPU) == "reference"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_of_the_kernels(dtype):
    assert taken(OnCuda(dtype)) == "triton"


def test_what_the_kernels_cannot_take_goes_to_the_reference():
    assert taken(OnCuda(torch.float64), OnCuda()) == "reference"
    assert taken(OnCuda(), limit="it is too large") == "reference"
    assert taken(OnCuda(), op="row_gram") == "reference"


@pytest.mark.parametrize("op", sorted(dispatch.SLOWER))
def test_what_was_measured_to_be_slower_runs_only_where_it_is_asked_for(monkeypatch, op):
    assert taken(OnCuda(), op=op) == "reference"
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    assert taken(OnCuda(), op=op) == "triton"


def test_without_triton_cuda_takes_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    assert taken(OnCuda()) == "reference"


def test_the_reference_can_be_forced(monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "reference")
    assert taken(OnCuda()) == "reference"


def test_triton_can_be_forced(monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    assert taken(OnCuda()) == "triton"
    monkeypatch.setattr(dispatch, "_interpreted", lambda: True)
    assert taken(CPU) == "triton"
    assert taken(CPU, op="row_gram") == "reference"  # has no other implementation


@pytest.mark.parametrize(
    "tensors, limit, message",
    [
        (
            (CPU,),
            "",
            "symmetric_update is not on CUDA: move it there, unset VOGN_KERNELS, or set TRITON_",
        ),
        ((OnCuda(torch.float64),), "", "it takes float16, bfloat16 and float32, not float64; unset VOGN_KERNELS"),
        ((OnCuda(),), "it is too large", "no kernel for this: it is too large; unset VOGN_KERNELS"),
    ],
    ids=["on the CPU", "double precision", "too large"],
)
def test_forcing_triton_on_what_it_cannot_take_raises(monkeypatch, tensors, limit, message):
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match=message):
        taken(*tensors, limit=limit)


def test_forcing_triton_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'vogn\[gpu\]', or set VOGN_KERNELS=reference"):
        kernels.squared_gradients(CPU, CPU)


@pytest.fixture
def on_cuda(monkeypatch):
    """Fitting takes the double for a tensor."""
    monkeypatch.setattr(dispatch, "Tensor", OnCuda)


def test_code_with_a_way_of_its_own_takes_kernels_on_cuda(on_cuda, monkeypatch):
    assert fits(OnCuda(), OnCuda(torch.bfloat16))
    assert not fits(CPU, CPU)
    assert not fits(OnCuda(), CPU)
    assert not fits(OnCuda(), OnCuda(device="cuda:1"))
    assert not fits(OnCuda(torch.float64))
    assert not fits(OnCuda(), limit="it is too large")
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    assert not fits(OnCuda())


def test_what_is_differentiated_goes_its_own_way(on_cuda):
    assert not fits(OnCuda(), OnCuda(requires_grad=True))
    with torch.no_grad():
        assert fits(OnCuda(), OnCuda(requires_grad=True))


@pytest.mark.parametrize(
    "rows, size, slower", [(4096, 576, False), (16384, 577, True), (4096, 288, True), (8 * 512, 512, False)]
)
def test_symmetric_products_take_the_kernel_where_it_is_the_faster_one(monkeypatch, rows, size, slower):
    asked = []
    monkeypatch.setattr("vogn.linalg.sides.fitting", lambda op, x, slower: asked.append((op, slower)))
    x = torch.ones(1, 1).expand(rows, size)
    sides.second_moment(x, x, diagonal=False)
    assert asked == [("symmetric_update", slower)]


def test_tensors_of_other_types_go_their_own_way(on_cuda):
    class Distributed(OnCuda):
        pass

    assert not fits(OnCuda(), Distributed())


def test_what_is_not_worth_it_is_taken_where_it_is_asked_for(on_cuda, monkeypatch):
    others = ("squared_gradients", "eigenbasis_solve", "patch_factor")
    assert not any(fits(OnCuda(), op=op) for op in others)
    assert not fits(OnCuda(), slower=True)
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    assert all(fits(OnCuda(), op=op) for op in others) and fits(OnCuda(), slower=True)
    monkeypatch.setenv("VOGN_KERNELS", "reference")
    assert not fits(OnCuda())


def test_forcing_triton_breaks_nothing_that_has_a_way_of_its_own(on_cuda, monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    assert not fits(CPU)
    assert not fits(OnCuda(torch.float64))
    assert not fits(OnCuda(), limit="it is too large")
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    for op in ("eigenbasis_solve", "diagonal_step"):
        with pytest.raises(MissingExtraError, match="triton is not installed"):
            fits(CPU, op=op)


@pytest.mark.parametrize("value", ["triton", "reference"])
@pytest.mark.parametrize("name", ["IVON", "EK-FAC"])
def test_steps_on_the_cpu_do_not_depend_on_the_variable(name, value, monkeypatch):
    """Without the interpreter, bit for bit; without kernels in C too, where these are switched off."""
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    if value == "reference":
        monkeypatch.setattr(native, "why_not", lambda: "compared with what is done without them")
    expected = trained(METHODS[name], torch.device("cpu"), steps=2)
    monkeypatch.setenv("VOGN_KERNELS", value)
    assert_equal_up_to(trained(METHODS[name], torch.device("cpu"), steps=2), expected, 0.0)


def test_an_unknown_value_is_named(monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "cuda")
    with pytest.raises(ValueError, match="VOGN_KERNELS='cuda' is unknown"):
        fits(CPU)
    with pytest.raises(ValueError, match="VOGN_KERNELS='cuda' is unknown; use 'triton' or 'reference', or unset it"):
        kernels.squared_gradients(CPU, CPU)


def test_without_triton_the_modules_of_the_kernels_can_be_imported():
    """And ``import vogn`` imports none of them."""
    code = (
        "import sys; sys.modules['triton'] = None; import vogn, vogn.kernels as k, torch;"
        "assert not [m for m in sys.modules if m.startswith('vogn.kernels.gpu')];"
        "import importlib;"
        "[importlib.import_module(f'vogn.kernels.gpu.{op}') for op, t in k.TABLE.items() if 'triton' in t];"
        "print(k.squared_gradients(torch.ones(2, 1), torch.ones(2, 1)).item())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2.0"

"""On a GPU every method computes what it computes on the CPU, in double precision, for the same random numbers."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import vogn
from tiny_models import batch, fill
from vogn.likelihoods import Categorical
from vogn.linalg import noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


@pytest.fixture
def noise_of_the_cpu(monkeypatch):
    """Draws for tensors on the GPU are made on the CPU and copied: the two generators know different numbers."""
    twins: dict[int, torch.Generator] = {}

    def twin(generator):
        if generator is None or generator.device.type == "cpu":
            return generator
        return twins.setdefault(id(generator), torch.Generator().manual_seed(generator.initial_seed()))

    def randn(shape, *, generator, dtype=None, device=None, out=None):
        own = torch.Generator().manual_seed(generator.initial_seed())
        if out is not None:
            return out.copy_(torch.randn(shape, generator=own, dtype=out.dtype))
        return torch.randn(shape, generator=own, dtype=dtype).to(device)

    def sample(self, outputs, generator=None):
        clocks = torch.empty(outputs.shape, dtype=outputs.dtype).exponential_(generator=twin(generator))
        return (outputs.detach() - clocks.to(outputs.device).log()).argmax(-1)

    kept = []  # generators stay alive, so that their ids are theirs alone

    def generator(**coordinates):
        kept.append(types.SimpleNamespace(value=original(**coordinates)))
        return kept[-1].value

    original = noise.generator
    stub = types.SimpleNamespace(randn=randn, empty=torch.empty, Generator=torch.Generator)
    monkeypatch.setattr(noise, "torch", stub)
    monkeypatch.setattr("vogn.capture.context.generator", generator)
    monkeypatch.setattr(Categorical, "sample", sample)


def on(device, case, tools, model, steps=3, **options):
    model = copy.deepcopy(model).to(device)
    opt = case.build(model, **options)
    for step in range(steps):
        x, y = (tensor.to(device) for tensor in batch(8, step, torch.float64))
        opt.zero_grad()
        with opt.sampled_params():
            case.likelihood(model(x), y).backward()
        opt.step()
    return model, opt


def on_the_cpu(tensors):
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def test_a_method_on_a_gpu_is_the_method_on_the_cpu(tools, case, noise_of_the_cpu):
    network = tools.square_network() if case.method == "evon" else tools.network()
    model, opt = on("cpu", case, tools, network)
    twin, other = on(CUDA, case, tools, network)
    assert all(p.is_cuda for p in twin.parameters())
    assert all(t.is_cuda for name, t in tools.everything(other, twin).items() if t.ndim > 0), "state on another device"
    tools.assert_near(tools.meaning(opt, model), on_the_cpu(tools.meaning(other, twin)), 1e-6)


class Convolutions(nn.Module):
    """A convolution, a batch norm, attention over positions and a head."""

    def __init__(self):
        super().__init__()
        self.lift, self.conv, self.norm = nn.Linear(3, 16), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        image = self.norm(self.conv(self.lift(x).unflatten(1, (1, 4, 4)))).relu()
        return self.head(self.encoder(image.flatten(2).mT).mean(1))


@pytest.mark.filterwarnings("ignore:no layer rule")
def test_convolution_norm_and_attention_on_a_gpu(tools, case, noise_of_the_cpu):
    torch.manual_seed(0)
    network = Convolutions().double()
    with sdpa_kernel(SDPBackend.MATH):  # probes differentiate twice
        model, _ = on("cpu", case, tools, network, steps=2)
        twin, _ = on(CUDA, case, tools, network, steps=2)
    if case.method in {"evon", "ekfac"}:  # rank-deficient contractions have no unique eigenbasis
        assert all(p.isfinite().all() for p in twin.parameters())
        return
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_a_checkpoint_moves_between_devices(tools, case):
    """Written on the GPU and read on the CPU, and the other way round, bit for bit."""
    for first, second in ((CUDA, "cpu"), ("cpu", CUDA)):
        model, opt = on(first, case, tools, tools.network(), steps=2)
        stream = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, stream)
        stream.seek(0)
        saved = torch.load(stream, weights_only=True, map_location=second)
        twin = tools.network().to(second)
        twin.load_state_dict(saved["model"])
        other = case.build(twin)
        other.load_state_dict(saved["opt"])
        tools.assert_identical(
            on_the_cpu(tools.everything(opt, model)), on_the_cpu(tools.everything(other, twin))
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision_with_a_scaler(tools, case, dtype):
    """Weights move, stay finite and are the mean again after the step."""
    model = tools.network(torch.float32).to(CUDA)
    opt = case.build(model)
    scaler = opt.grad_scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16, init_scale=2.0**10)
    before = tools.flat(model).clone()
    for step in range(3):
        x, y = (tensor.to(CUDA) for tensor in batch(8, step, torch.float32))
        opt.zero_grad()
        with opt.sampled_params():
            with torch.autocast("cuda", dtype=dtype):
                loss = case.likelihood(model(x), y)
            scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    after = tools.flat(model)
    assert after.isfinite().all() and not torch.equal(before, after)


def test_noise_drawn_on_a_gpu_is_reproducible(tools, case):
    runs = [on(CUDA, case, tools, tools.network()) for _ in range(2)]
    first, second = (tools.everything(opt, model) for model, opt in runs)
    tools.assert_near(first, second, 1e-9)


@pytest.mark.parametrize("method", ["mean", "mc", "linearized"])
def test_predictions_on_a_gpu(tools, method):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()).to(CUDA)
    opt = vogn.KFAC(model, lr=0.05, ess=100.0, weight_decay=1e-2)
    for step in range(3):
        x, y = (tensor.to(CUDA) for tensor in batch(8, step, torch.float64))
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    posterior, x = opt.posterior(), batch(8, 9, torch.float64)[0]
    found = vogn.predict(model, posterior, x.to(CUDA), method=method, samples=4096, likelihood=Categorical())
    assert found.mean.is_cuda
    twin = copy.deepcopy(model).cpu()
    other = vogn.predict(twin, posterior, x, method=method, samples=4096, likelihood=Categorical())
    tolerance = 1e-9 if method == "mean" else 0.05
    torch.testing.assert_close(found.mean.cpu(), other.mean, rtol=0, atol=tolerance)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "eigen_kronecker", "dense", "diagonal_low_rank"])
def test_laplace_on_a_gpu(structure):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    data = batch(16, 0, torch.float64)
    found = vogn.laplace(model, Categorical(), [data], structure=structure).precision_matrices()
    on_gpu = vogn.laplace(
        copy.deepcopy(model).to(CUDA), Categorical(), [tuple(t.to(CUDA) for t in data)], structure=structure
    )
    for name, matrix in on_gpu.precision_matrices().items():
        assert matrix.is_cuda
        torch.testing.assert_close(matrix.cpu(), found[name], rtol=1e-8, atol=1e-8)


def test_the_command_line_trains_on_a_gpu(tmp_path):
    arguments = ["--method", "vogn", "--epochs", "1", "--width", "4", "--device", str(CUDA), "--output", "run"]
    command = [sys.executable, "-m", "vogn.cli", "train", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "posterior.safetensors").exists()

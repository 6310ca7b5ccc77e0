"""What only GPUs have: synchronised batch norm, alone and between two of them."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_models import OPTIONS, batch, fill
from vogn import VOGN
from vogn.likelihoods import Categorical

pytestmark = pytest.mark.gpu
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def network(norm):
    return fill(nn.Sequential(nn.Linear(3, 4), norm(4), nn.Tanh(), nn.Linear(4, 3)).double())


def trained(model, device, part=slice(None), group=None):
    """Weights and curvatures after three steps on a part of every batch, on the CPU."""
    model = model.to(device)
    wrapped = model if group is None else DistributedDataParallel(model)
    opt = VOGN(wrapped, **(OPTIONS | {"variational": False}))
    for step in range(3):
        x, y = (tensor[part].to(device) for tensor in batch(8, step, torch.float64))
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(wrapped(x), y).backward()
        opt.step()
    curvatures = [opt.state[p]["curvature"]["c"] for p in model.parameters() if "curvature" in opt.state[p]]
    return [tensor.detach().cpu() for tensor in (*model.parameters(), *curvatures)]


def one_of_two(rank, rendezvous, results, backend, device, norm):
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    if device == "cuda":
        torch.cuda.set_device(rank)
    half = slice(4 * rank, 4 * rank + 4)
    torch.save(trained(network(norm), torch.device(device), half, dist.group.WORLD), f"{results}/{rank}")
    dist.destroy_process_group()


def assert_equal(found, expected):
    assert len(found) == len(expected) > 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@cuda
def test_synchronised_batch_norm_on_one_device_is_batch_norm():
    assert_equal(trained(network(nn.SyncBatchNorm), torch.device("cuda")), trained(network(nn.BatchNorm1d), "cpu"))


@cuda
@two
def test_synchronised_batch_norm_on_two_devices_is_that_of_the_whole_batch(tmp_path):
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path), "nccl", "cuda", nn.SyncBatchNorm)
    mp.spawn(one_of_two, arguments, nprocs=2)
    expected = trained(network(nn.BatchNorm1d), "cpu")
    for rank in range(2):
        assert_equal(torch.load(tmp_path / str(rank)), expected)

"""What the ranks run with ``fully_shard``; ``scenarios.py`` holds the loop it is compared with."""

import copy
import pickle

import scenarios as plain  # worker.py lies in the same folder
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from tiny_models import batch, fill
from vogn.likelihoods import Categorical


def shard(model, group, outer_only=False):
    mesh = DeviceMesh.from_group(group, "cpu")
    for module in model.modules():
        if isinstance(module, nn.Linear) and not outer_only:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(state):
    """The result of a sharded run in the form of the others."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # the test may: it knows both kinds
        for name, tensor in state.items()
    }


def result(model, opt):
    """Weights, curvature and momentum as whole tensors under flat names: what every rank's checkpoint holds."""
    whole_opt = copy.copy(opt)
    saved = opt.state_dict()
    parameters = [p for group in opt.param_groups for p in group["params"]]
    whole_opt.__dict__ = opt.__dict__ | {"state": {parameters[k]: entry for k, entry in saved["state"].items()}}
    return whole(plain.result(model, whole_opt))


def train(
    me,
    group,
    /,
    method,
    sizes=(3, 3),
    steps=4,
    start=0,
    contexts=1,
    micro=1,
    quiet_contexts=False,
    evaluate=False,
    outer_only=False,
    checkpoint=None,
    save=False,
    **options,
):
    """The loop of the documentation.

    ``evaluate``: forward passes without a backward inside and after each context. Only the last micro-batch of a
    context is averaged over the ranks; with ``quiet_contexts`` only that of the last context.
    """
    model = plain.network()
    if checkpoint is not None:
        model.load_state_dict(pickle.loads(checkpoint)[0])
    model = shard(model, group, outer_only)
    opt = plain.build(method, model, mc_samples=contexts, process_group=group, **options)
    if checkpoint is not None:
        opt.load_state_dict(pickle.loads(checkpoint)[1])
    for step in range(start, start + steps):
        opt.zero_grad()
        for context in range(contexts):
            with opt.sampled_params():
                for k in range(micro):
                    x, y = (plain.share(tensor, sizes, me) for tensor in batch(sum(sizes), 100 * step + k))
                    last = k == micro - 1 and (context == contexts - 1 or not quiet_contexts)
                    model.set_requires_gradient_sync(last)
                    (Categorical()(model(x), y) / micro).backward()
                    if evaluate:
                        model(x)
            if evaluate:
                model(x)
        opt.step()
    if save:
        return pickle.dumps((whole(model.state_dict()), opt.state_dict()))
    return result(model, opt)


def posterior(me, group, /):
    """Means and variances of a sharded model's posterior."""
    model = shard(plain.network(), group)
    opt = plain.build("vogn", model, process_group=group)
    x, y = (plain.share(tensor, (3, 3), me) for tensor in batch(6))
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    return dict(opt.posterior().mean()) | {f"variance {n}": v for n, v in opt.posterior().variance().items()}


class Token(nn.Module):
    """A bare parameter beside a layer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x * self.token)


def message(me, group, /, method, bare=False, parameters=False, steps=2, **options):
    """What a rank raises."""
    model = shard(fill(Token().double(), seed=1) if bare else plain.network(), group)
    try:
        opt = plain.build(method, model.parameters() if parameters else model, **({"process_group": group} | options))
        for step in range(steps):
            x, y = (plain.share(tensor, (3, 3), me) for tensor in batch(6, step))
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""

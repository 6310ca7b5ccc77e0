"""What the ranks run with ``fully_shard``; ``scenarios.py`` holds the loop it is compared with."""

import contextlib
import copy
import pickle

import pytest
import scenarios as plain  # worker.py lies in the same folder
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from tiny_models import batch, fill
from vogn import Objective
from vogn.distributed import own_shard
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.likelihoods import Categorical
from vogn.optim.steps import Step
from vogn.structures import Kronecker


def shard(model, group, outer_only=False, shape=None):
    """``shape``: of a mesh of all four ranks, replicas first."""
    if shape is None:
        mesh = DeviceMesh.from_group(group, "cpu")
    else:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))
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
    network="square",
    switch=None,
    mesh=None,
    dtype=torch.float64,
    **options,
):
    """The loop of the documentation.

    ``evaluate``: forward passes without a backward inside and after each context. Only the last micro-batch of a
    context is averaged over the ranks; with ``quiet_contexts`` only that of the last context.
    """
    model = plain.NETWORKS[network](dtype)
    if checkpoint is not None:
        model.load_state_dict(pickle.loads(checkpoint)[0])
    model = shard(model, group, outer_only, mesh)
    opt = plain.build(method, model, mc_samples=contexts, process_group=group, **options)
    if checkpoint is not None:
        opt.load_state_dict(pickle.loads(checkpoint)[1])
    for step in range(start, start + steps):
        if step == switch:
            opt.param_groups[0]["variational"] ^= True
        opt.zero_grad()
        for context in range(contexts):
            with opt.sampled_params():
                for k in range(micro):
                    x, y = (plain.share(tensor, sizes, me) for tensor in batch(sum(sizes), 100 * step + k, dtype))
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


def one_step(opt, model, group_size, me, step=0, dtype=torch.float64):
    sizes = (8 // group_size,) * group_size
    x, y = (plain.share(tensor, sizes, me) for tensor in batch(8, 100 * step, dtype))
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()


def entries(me, group, /, method, refused=False, **options):
    """Weights and the group entries that the method's own steps change; ``refused``: a NaN on one rank in step 2."""
    model, size = plain.network(), 1
    if group is not None:
        model, size = shard(model, group), group.size()
        options |= {"process_group": group}
    opt = plain.build(method, model, variational=False, **options)
    for step in range(4):
        x, y = (plain.share(tensor, (8 // size,) * size, me) for tensor in batch(8, 100 * step))
        objective = Objective(model, Categorical(), x, y)
        if not refused or step != 2:
            opt.step(objective)
            continue
        before = dict(opt.param_groups[0])
        opt.zero_grad()
        with opt.sampled_params():
            objective()
        if me == size // 2:
            for parameter in model.parameters():
                own_shard(parameter.grad).fill_(float("nan"))
        with pytest.raises(NonFiniteStatisticsError):
            opt.step()
        assert opt.param_groups[0] == before
    numbers = {k: v for k, v in opt.param_groups[0].items() if isinstance(v, int | float)}
    return result(model, opt) | {k: torch.tensor(float(v), dtype=torch.float64) for k, v in numbers.items()}


def wide_network():
    model = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    return fill(model.append(nn.Linear(32, 16)).double(), seed=3)


class LooksAtEverything(Step):
    """A step that says nothing about its scope."""

    def __call__(self, updates, context):
        norm = torch.stack([update.norm() for update in updates]).norm()
        return [update / norm for update in updates]


def memory(me, group, /, method, look_at_everything=False, **options):
    """Bytes of optimizer state of this rank after two steps, and of the checkpoint: curvature and momentum."""
    model, size = wide_network(), 1
    if group is not None:
        model, size = shard(model, group), group.size()
        options |= {"process_group": group}
    opt = plain.build(method, model, **options)
    if look_at_everything:
        opt.chain = (*opt.chain, LooksAtEverything())
    for step in range(2):
        one_step(opt, model, size, me, step)
    return held_bytes(opt.state.values()), held_bytes(opt.state_dict()["state"].values())


def held_bytes(entries):
    tensors = [t for entry in entries for kind in ("curvature", "memory") for t in entry.get(kind, {}).values()]
    return sum(t.numel() * t.element_size() for t in tensors if t.device.type != "meta" and t.ndim)


def failing_rank(me, group, /, method, failure, **options):
    """A failure on rank 1 alone, in the third of five steps: what every rank raises, and what it leaves."""
    model = shard(plain.network(), group)
    opt = plain.build(method, model, process_group=group, **options)
    raised = []
    for step in range(5):
        x, y = (plain.share(tensor, (2,) * group.size(), me) for tensor in batch(2 * group.size(), step))
        before = result(model, opt)
        opt.zero_grad()
        broken = failure if me == 1 and step == 2 else ""
        try:
            with fails("sample", ZeroDivisionError) if broken == "sample" else contextlib.nullcontext():
                opt.sample_()
            Categorical()(model(x), y).backward()
            opt.restore_()
            for parameter in model.parameters() if broken == "gradient" else ():
                parameter.grad.to_local().fill_(float("nan"))
            kind = NotPositiveDefiniteError if broken == "tolerated" else ZeroDivisionError
            with fails("refresh", kind) if broken in ("refresh", "tolerated") else contextlib.nullcontext():
                opt.step()
            raised.append("")
        except ArithmeticError as error:
            raised.append(f"{type(error).__name__}: {error}")
            after = result(model, opt)
            assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    return raised, result(model, opt)


@contextlib.contextmanager
def fails(method, kind):
    """Kronecker blocks of this process cannot be factorised."""

    def broken(*args, **kwargs):
        raise kind("broken here")

    original = getattr(Kronecker, method)
    setattr(Kronecker, method, broken)
    try:
        yield
    finally:
        setattr(Kronecker, method, original)


def diagnosed(me, group, /, method, dtype=torch.float64, **options):
    """Numbers of ``diagnostics()`` and moments of the posterior after three steps."""
    model, size = plain.uneven_network(dtype), 1
    if group is not None:
        model, size = shard(model, group), group.size()
        options |= {"process_group": group}
    opt = plain.build(method, model, **options)
    for step in range(3):
        one_step(opt, model, size, me, step, dtype)
    numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in opt.diagnostics(per_block=True).items()}
    posterior = opt.posterior()
    return numbers | {f"mean {n}": m for n, m in posterior.mean().items()} | dict(posterior.variance())


def thaw(me, group, /, method, **options):
    """The head is frozen for two of four steps: then there are more blocks to divide."""
    model, size = plain.network(), 1
    model[2].weight.requires_grad_(False)
    if group is not None:
        model, size = shard(model, group), group.size()
        options |= {"process_group": group}
    opt = plain.build(method, model, **options)
    for step in range(4):
        if step == 2:
            model[2].weight.requires_grad_(True)
        one_step(opt, model, size, me, step)
    return result(model, opt)


def distributed_checkpoint(me, group, /, method, folder, save, **options):
    """Two steps and a checkpoint, or two more steps from that checkpoint."""
    model = plain.uneven_network()
    size = 1 if group is None else group.size()
    if group is not None:
        model = shard(model, group)
        options |= {"process_group": group}
    opt = plain.build(method, model, **options)
    if save:
        for step in range(2):
            one_step(opt, model, size, me, step)
    weights, state = get_state_dict(model, opt)
    content = {"model": weights, "optimizer": state}
    if save:
        dcp.save(content, checkpoint_id=folder, process_group=group)
        return {}
    dcp.load(content, checkpoint_id=folder, process_group=group)
    set_state_dict(model, opt, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    for step in range(2, 4):
        one_step(opt, model, size, me, step)
    return result(model, opt)


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


class Aside(nn.Module):
    """A layer that is used without its forward: nothing is seen of it."""

    def __init__(self):
        super().__init__()
        self.seen, self.unseen = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.seen(x)), self.unseen.weight, self.unseen.bias)


def unseen(me, group, /, method, **options):
    """What a rank raises about a layer that moves although nothing was seen of it."""
    model = fully_shard(fill(Aside().double(), seed=1), mesh=DeviceMesh.from_group(group, "cpu"))
    opt = plain.build(method, model, process_group=group, **options)
    try:
        one_step(opt, model, group.size(), me)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""

"""What the ranks run; with ``group=None`` the same on the concatenated batches in a single process."""

import contextlib
import copy
import pickle
import warnings
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_models import OPTIONS, batch, fill
from vogn import Objective
from vogn.distributed import Part, Replicas, lengths, reduce_parts, reduction
from vogn.errors import NonFiniteStatisticsError
from vogn.likelihoods import Categorical
from vogn.optim import METHODS


def network(dtype=torch.float64):
    """3 inputs, 3 hidden units, 3 classes; no bias, so that the eigenbases of all factors are unique."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    return fill(model.to(dtype), seed=2)


def uneven_network(dtype=torch.float64):
    """Numbers of rows that 2 or 4 ranks cannot share equally, one of them smaller than 4."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 3))
    return fill(model.to(dtype), seed=2)


def convolutional_network(dtype=torch.float64):
    """Layers whose parameters are not rows of their block as they stand, and norms."""
    layers = [nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 4, 2), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2)]
    layers += [nn.GroupNorm(2, 6), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 3)]
    return fill(nn.Sequential(*layers).to(dtype), seed=2)


def second_task(rank, group):
    """What a posterior as prior, and a learner of tasks, say to several processes."""
    from vogn.continual import VariationalContinualLearning, use_as_prior
    from vogn.errors import UnsupportedObservationError

    model, found = network(), []
    opt = METHODS["vogn"].build(model, process_group=group, ess=10.0)
    learner = VariationalContinualLearning(model, Categorical(), process_group=group)
    learner.begin_task(10)
    for attempt in (lambda: use_as_prior(opt, None), learner.optimizer):
        try:
            attempt()
        except UnsupportedObservationError as error:
            found.append(str(error))
    return found


class Padded(nn.Module):
    """Numbers become tokens; the padding's entry, which takes no noise, is not zero."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4, padding_idx=5), nn.Linear(4, 3)

    def forward(self, x):
        tokens = (x * 3).floor().long().remainder(7)
        return self.head(self.table(tokens).sum(1).tanh())


def padded_network(dtype=torch.float64):
    return fill(Padded().to(dtype), seed=2)


NETWORKS = {
    "square": network,
    "uneven": uneven_network,
    "convolutional": convolutional_network,
    "padded": padded_network,
}


class Branches(nn.Module):
    """Examples of one batch take one of two branches, chosen by the sign of its first number; one is never used."""

    def __init__(self):
        super().__init__()
        self.plus, self.minus, self.never = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        branch = self.plus if bool(x[0, 0] > 0) else self.minus
        return self.head(torch.tanh(branch(x)) * self.scale)


def share(tensor, sizes, rank):
    """The part of a batch that belongs to a rank."""
    return tensor.split(list(sizes))[rank]


def wrap(model, group, **options):
    return model if group is None else DistributedDataParallel(model, process_group=group, **options)


def build(method, model, **options):
    return METHODS[method].constructor(model, **(OPTIONS | options))


def result(model, opt):
    """Weights, curvature and momentum as flat names."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    out = {f"weight {name}": parameter.detach().clone() for name, parameter in inner.named_parameters()}
    names = {p: n for group in opt.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)}
    for parameter, state in opt.state.items():
        for kind in ("curvature", "memory"):
            for key, tensor in state.get(kind, {}).items():
                if tensor.numel():  # an empty tensor remembers a shape
                    out[f"{kind} {names[parameter]} {key}"] = tensor.clone()
    # bases and low-rank roots are unique only up to signs: their products stand for them
    roots = ("U", "UA", "US")
    return {name: tensor for name, tensor in out.items() if name.split()[-1] not in ("QA", "QS", "F", "P", *roots)} | {
        f"{name} squared": tensor.flatten(0, -2) @ tensor.flatten(0, -2).T
        for name, tensor in out.items()
        if name.split()[-1] in roots
    }


def objectives(me, group, /, method, sizes, **options):
    """Steps that see the loss again."""
    model = wrap(network(), group)
    opt = build(method, model, variational=False, **(options if group is None else options | {"process_group": group}))
    for step in range(4):
        x, y = batch(sum(sizes), 100 * step)
        if group is not None:
            x, y = share(x, sizes, me), share(y, sizes, me)
        opt.step(Objective(model, Categorical(), x, y))
    return result(model, opt)


class FixedScale:
    """The part of a gradient scaler that the optimizer reads."""

    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


@contextlib.contextmanager
def no_factors_lost():
    """A block that keeps its last good factors raises; only here, as the ranks serve other tests after this one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="block ")
        yield


@no_factors_lost()
def train(
    me,
    group,
    /,
    method,
    sizes=(3, 3),
    steps=4,
    start=0,
    dtype=torch.float64,
    micro=1,
    contexts=1,
    reduction="mean",
    sync_all=False,
    scale=1.0,
    ddp=None,
    inner=False,
    apart=False,
    only=None,
    checkpoint=None,
    save=False,
    places=0,
    network="square",
    switch=None,
    **options,
):
    """The loop of the documentation.

    ``sizes``: examples per rank and micro-batch. ``micro``: micro-batches in a context. ``contexts``: weight samples
    per step. All backward passes of a step but the last run under ``no_sync``, unless ``sync_all``. ``scale``: of the
    loss, undone before the step. ``inner``: the optimizer gets the inner module.
    ``apart``: every rank trains a model of its own. ``only``: one process sees this rank's share. ``checkpoint``,
    ``save``: states of model and optimizer to start from, and whether to return them. ``places``: steps after which the
    places of the examples in the data set begin anew; 0 tells none. ``switch``: the step from which on the other mode
    is used.
    """
    part = me if group is not None else only
    group = None if apart else group
    model = wrap(NETWORKS[network](dtype), group, **(ddp or {}))
    module = model if group is None else model.module
    opt = build(method, module if inner else model, mc_samples=contexts, loss_reduction=reduction, **options)
    if checkpoint is not None:
        weights, state = pickle.loads(checkpoint)
        module.load_state_dict(weights)
        opt.load_state_dict(state)
    if scale != 1.0:
        opt.grad_scaler = FixedScale(scale)
    quiet = contextlib.nullcontext if group is None or sync_all else model.no_sync
    for step in range(start, start + steps):
        if step == switch:
            opt.param_groups[0]["variational"] ^= True
        opt.zero_grad()
        for context in range(contexts):
            indices = None
            if places:
                numbers = torch.arange(micro * sum(sizes)) + step % places * micro * sum(sizes)
                chunks = numbers.split(sum(sizes))
                indices = numbers if part is None else torch.cat([share(chunk, sizes, part) for chunk in chunks])
            with opt.sampled_params(indices):
                for k in range(micro):
                    x, y = batch(sum(sizes), 100 * step + k, dtype)
                    if part is not None:
                        x, y = share(x, sizes, part), share(y, sizes, part)
                    last = k == micro - 1 and context == contexts - 1
                    with contextlib.nullcontext() if last else quiet():
                        loss = Categorical()(model(x), y)
                        loss = loss * len(x) if reduction == "sum" else loss / micro
                        (scale * loss).backward()
        for parameter in module.parameters():
            parameter.grad /= scale
        opt.step()
    return pickle.dumps((module.state_dict(), opt.state_dict())) if save else result(model, opt)


def train_branches(me, group, /, method, steps=4, **options):
    """Every rank takes another branch: parameters unused on a rank, and on all of them.

    A single process sees the ranks' batches as micro-batches.
    """
    model = wrap(fill(Branches().double(), seed=1), group, find_unused_parameters=True)
    opt = build(method, model, **options)
    for step in range(steps):
        opt.zero_grad()
        x, y = batch(6, step)
        x[:3, 0], x[3:, 0] = x[:3, 0].abs(), -x[3:, 0].abs()
        with opt.sampled_params():
            for part in (0, 1) if group is None else (me,):
                loss = Categorical()(model(share(x, (3, 3), part)), share(y, (3, 3), part))
                (loss / 2 if group is None else loss).backward()
        opt.step()
    return result(model, opt)


def local_products(me, group, /, method, **options):
    """One step in which every rank draws its own weights.

    Returns the curvature, and what a rank's own run would have measured: its displacement, its gradient and its mean
    of squared per-example gradients, all of the first layer.
    """
    model = wrap(network(), group)
    opt = build(method, model, sample_sync="independent", lr=0.0, initial_curvature=1.0, curvature_decay=0.5, **options)
    weight = model.module[0].weight
    mean = weight.detach().clone()
    x, y = (share(tensor, (3, 3), me) for tensor in batch(6))
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
        theta = weight.detach().clone()
        twin = copy.deepcopy(model.module)
    per_example = []
    for n in range(3):
        twin.zero_grad()
        nn.functional.cross_entropy(twin(x[n : n + 1]), y[n : n + 1]).backward()
        per_example.append(twin[0].weight.grad.clone())
    opt.step()
    return {
        "c": opt.state[weight]["curvature"]["c"].reshape(3, 3),
        "displacement": theta - mean,
        "gradient": torch.stack(per_example).mean(0),
        "squares": torch.stack(per_example).square().mean(0),
        "averaged": weight.grad.clone(),
    }


def one_bad_rank(me, group, /, method):
    """A NaN input on the last rank: what every rank raises, and whether a later step heals."""
    model = wrap(network(), group)
    opt = build(method, model)
    raised = []
    for step in range(4):
        x, y = (share(tensor, (3, 3), me) for tensor in batch(6, step))
        if step == 2 and me == 1:
            x[0, 0] = float("nan")
        before = result(model, opt)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        if step == 2:
            for parameter in model.parameters():  # as after a hook that repairs gradients: only the evidence is bad
                parameter.grad = torch.ones_like(parameter)
        try:
            opt.step()
            raised.append("")
        except NonFiniteStatisticsError as error:
            raised.append(str(error))
            assert all(torch.equal(tensor, before[name]) for name, tensor in result(model, opt).items())
    return raised, result(model, opt)


def message(me, group, /, case):
    """What a rank raises when it is used wrongly."""
    model = network()
    if case == "join":
        model = wrap(model, group)
        with model.join():
            return _message_of_step(me, model, {})
    if case == "static graph":
        return _message_of_step(me, wrap(model, group, static_graph=True), {"fisher": "ggn"})
    if case == "static graph inside":
        model = wrap(model, group, static_graph=True)
        return _message_of_step(me, model, {"fisher": "ggn"}, inner=True)
    if case == "apart":
        return _message_of_step(me, wrap(model, group), {"process_group": None})
    if case == "seed":
        return _message_of_step(me, wrap(model, group), {"seed": me})
    if case == "noise":
        with mock.patch("vogn.optim.update.source", lambda devices: 2 * me):
            return _message_of_step(me, wrap(model, group), {})
    if case == "no_sync":
        model = wrap(model, group)
        with model.no_sync():
            return _message_of_step(me, model, {})
    return _message_of_step(me, model, {"process_group": group})


def _message_of_step(me, model, options, inner=False):
    try:
        opt = build("vogn", model.module if inner else model, **options)
        x, y = (share(tensor, (3, 3), me) for tensor in batch(6))
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def collectives(me, group, /, method, **options):
    """Names of the collectives that one ``step()`` runs."""
    model = wrap(network(), group)
    opt = build(method, model, **options)
    calls = []

    def counted(name, function):
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    originals = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "all_gather_object", "broadcast")}
    x, y = (share(tensor, (3, 3), me) for tensor in batch(6))
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    try:
        for name, function in originals.items():
            setattr(dist, name, counted(name, function))
        opt.step()
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)
    return calls


def copies(me, group, /):
    """A deep copy of a distributed optimizer steps like the original; a pickled one is readable."""
    model = wrap(network(), group)
    opt = build("vogn", model)
    module, twin = copy.deepcopy((model.module, opt))
    for network_, optimizer in ((model, opt), (wrap(module, group), twin)):
        for step in range(2):
            x, y = (share(tensor, (3, 3), me) for tensor in batch(6, step))
            optimizer.zero_grad()
            with optimizer.sampled_params():
                Categorical()(network_(x), y).backward()
            optimizer.step()
    again = pickle.loads(pickle.dumps(opt))
    return result(model, opt), result(module, twin), again.replicas.size


def reduced(me, group, /, bucket):
    """Leaves of different ranks: of equal and unequal length, and of one rank only."""
    replicas = Replicas(process_group=group)
    leaves = [{"x": torch.full((2, 3), me + 1.0), "y": torch.ones(2, dtype=torch.float64)}, {}, {}]
    leaves.append({"rows": torch.full((me + 1, 2), float(me))})
    if me == 1:
        leaves[1] = {"x": torch.ones(4)}
        leaves[2] = {"rows": torch.ones(3, 5)}
    keys, dtypes = [("x", "y"), ("x", "z"), ("rows",), ("rows",)], [torch.float64] + 3 * [torch.float32]
    parts = [
        Part(leaf, keys[k], concatenate=k >= 2, dtype=dtypes[k], device=torch.device("cpu"))
        for k, leaf in enumerate(leaves)
    ]
    old, reduction.BUCKET_ELEMENTS = reduction.BUCKET_ELEMENTS, bucket
    try:
        return reduce_parts(parts, replicas.all_gather_numbers(lengths(parts), torch.device("cpu")), replicas)
    finally:
        reduction.BUCKET_ELEMENTS = old


def wait_for_nobody(me, group, /):
    """Rank 0 waits inside a collective that the others never enter."""
    if me == 0:
        dist.all_reduce(torch.ones(1), group=group)

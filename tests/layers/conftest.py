"""One check for every layer: rows against a loop over examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from dense_curvature import assert_blocks, exact, measure
from vogn import KFAC
from vogn.capture import oracle
from vogn.capture.oracle import zero_tensor_gradients
from vogn.capture.partition import Partition, partition
from vogn.capture.statistics import GGN, Empirical
from vogn.layers import find_explicit, find_rule
from vogn.layers.sites import examples_first
from vogn.likelihoods import Categorical
from vogn.linalg.layout import Layout
from vogn.linalg.rows import IndexedRows, Rows
from vogn.structures import Dense

Result = tuple[Rows | IndexedRows, Layout]
CheckRule = Callable[..., Result]


def randomise(module: nn.Module, *, seed: int, scale: float = 1.0) -> torch.Generator:
    """Draws all parameters; returns the generator, for what is drawn after them."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return source


def build_rows(
    module: nn.Module, inputs: tuple[Tensor, ...], grad_output: Callable[[Tensor], Tensor], disturb: bool = True
) -> Result:
    """Rows and layout of one call; the module's state is disturbed between forward and backward."""
    rule = find_rule(module)
    assert rule is not None
    attributes = tuple(name for name, p in module.named_parameters(recurse=False) if p.requires_grad)
    names = {a: f"net.0.{a}" for a in attributes}
    layout = rule.layout(module, names, {a: tuple(getattr(module, a).shape) for a in attributes})
    output = module(*inputs)
    with torch.no_grad():
        saved = rule.saved(module, inputs, output)
        columns = grad_output(output)
        if disturb:  # the next forward of a training loop, in the other mode
            for buffer in module.buffers():
                buffer.add_(1)
            module.train(not module.training)
        rows = rule.rows(module, attributes, saved, columns)
        if disturb:
            for buffer in module.buffers():
                buffer.sub_(1)
            module.train(not module.training)
    assert all(not t.requires_grad for t in (*saved, rows.g))
    return rows, layout


def consistent(rows: Rows | IndexedRows) -> None:
    """Every product of rows equals the same product of its dense form."""
    dense = rows.dense()
    k, n = dense.shape[:2]
    assert (rows.columns, rows.count, rows.shape) == (k, n, tuple(dense.shape[2:]))
    flat = dense.reshape(k * n, -1)
    source = torch.Generator().manual_seed(3)
    v = torch.randn(rows.shape, generator=source, dtype=dense.dtype)
    c = torch.randn((k, n), generator=source, dtype=dense.dtype)
    torch.testing.assert_close(rows.squares(), dense.square().sum((0, 1)), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rows.gram(), flat @ flat.T, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rows.matvec(v), (flat @ v.flatten()).view(k, n), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(rows.rmatvec(c), (c.flatten() @ flat).view(rows.shape), atol=1e-10, rtol=1e-10)
    explicit = torch.einsum("...knto,...nti->kn...oi", rows.g, rows.a)
    torch.testing.assert_close(explicit, dense, atol=1e-10, rtol=1e-10)


def by_row(module: nn.Module, inputs: tuple[Tensor, ...], g: Tensor) -> dict[str, Tensor]:
    """The gradient of ``<module(*inputs)[n], g[n]>`` for every ``n``."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    output = module(*inputs)
    rows = [torch.autograd.grad(output[n], list(parameters.values()), g[n], retain_graph=True) for n in range(len(g))]
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*rows, strict=True), strict=True)}


@pytest.fixture
def check_rule() -> CheckRule:
    """``check(module, *inputs, unbatched=False)``: rows equal the loop, sum to the batch gradient, products agree."""

    def check(module: nn.Module, *inputs: Tensor, unbatched: bool = False) -> Result:
        module = module.double()
        source = randomise(module, seed=1)
        for columns in (1, 3):
            cotangents: list[Tensor] = []

            def random(output: Tensor, columns: int = columns, cotangents: list[Tensor] = cotangents) -> Tensor:
                cotangents.append(torch.randn((columns, *output.shape), generator=source, dtype=torch.float64))
                return cotangents[0]

            rows, layout = build_rows(module, inputs, random)
            dense = rows.dense()
            for k, g in enumerate(cotangents[0]):
                if unbatched:  # the whole input is one example
                    names = [name for name, p in module.named_parameters() if p.requires_grad]
                    parameters = [p for p in module.parameters() if p.requires_grad]
                    gradients = torch.autograd.grad((module(*inputs) * g).sum(), parameters)
                    expected = {n: grad.unsqueeze(0) for n, grad in zip(names, gradients, strict=True)}
                elif len(inputs) == 1:
                    expected = zero_tensor_gradients(module, inputs[0], g, lambda output, g: (output * g).sum())
                else:
                    expected = by_row(module, inputs, g)
                named = {f"net.0.{name}": value for name, value in expected.items()}
                torch.testing.assert_close(dense[k], layout.pack(named), atol=1e-10, rtol=1e-10)
                for name, value in layout.unpack(dense[k]).items():
                    torch.testing.assert_close(value, named[name], atol=1e-10, rtol=1e-10)
                parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
                batch = torch.autograd.grad((module(*inputs) * g).sum(), list(parameters.values()))
                whole = {f"net.0.{n}": grad for n, grad in zip(parameters, batch, strict=True)}
                torch.testing.assert_close(dense[k].sum(0), layout.pack(whole), atol=1e-9, rtol=1e-9)
            consistent(rows)
            assert rows.shape == layout.block_shape
        return rows, layout

    return check


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """``normal(*shape, seed=0)``: a fixed float64 input."""
    return tiny_models.normal


@pytest.fixture
def nobody() -> Callable[..., Callable[..., None]]:
    """A tap that does not listen."""
    return lambda site, output: lambda *saved: None


@pytest.fixture
def check_network() -> Callable[..., None]:
    """``check(model, x)``: with a block for each layer or each parameter, the measured curvature is the dense oracle's,
    without any pass per example; and K-FAC trains the model."""

    def check(model: nn.Module, x: Tensor, rtol: float = 1e-9, atol: float = 1e-12) -> None:
        model = model.double()
        randomise(model, seed=2, scale=0.5)
        y = torch.arange(len(x)) % 3
        names = sorted(oracle.trainable(model))
        kinds: tuple[Partition, ...] = ("layer", "parameter")
        for statistic, kind in itertools.product((Empirical(), GGN()), kinds):
            found, posterior = measure(model, statistic, Categorical(), x, y, partition=kind)
            assert sorted(n for block in posterior.blocks for n in block.layout.names) == names
            assert_blocks(found, exact(model, statistic, posterior, x, y), rtol=rtol, atol=atol)
            model.zero_grad()
        for kind in kinds:
            blocks = partition(model, model.named_parameters(), structure=Dense(), fallback=Dense(), kind=kind)
            assert not any(block.has_bare for block in blocks)
        before = [p.detach().clone() for p in model.parameters()]
        kfac = KFAC(model, lr=0.1, ess=10.0, weight_decay=1e-2, damping=0.1, variational=False)
        with kfac.sampled_params():
            Categorical()(model(x), y).backward()
        kfac.step()
        assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        assert all(p.isfinite().all() for p in model.parameters())

    return check


@pytest.fixture
def check_explicit() -> Callable[..., None]:
    """``check(module, run, inputs, count)``: an explicit forward equals the stock forward, its rows equal a loop.

    ``run(forward, n)`` calls a forward on example ``n`` alone, or on the batch for ``n = None``, and returns all its
    outputs as ``(examples, features)``; ``inputs`` are tensors whose gradients are compared.
    """

    def check(module: nn.Module, run: Callable[..., Tensor], inputs: list[Tensor], count: int) -> None:
        module = module.double()
        source = randomise(module, seed=1)
        rule = find_explicit(module)
        assert rule is not None
        tapped: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

        def tap(site: str, output: Tensor) -> Callable[..., None]:
            def keep(*saved: Tensor) -> None:
                assert site not in tapped
                tapped[site] = (tuple(t.detach() for t in saved), output)

            return keep

        def stock(*args, **kwargs):
            return type(module).forward(module, *args, **kwargs)

        def explicit(*args, **kwargs):
            return rule.forward(module, tap, *args, **kwargs)

        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        wanted = [*named.values(), *inputs]
        expected, found = run(stock, None), run(explicit, None)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        columns = torch.randn((2, *found.shape), generator=source, dtype=torch.float64)
        for g in columns:
            pair = [torch.autograd.grad(out, wanted, g, retain_graph=True) for out in (found, expected)]
            for ours, theirs in zip(*pair, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        loops = {name: [[] for _ in columns] for name in named}
        for n in range(count):
            alone = run(stock, n)
            for k, g in enumerate(columns):
                grads = torch.autograd.grad(alone, list(named.values()), g[n : n + 1], retain_graph=True)
                for name, grad in zip(named, grads, strict=True):
                    loops[name][k].append(grad)
        per_example = {name: torch.stack([torch.stack(row) for row in rows]) for name, rows in loops.items()}
        covered: list[str] = []
        for name, site in rule.sites(module).items():
            attributes = tuple(path for path in site.parameters if path in named)
            if not attributes:
                continue
            layout = site.layout(module, {a: a for a in attributes}, {a: tuple(named[a].shape) for a in attributes})
            assert set(layout.names) == set(attributes)
            covered += attributes
            saved, output = tapped[name]
            grads = [torch.autograd.grad(found, output, g, retain_graph=True)[0] for g in columns]
            rows = site.rows(module, layout.names, saved, examples_first(torch.stack(grads), site.axes, 1))
            assert rows.shape == layout.block_shape and not rows.g.requires_grad and not rows.a.requires_grad
            consistent(rows)
            torch.testing.assert_close(rows.dense(), layout.pack(per_example), rtol=1e-10, atol=1e-10)
        assert sorted(covered) == sorted(named)

    return check

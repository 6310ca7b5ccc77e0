"""One check for every layer: rows against a loop over examples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vogn.capture.oracle import zero_tensor_gradients
from vogn.layers import find_rule
from vogn.linalg.layout import Layout
from vogn.linalg.rows import IndexedRows, Rows

Result = tuple[Rows | IndexedRows, Layout]
CheckRule = Callable[..., Result]


def build_rows(module: nn.Module, x: Tensor, grad_output: Callable[[Tensor], Tensor], disturb: bool = True) -> Result:
    """Rows and layout of one call; the module's state is disturbed between forward and backward."""
    rule = find_rule(module)
    assert rule is not None
    attributes = tuple(name for name, p in module.named_parameters(recurse=False) if p.requires_grad)
    names = {a: f"net.0.{a}" for a in attributes}
    layout = rule.layout(module, names, {a: tuple(getattr(module, a).shape) for a in attributes})
    output = module(x)
    with torch.no_grad():
        saved = rule.saved(module, (x,), output)
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


@pytest.fixture
def check_rule() -> CheckRule:
    """``check(module, x, unbatched=False)``: rows equal the loop, their sum the batch gradient, products agree."""

    def check(module: nn.Module, x: Tensor, unbatched: bool = False) -> Result:
        module = module.double()
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
        for columns in (1, 3):
            cotangents: list[Tensor] = []

            def random(output: Tensor, columns: int = columns, cotangents: list[Tensor] = cotangents) -> Tensor:
                cotangents.append(torch.randn((columns, *output.shape), generator=source, dtype=torch.float64))
                return cotangents[0]

            rows, layout = build_rows(module, x, random)
            dense = rows.dense()
            for k, g in enumerate(cotangents[0]):
                if unbatched:  # the whole input is one example
                    names = [name for name, p in module.named_parameters() if p.requires_grad]
                    parameters = [p for p in module.parameters() if p.requires_grad]
                    gradients = torch.autograd.grad((module(x) * g).sum(), parameters)
                    expected = {n: grad.unsqueeze(0) for n, grad in zip(names, gradients, strict=True)}
                else:
                    expected = zero_tensor_gradients(module, x, g, lambda output, g: (output * g).sum())
                named = {f"net.0.{name}": value for name, value in expected.items()}
                torch.testing.assert_close(dense[k], layout.pack(named), atol=1e-10, rtol=1e-10)
                for name, value in layout.unpack(dense[k]).items():
                    torch.testing.assert_close(value, named[name], atol=1e-10, rtol=1e-10)
                parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
                batch = torch.autograd.grad((module(x) * g).sum(), list(parameters.values()))
                whole = {f"net.0.{n}": grad for n, grad in zip(parameters, batch, strict=True)}
                torch.testing.assert_close(dense[k].sum(0), layout.pack(whole), atol=1e-9, rtol=1e-9)
            consistent(rows)
            assert rows.shape == layout.block_shape
        return rows, layout

    return check


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """``normal(*shape)``: a fixed float64 input."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw

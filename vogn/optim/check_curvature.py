"""The curvature that an optimizer would track, compared with the exact one on a few examples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vogn.capture import oracle
from vogn.capture.partition import Block
from vogn.capture.selection import StructureOption, make_selection
from vogn.distributed import inner_module
from vogn.optim.base import NaturalGradient
from vogn.optim.calling import outputs_of
from vogn.optim.report import Cell, Report
from vogn.structures import Kronecker

Pass = tuple[Tensor, oracle.LossFunction]
"""What a backward pass of the oracle starts from: one value per example, and the scalar to differentiate."""


def _percent(row: Mapping[str, Any], key: str) -> str:
    return "" if row[key] is None else f"{row[key]:.2e}"


class CurvatureCheck(Report):
    """One dictionary per block.

    ================== =========================================================================================
    ``block``          its name; ``shape``: ``(*lead, d_out, d_in)``; ``structure``: class name
    ``error``          Frobenius norm of the difference over that of the exact block (absolute where the latter is
                       zero); for blocks that are too large, the largest ``|v^T (C - C_exact) v| / (v^T C_exact v)``
                       over random ``v``; ``None`` if skipped
    ``diagonal_error`` the same of the diagonals; ``None`` where the block is not formed
    ``compared``       ``"dense"``, ``"projections"`` or ``"skipped"``
    ``note``           why not ``"dense"``, or why the structure is not the one asked for
    ================== =========================================================================================
    """

    COLUMNS: ClassVar[Mapping[str, Cell]] = {
        "block": lambda row: row["block"],
        "shape": lambda row: "x".join(map(str, row["shape"])),
        "structure": lambda row: row["structure"],
        "error": lambda row: _percent(row, "error"),
        "diagonal error": lambda row: _percent(row, "diagonal_error"),
        "compared": lambda row: row["compared"],
        "note": lambda row: row["note"],
    }
    RIGHT = frozenset({"error", "diagonal error"})


def check_curvature(
    model: nn.Module,
    likelihood: Any,
    batch: Sequence[Any],
    structure: StructureOption = None,
    *,
    statistic: Literal["ggn", "empirical"] = "ggn",
    examples: int = 8,
    max_dim: int = 1024,
    projections: int = 8,
    seed: int = 0,
    verbose: bool = True,
    **options: Any,
) -> CurvatureCheck:
    """Compare every block of the structured curvature of one batch with the exact Gauss-Newton or Fisher block.

    Everything happens in a float64 copy: the model, its gradients, buffers and mode, the likelihood and the global
    random state stay as they are. The copy runs in evaluation mode (no dropout), except for batch normalisation in
    training mode, which couples the examples: it keeps its mode, and row ``n`` is the gradient through the layer's
    output for example ``n``, as everywhere in this library (:func:`vogn.capture.oracle.zero_tensor_gradients`).

    Args:
        model: returns a tensor; takes the inputs as they are, or unpacked from a tuple or dictionary.
        likelihood: one of :mod:`vogn.likelihoods`.
        batch: ``(inputs, targets)`` with the examples along dimension 0.
        structure: as for :class:`vogn.NaturalGradient`; default Kronecker, also for blocks that no entry matches.
        statistic: ``"ggn"`` (exact Gauss-Newton) or ``"empirical"`` (Fisher with the given labels).
        examples: how many examples of the batch to use, >= 1. The oracle takes one forward and backward pass per
            example and output.
        max_dim: largest block that is formed as a matrix; larger ones are compared along random directions.
        projections: number of those directions.
        seed: of those directions.
        verbose: print the table.
        **options: further arguments of :class:`vogn.NaturalGradient`, for example ``partition="model"``.

    Returns:
        One row per block.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if the model does not return a tensor.
        UnsupportedObservationError: if batch normalisation in training mode meets a module that holds parameters beside
            children: put the model into evaluation mode.

    Example:
        >>> import torch, vogn
        >>> x, y = torch.ones(4, 3), torch.zeros(4, 2)
        >>> rows = vogn.check_curvature(
        ...     torch.nn.Linear(3, 2), vogn.likelihoods.Gaussian(noise=1.0), (x, y), "kronecker", verbose=False
        ... )
        >>> rows[0]["block"], rows[0]["compared"], rows[0]["error"] < 1e-12
        ('weight', 'dense', True)
    """
    if statistic not in ("ggn", "empirical"):
        raise ValueError(f"statistic={statistic!r}: there is an exact counterpart of 'ggn' and 'empirical' only")
    for name, value in (("examples", examples), ("max_dim", max_dim), ("projections", projections)):
        if value < (1 if name == "examples" else 0):
            raise ValueError(f"{name}={value} is out of range: it must be at least {1 if name == 'examples' else 0}")
    if isinstance(batch, Tensor | Mapping) or len(batch) != 2:
        raise ValueError("batch must be (inputs, targets)")
    inputs, targets = (tree_map(lambda leaf: _head(leaf, examples), part) for part in batch)
    twin, twin_likelihood = _twin(model), copy.deepcopy(likelihood)
    devices = {p.device for p in twin.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)), torch.enable_grad():
        sliced = _Sliced(twin, inputs)
        optimizer = _tracked(sliced, twin_likelihood, targets, structure, statistic, options)
        table, _ = optimizer._build()
        measured = _Exact(table.blocks, max_dim, projections, seed)
        count, passes = _passes(sliced, twin_likelihood, targets, statistic)
        for rows in _rows(sliced, passes):
            measured.add(rows)
        report = CurvatureCheck(measured.row(block, table.state(block)["curvature"], count) for block in table.blocks)
    report.title = f"curvature of {len(sliced.index)} examples against the exact {statistic}"
    if verbose:
        print(report)
    return report


def _head(leaf: Any, examples: int) -> Any:
    """The first examples of a tensor, detached, in double precision if it is real."""
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach()[:examples].clone()
    return leaf.double() if leaf.is_floating_point() else leaf


def _twin(model: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode, but for batch normalisation in training mode."""
    twin = copy.deepcopy(inner_module(model)).double()
    training = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    twin.eval()
    for module in training:
        module.train()
    twin.zero_grad(set_to_none=True)
    return twin


class _Sliced(nn.Module):
    """The model as a function of the numbers of its examples, so that oracles may take any of them."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        leaves: list[Tensor] = []
        tree_map(lambda leaf: leaves.append(leaf) if isinstance(leaf, Tensor) else None, inputs)
        if not leaves:
            raise ValueError("batch must be (inputs, targets), and the inputs hold no tensor")
        self.index = torch.arange(len(leaves[0]), device=leaves[0].device)

    def forward(self, index: Tensor) -> Tensor:
        inputs = tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, self.inputs)
        return outputs_of(self.model, inputs)


def _tracked(
    sliced: _Sliced,
    likelihood: Any,
    targets: Tensor,
    structure: StructureOption,
    statistic: str,
    options: dict[str, Any],
) -> NaturalGradient:
    """An optimizer that has seen the batch twice and moved nothing: the second time in a fresh eigenbasis."""
    settings: dict[str, Any] = {"lr": 0.0, "variational": False, "curvature_decay": 0.0, "refresh_every": 2**40}
    settings |= {"steps": ()}
    selection = make_selection(structure, Kronecker())
    optimizer = NaturalGradient(sliced.model, selection, statistic, **(settings | options))
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.sampled_params():
            likelihood(sliced(sliced.index), targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _passes(sliced: _Sliced, likelihood: Any, targets: Tensor, statistic: str) -> tuple[int, list[Pass]]:
    """The number of loss terms, and the passes whose per-example gradients are the rows of the exact curvature."""
    with torch.no_grad():
        outputs = sliced(sliced.index)
    count = math.prod(likelihood.term_shape(outputs))
    if statistic == "empirical":
        return count, [(targets, lambda out, y: likelihood.terms(out, y).sum())]
    columns = []
    for column in likelihood.hessian_sqrt(outputs):
        terms = column.flatten(1, -2) if column.ndim > 2 else column.reshape(len(column), 1, -1)
        for term in range(terms.shape[1]):  # the terms of an example are independent: each has columns of its own
            alone = torch.zeros_like(terms)
            alone[:, term] = terms[:, term]
            columns.append(alone.reshape(column.shape))
    return count, [(column, lambda out, c: (out * c).sum()) for column in columns]


def _rows(sliced: _Sliced, passes: Sequence[Pass]) -> Iterator[dict[str, Tensor]]:
    """Exact rows ``{name: (rows, *shape)}``, a few at a time."""
    coupled = any(m.training for m in sliced.modules() if m is not sliced and not next(m.children(), None))
    rows: Callable[..., dict[str, Tensor]] = oracle.per_example_gradients
    parts = [sliced.index[n : n + 1] for n in range(len(sliced.index))]
    if coupled:
        rows, parts = oracle.zero_tensor_gradients, [sliced.index]
    for values, scalar in passes:
        for index in parts:
            found = rows(sliced, index, values[index], scalar)
            yield {name.removeprefix("model."): gradient for name, gradient in found.items()}


class _Exact:
    """Exact blocks, or their quadratic forms along random directions, summed over rows."""

    def __init__(self, blocks: Sequence[Block], max_dim: int, projections: int, seed: int) -> None:
        self.blocks, self.max_dim = blocks, max_dim
        source = torch.Generator().manual_seed(seed)
        self.directions: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        for block in blocks:
            size, like = block.layout.numel, block.parameters[0]
            if size <= max_dim:
                self.sums[block.name] = torch.zeros(size, size, dtype=torch.float64, device=like.device)
            else:
                v = torch.randn(projections, size, generator=source, dtype=torch.float64).to(like.device)
                self.directions[block.name] = v
                self.sums[block.name] = torch.zeros(projections, dtype=torch.float64, device=like.device)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add outer products of rows."""
        for block in self.blocks:
            flat = block.layout.pack({name: rows[name] for name in block.layout.names}).flatten(1)
            if block.name in self.directions:
                self.sums[block.name] += (flat @ self.directions[block.name].T).square().sum(0)
            else:
                self.sums[block.name] += flat.T @ flat

    def row(self, block: Block, state: Mapping[str, Tensor], count: int) -> dict[str, Any]:
        """The comparison with a structure's state; the exact curvature is the mean over ``count`` loss terms."""
        exact, structure, curvature = self.sums[block.name] / count, block.structure, dict(state)
        out: dict[str, Any] = {
            "block": block.name,
            "shape": block.layout.block_shape,
            "structure": type(structure).__name__,
        }
        out |= {"error": None, "diagonal_error": None, "compared": "skipped", "note": block.note}
        directions = self.directions.get(block.name)
        if directions is None:
            dense = structure.to_dense(curvature)
            return out | {
                "error": _relative(dense, exact),
                "diagonal_error": _relative(dense.diagonal(), exact.diagonal()),
                "compared": "dense",
            }
        large = f"{block.layout.numel} parameters are more than max_dim={self.max_dim}"
        if "apply" not in structure.SUPPORTS or not len(directions):
            return out | {"note": "; ".join(filter(None, (block.note, large)))}
        v = directions.reshape(-1, *block.layout.block_shape)
        forms = (v * structure.apply(curvature, v, 0.0)).flatten(1).sum(1)
        errors = torch.stack([torch.as_tensor(_relative(f, e)) for f, e in zip(forms, exact, strict=True)])
        return out | {
            "error": float(errors.max()),
            "compared": "projections",
            "note": "; ".join(filter(None, (block.note, large))),
        }


def _relative(found: Tensor, exact: Tensor) -> float:
    """``|found - exact| / |exact|``; the absolute error where the exact value is zero."""
    scale, error = float(exact.norm()), float((found - exact).norm())
    return error / scale if scale > 0 else error

"""The coverage of a model before any optimizer is built."""

from __future__ import annotations

from typing import Any

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Statistic
from vogn.optim.base import NaturalGradient
from vogn.optim.blocks import new_table
from vogn.optim.checks import check_blocks
from vogn.optim.coverage import Coverage, coverage_of
from vogn.optim.methods import METHODS
from vogn.structures import Kronecker


def coverage(
    model: nn.Module,
    structure: StructureOption = None,
    *,
    method: str | None = None,
    statistic: str | Statistic | None = None,
    **options: Any,
) -> Coverage:
    """What an optimizer would do with every parameter: block, structure, bytes, cost. Nothing of the model is touched.

    Args:
        model: the model.
        structure: as the argument of that name of :class:`vogn.NaturalGradient` and of the named methods.
        method: a name in :data:`vogn.METHODS`, whose defaults hold; ``None``: no named method, ``structure`` (default:
            Kronecker, also for the blocks that no entry of a mapping matches) with ``statistic``.
        statistic: with ``method=None``, a name in :data:`vogn.capture.statistics.REGISTRY`; default ``"mc"``.
        **options: further arguments of the optimizer.

    Returns:
        One row per parameter; ``print`` shows a table.

    Raises:
        ValueError: if the method is unknown, or ``statistic`` is given beside it.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
        >>> for row in vogn.coverage(model, {"1": "dense"}, method="kfac"):
        ...     print(row["parameter"], row["block"], row["structure"], row["bytes"])
        0.weight 0.weight Kronecker 996
        1.weight 1.weight Dense 464
        1.bias 1.weight Dense 8
    """
    options = {"variational": False} | options
    if method is None:
        selection = make_selection(structure, Kronecker())
        optimizer = NaturalGradient(model, selection, statistic or "mc", **(options | {"lr": 0.0}))
    elif statistic is not None:
        raise ValueError(
            f"statistic={statistic!r} goes with method=None; {method} has one of its own (see its fisher=)"
        )
    elif method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
    else:
        given = {} if structure is None else {"structure": structure}
        optimizer = METHODS[method].build(model, **given, **options)
    table = new_table(optimizer)
    check_blocks(optimizer, table)
    return coverage_of(optimizer, table)

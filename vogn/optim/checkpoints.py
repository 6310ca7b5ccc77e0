"""What a checkpoint must agree about with the optimizer that loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vogn.capture.partition import Block
from vogn.errors import CheckpointError
from vogn.optim.steps import EarlierPosterior
from vogn.structures import structure_to_dict

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient

SCHEMA = 1


def describe(optimizer: NaturalGradient) -> dict[str, Any]:
    """What a checkpoint must agree about: schema, structure, statistics and partition."""
    rules = optimizer.selection.to_list()
    return {
        "schema": SCHEMA,
        "structure": structure_to_dict(optimizer.structure),
        "statistics": [statistic.NAME for statistic in optimizer.statistics],
        "partition": optimizer.partition,
    } | ({"structures": json.dumps(rules)} if rules else {})


def check_checkpoint(optimizer: NaturalGradient, blocks: list[Block], state_dict: Mapping[str, Any]) -> None:
    """The checkpoint was written by the same method over the same parameters.

    Raises:
        CheckpointError: naming what differs.
    """
    groups, mine = state_dict.get("param_groups"), describe(optimizer)
    if not isinstance(groups, list) or not isinstance(state_dict.get("state"), Mapping):
        raise CheckpointError("not an optimizer checkpoint: it needs 'state' and 'param_groups'")
    for group, saved in zip(optimizer.param_groups, groups, strict=False):
        theirs = saved.get("engine")
        if theirs != mine:
            raise CheckpointError(f"the checkpoint was written by another method: it has {theirs}, this is {mine}")
        if saved.get("param_names") != group["param_names"]:
            raise CheckpointError(
                f"the checkpoint holds other parameters: {saved.get('param_names')} instead of {group['param_names']}"
            )
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint does not fit this optimizer: it has {len(groups)} parameter groups, this has "
            f"{len(optimizer.param_groups)}"
        )
    keys = {
        parameter: key
        for group, saved in zip(optimizer.param_groups, groups, strict=True)
        for parameter, key in zip(group["params"], saved["params"], strict=True)
    }
    entries = {block: state_dict["state"].get(keys[block.parameters[0]]) for block in blocks}
    for block, entry in entries.items():
        _check_block(block, entry)
    _check_prior(optimizer, entries)


def _check_block(block: Block, entry: Any) -> None:
    """The saved curvature of a block has the tensors that its structure has here."""
    if entry is None:
        return
    if not (isinstance(entry, Mapping) and {"curvature", "memory"} <= entry.keys()):
        raise CheckpointError(
            f"the checkpoint is damaged: the state of block {block.name!r} has no curvature or memory"
        )
    here = block.structure.init(block.layout.block_shape, initial=0.0, dtype=torch.float32, device="meta")
    mine, theirs = _fixed_sizes(block, here), _fixed_sizes(block, entry["curvature"])
    if mine != theirs:
        raise CheckpointError(
            f"the checkpoint does not fit this model: the curvature of block {block.name!r} has shapes {theirs}, here "
            f"{mine}"
        )


def _check_prior(optimizer: NaturalGradient, entries: Mapping[Block, Any]) -> None:
    """Both have the posterior of earlier data as their prior, or neither."""
    found = [(block, entry["curvature"]) for block, entry in entries.items() if entry is not None]
    saved = any(key in curvature for block, curvature in found for key in block.structure.EARLIER)
    mine = any(isinstance(step, EarlierPosterior) for step in optimizer.chain)
    if saved and not mine:
        raise CheckpointError(
            "the checkpoint was written by an optimizer whose prior is the posterior of earlier data: give it to this "
            "one with vogn.continual.use_as_prior before load_state_dict"
        )
    if mine and found and not saved:
        raise CheckpointError("this optimizer has the posterior of earlier data as its prior, the checkpoint has not")


def _fixed_sizes(block: Block, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by state key, without the dimensions whose length depends on the data."""
    sizes = {}
    for key, tensor in state.items():
        if key in block.structure.EARLIER:
            continue
        shape = list(tensor.shape)
        if shape and key in block.structure.GROWS:
            del shape[block.structure.GROWS[key]]
        sizes[key] = tuple(shape)
    return sizes

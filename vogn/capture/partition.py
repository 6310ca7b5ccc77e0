"""Cutting a model's parameters into blocks, each with one structure.

Every tracked parameter ends up in exactly one block: through its layer's rule, or as a bare parameter. A block that
its structure cannot afford gets the stated fallback structure; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vogn.layers import LayerRule, find_rule
from vogn.layers.bare import parameter_layout
from vogn.linalg.layout import JoinedLayout, Layout, StackLayout
from vogn.structures.base import Structure

Partition = Literal["layer", "parameter", "model"]
PARTITIONS: tuple[Partition, ...] = ("layer", "parameter", "model")


@dataclass(frozen=True, eq=False)
class Member:
    """One source of rows: the tracked parameters of a layer, or a bare parameter (``rule is None``).

    Args:
        layout: packing of the parameters.
        module: the layer; ``None`` for a bare parameter.
        rule: the layer's rule; ``None`` for a bare parameter.
        attributes: the layer's tracked attributes in the order of the layout.
        parameters: the parameters in the order of the layout.
    """

    layout: Layout
    module: nn.Module | None
    rule: LayerRule | None
    attributes: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Parameters that share one curvature matrix.

    Args:
        name: name of the first parameter, or of the layer; unique in a model.
        layout: packing of all parameters into the block vector.
        structure: how the block's curvature is stored.
        members: one member for a layer or parameter, several for a joined block.
        note: why a fallback structure is used, or ``""``.
    """

    name: str
    layout: Layout
    structure: Structure
    members: tuple[Member, ...]
    note: str = ""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All parameters in the order of the layout."""
        return tuple(parameter for member in self.members for parameter in member.parameters)

    @property
    def joined(self) -> bool:
        """Whether the block is a group of members seen as one vector."""
        return isinstance(self.layout, JoinedLayout)

    @property
    def has_bare(self) -> bool:
        """Whether some rows need a per-example pass of their own."""
        return any(member.rule is None for member in self.members)


def is_norm(module: nn.Module) -> bool:
    """Whether a layer normalises its input; its scale and shift are the *norm parameters*."""
    rule = find_rule(module)
    return rule is not None and rule.NORMALISES


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Full names of the parameters that belong to norm layers."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if is_norm(module)
        for name, _ in module.named_parameters(recurse=False)
    }


def _members(model: nn.Module | None, tracked: Mapping[str, nn.Parameter], by_layer: bool) -> list[Member]:
    """Members in the order of the parameters; a parameter shared by several modules is a bare parameter."""
    name_of = {parameter: name for name, parameter in tracked.items()}
    owners: dict[nn.Parameter, int] = {}
    modules = list(model.modules()) if model is not None else []
    for module in modules:
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    found: dict[str, Member] = {}
    for module in modules if by_layer else []:
        rule = find_rule(module)
        own = {
            attribute: parameter
            for attribute, parameter in module.named_parameters(recurse=False)
            if parameter in name_of and owners[parameter] == 1
        }
        if rule is None or not own:
            continue
        layout = rule.layout(
            module, {k: name_of[p] for k, p in own.items()}, {k: tuple(p.shape) for k, p in own.items()}
        )
        attribute_of = {name_of[parameter]: attribute for attribute, parameter in own.items()}
        attributes = tuple(attribute_of[name] for name in layout.names)
        member = Member(layout, module, rule, attributes, tuple(own[attribute] for attribute in attributes))
        found.update(dict.fromkeys(layout.names, member))
    members: list[Member] = []
    for name, parameter in tracked.items():
        if name not in found:
            shape = tuple(parameter.shape)
            layout = StackLayout((name,), (shape,)) if by_layer else parameter_layout(name, shape)
            found[name] = Member(layout, None, None, (), (parameter,))
        if found[name] not in members:
            members.append(found[name])
    return members


def partition(
    model: nn.Module | None,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    structure: Structure,
    fallback: Structure,
    kind: Partition = "layer",
) -> list[Block]:
    """Cut named parameters into blocks.

    Args:
        model: where the layers are found; ``None`` if only bare parameters are known.
        parameters: the tracked ``(name, parameter)`` pairs.
        structure: the structure of every block that fits it.
        fallback: the structure of the others.
        kind: ``"layer"`` (weight and bias of a layer together), ``"parameter"`` (each alone) or ``"model"`` (one
            block over everything).

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in PARTITIONS:
        raise ValueError(f"partition={kind!r} is unknown; choose one of {', '.join(PARTITIONS)}")
    tracked = dict(parameters)
    if not tracked:
        return []
    members = _members(model, tracked, by_layer=kind != "parameter")
    if kind == "model":
        joined = JoinedLayout(tuple(member.layout for member in members))
        if not structure.fits(joined.block_shape):
            raise ValueError(
                f"{structure} cannot hold one block over {joined.numel} parameters; use partition='layer' or a "
                "cheaper structure"
            )
        return [Block(members[0].layout.names[0], joined, structure, tuple(members))]
    blocks = []
    for member in members:
        fits = structure.fits(member.layout.block_shape)
        note = "" if fits else f"{type(structure).__name__} does not fit {member.layout.block_shape}"
        chosen = structure if fits else fallback
        blocks.append(Block(member.layout.names[0], member.layout, chosen, (member,), note))
    return blocks

"""Cutting a model's parameters into blocks, each with one structure.

Every tracked parameter ends up in exactly one block: through its layer's rule, or as a bare parameter. A block that
its structure cannot afford gets the stated fallback structure; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from vogn.capture.forwards import is_replaced
from vogn.capture.selection import Selection, StructureKey
from vogn.layers import LayerRule, child_axes, find_explicit, find_rule
from vogn.layers.bare import parameter_layout
from vogn.layers.base import Axes
from vogn.linalg.layout import JoinedLayout, Layout, MatrixLayout, StackLayout
from vogn.structures.base import Structure

Partition = Literal["layer", "parameter", "model"]
PARTITIONS: tuple[Partition, ...] = ("layer", "parameter", "model")


@dataclass(frozen=True, eq=False)
class Member:
    """One source of rows: the tracked parameters of a layer, or a bare parameter (``rule is None``).

    Args:
        layout: packing of the parameters.
        module: the layer; ``None`` for a bare parameter.
        rule: the rule of the layer, or of one of its sites; ``None`` for a bare parameter.
        attributes: the layer's tracked attributes in the order of the layout.
        parameters: the parameters in the order of the layout.
        site: which map of a module with an explicit forward; ``""`` for an ordinary layer.
        axes: where examples are in the layer's input and output.
        uses: for a parameter that several layers share: one member per layer, whose rows add up.
    """

    layout: Layout
    module: nn.Module | None
    rule: LayerRule | None
    attributes: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    site: str = ""
    axes: Axes = "examples"
    uses: tuple[Member, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """Parameters that share one curvature matrix.

    Args:
        name: name of the first parameter, or of the layer; unique in a model.
        layout: packing of all parameters into the block vector.
        structure: how the block's curvature is stored.
        members: one member for a layer or parameter, several for a joined block.
        note: why the block is stored in another way than asked for, or ``""``.
        key: the entry of the user's mapping that chose the structure, ``None`` for the method's own.
    """

    name: str
    layout: Layout
    structure: Structure
    members: tuple[Member, ...]
    note: str = ""
    key: StructureKey | None = None

    @cached_property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All parameters in the order of the layout."""
        return tuple(parameter for member in self.members for parameter in member.parameters)

    @property
    def curvature_dtype(self) -> torch.dtype:
        """Curvature arithmetic is done in float32 at least."""
        dtype = self.parameters[0].dtype
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

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


@dataclass(frozen=True)
class _Source:
    """A place where rows come from: an ordinary layer or one site of a module, with the parameters found there."""

    module: nn.Module
    site: str
    rule: LayerRule
    axes: Axes
    own: Mapping[str, nn.Parameter]

    def member(self, attributes: Iterable[str], name_of: Mapping[nn.Parameter, str]) -> Member:
        """The member over some of the parameters."""
        own = {attribute: self.own[attribute] for attribute in attributes}
        names = {attribute: name_of[parameter] for attribute, parameter in own.items()}
        layout = self.rule.layout(self.module, names, {k: tuple(p.shape) for k, p in own.items()})
        attribute_of = {name: attribute for attribute, name in names.items()}
        ordered = tuple(attribute_of[name] for name in layout.names)
        parameters = tuple(own[attribute] for attribute in ordered)
        return Member(layout, self.module, self.rule, ordered, parameters, self.site, self.axes)


def _sources(model: nn.Module, tracked: Iterable[nn.Parameter]) -> Iterator[_Source]:
    """All places in a model where rows of tracked parameters come from."""
    known = set(tracked)
    axes: dict[nn.Module, Axes] = {}
    for module in model.modules():
        if known_axes := child_axes(module):
            children = dict(module.named_modules())
            axes |= {children[path]: kind for path, kind in known_axes.items() if path in children}
        explicit = None if is_replaced(module) else find_explicit(module)
        rule = find_rule(module)
        found: Mapping[str, nn.Parameter]
        places: list[tuple[str, LayerRule, Axes, Mapping[str, nn.Parameter]]] = []
        if explicit is not None:
            inside = dict(module.named_parameters(remove_duplicate=False))
            for site, site_rule in explicit.sites(module).items():
                found = {path: inside[path] for path in site_rule.parameters if path in inside}
                places.append((site, site_rule, site_rule.axes, found))
        elif rule is not None:
            direct = dict(module.named_parameters(recurse=False, remove_duplicate=False))
            found = {k: p for k, p in direct.items() if not rule.ATTRIBUTES or k in rule.ATTRIBUTES}
            places.append(("", rule, axes.get(module, "examples"), found))
        for site, place_rule, kind, found in places:
            own = {attribute: parameter for attribute, parameter in found.items() if parameter in known}
            if own:
                yield _Source(module, site, place_rule, kind, own)


def _members(model: nn.Module | None, tracked: Mapping[str, nn.Parameter], *, rules: bool, apart: bool) -> list[Member]:
    """Members in the order of the parameters. A parameter that several layers share is a member of its own: with rows
    where all of them have a rule, else a bare parameter.

    Args:
        model: where the layers are found.
        tracked: the parameters by name.
        rules: whether rows come from the layers' rules; else every parameter is a bare one.
        apart: whether every parameter is a member of its own.
    """
    name_of = {parameter: name for name, parameter in tracked.items()}
    owners: dict[nn.Parameter, int] = {}
    paddings: dict[nn.Parameter | None, int | None] = {}
    for module in model.modules() if model is not None else ():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            paddings[module._parameters.get("weight")] = module.padding_idx  # the attribute may be computed, or gone
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    found: dict[str, Member] = {}
    shared: dict[nn.Parameter, list[Member]] = {}
    for source in _sources(model, name_of) if model is not None and rules else ():
        alone = [attribute for attribute, parameter in source.own.items() if owners[parameter] == 1]
        for attributes in [[attribute] for attribute in alone] if apart else [alone] if alone else []:
            member = source.member(attributes, name_of)
            found.update(dict.fromkeys(member.layout.names, member))
        for attribute, parameter in source.own.items():
            if owners[parameter] > 1:
                shared.setdefault(parameter, []).append(source.member([attribute], name_of))
    for parameter, uses in shared.items():
        if len(uses) == owners[parameter] and all(use.parameters for use in uses):
            found[name_of[parameter]] = _tied(uses)
    members: list[Member] = []
    for name, parameter in tracked.items():
        if name not in found:
            shape = tuple(parameter.shape)
            layout = StackLayout((name,), (shape,)) if rules else parameter_layout(name, shape)
            if isinstance(layout, MatrixLayout) and owners.get(parameter) == 1:
                layout = replace(layout, constant=paddings.get(parameter))
            found[name] = Member(layout, None, None, (), (parameter,))
        if found[name] not in members:
            members.append(found[name])
    return members


def _tied(uses: list[Member]) -> Member:
    """One member over a shared parameter, elementwise where its layers see it in different shapes."""
    first = uses[0]
    layout = first.layout
    if any(use.layout.constants != layout.constants for use in uses) and isinstance(layout, MatrixLayout):
        layout = replace(layout, constant=None)  # a weight for some of them
    if any(use.layout != layout for use in uses):
        layout = StackLayout(layout.names, layout.shapes)
    return Member(layout, first.module, first.rule, first.attributes, first.parameters, uses=tuple(uses))


def partition(
    model: nn.Module | None,
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    structure: Structure | Selection,
    fallback: Structure,
    kind: Partition = "layer",
    rules: bool = True,
) -> list[Block]:
    """Cut named parameters into blocks.

    Args:
        model: where the layers are found; ``None`` if only bare parameters are known.
        parameters: the tracked ``(name, parameter)`` pairs.
        structure: the structure of every block that fits it, or the choice of one per block.
        fallback: the structure of the others.
        kind: ``"layer"`` (weight and bias of a layer together), ``"parameter"`` (each alone) or ``"model"`` (one
            block over everything; layers that an entry of the selection matches keep blocks of their own).
        rules: whether rows will be asked for, which come from the layers' rules; else ``"parameter"`` packs every
            parameter alike, whatever layer it is of.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in PARTITIONS:
        raise ValueError(f"partition={kind!r} is unknown; choose one of {', '.join(PARTITIONS)}")
    tracked = dict(parameters)
    if not tracked:
        return []
    selection = structure if isinstance(structure, Selection) else Selection(structure)
    members = _members(model, tracked, rules=rules or kind != "parameter", apart=kind == "parameter")
    blocks, rest = [], []
    for member in members:
        key, chosen = selection.choose(model, member.layout.names)
        if kind == "model" and key is None:
            rest.append(member)
        else:
            blocks.append(_block(member, chosen, fallback, key))
    return ([_joined(rest, selection.default)] if rest else []) + blocks


def _block(member: Member, structure: Structure, fallback: Structure, key: StructureKey | None) -> Block:
    """The block of one member, with the fallback where its structure cannot afford it."""
    shape = member.layout.block_shape
    note = structure.restriction(shape)
    if not structure.fits(shape):
        note = f"{type(structure).__name__} does not fit {shape}"
        structure = fallback
    return Block(member.layout.names[0], member.layout, structure, (member,), note, key)


def _joined(members: list[Member], structure: Structure) -> Block:
    """One block over several members."""
    layout = JoinedLayout(tuple(member.layout for member in members))
    if not structure.fits(layout.block_shape):
        raise ValueError(
            f"{structure} cannot hold one block over {layout.numel} parameters; use partition='layer' or a "
            "cheaper structure"
        )
    note = structure.restriction(layout.block_shape)
    return Block(members[0].layout.names[0], layout, structure, tuple(members), note)

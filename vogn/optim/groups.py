"""From what the user passes as ``params`` to param groups with names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from vogn.capture.partition import norm_parameter_names

NormPolicy = Literal["sampled", "point"]

STARTING_ENTRIES: Mapping[str, Any] = {
    "sampled": True,
    "anneal_power": None,
    "step_divisor": None,
    "steps_done": 0,
    "examples_done": 0,
    "examples_measured": 0,
    "overhead_met": False,
    "likelihood": "",  # JSON text: distributed checkpoints take nested dictionaries apart
}
"""Entries of a param group that are no options of the constructor."""


def build_groups(
    params: nn.Module | Iterable[Any], norms: NormPolicy, groups: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Param groups for ``torch.optim.Optimizer``; parameters of a model carry their names.

    Args:
        params: a model, parameters, ``(name, parameter)`` pairs or group dictionaries.
        norms: ``"point"`` puts a model's norm parameters into a group of their own: no noise, no prior.
        groups: further groups of a model's parameters; the rest forms the default group.

    Raises:
        ValueError: if a group names a parameter that the model does not have, or ``norms`` is unknown.
    """
    if norms not in ("sampled", "point"):
        raise ValueError(f"norms={norms!r} is unknown; choose 'sampled' or 'point'")
    extra = [dict(group) for group in groups]
    if not isinstance(params, nn.Module):
        if extra:
            raise ValueError(
                "groups= goes with a model; with parameters, pass the group dictionaries as the first argument"
            )
        items = list(params)
        return [dict(item) for item in items] if items and isinstance(items[0], Mapping) else [{"params": items}]
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in params.named_parameters()}
    if not name_of:
        raise ValueError(f"the model ({type(params).__name__}) has no parameters")
    taken: set[Tensor] = set()
    built = []
    for group in extra:
        members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        unknown = [tuple(p.shape) for p in members if p not in name_of]
        if unknown:
            raise ValueError(f"a group holds parameters that the model does not have, of shapes {unknown}")
        taken.update(members)
        built.append(group | {"params": [(name_of[p], p) for p in members]})
    point = norm_parameter_names(params) if norms == "point" else set()
    rest = [(name, p) for name, p in params.named_parameters() if p not in taken]
    main = {"params": [pair for pair in rest if pair[0] not in point]}
    quiet = [pair for pair in rest if pair[0] in point]
    built.insert(0, main)
    if quiet:
        built.append({"params": quiet, "weight_decay": 0.0, "sampled": False})
    return built


def named_members(params: Any, model: nn.Module | None, taken: int) -> list[tuple[str, Tensor]]:
    """Parameters of a new group with names: their own, else the model's, else their position.

    Args:
        params: a parameter, or parameters and ``(name, parameter)`` pairs.
        model: where names are looked up.
        taken: number of parameters in the groups before.
    """
    members = [params] if isinstance(params, Tensor) else list(params)
    known: dict[Tensor, str] = (
        {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
    )
    return [
        tuple(member) if isinstance(member, (tuple, list)) else (known.get(member, f"param{taken + k}"), member)
        for k, member in enumerate(members)
    ]

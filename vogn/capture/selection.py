"""Which structure a block gets: the method's own, or the first entry of a mapping that matches the block."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vogn.structures import REGISTRY, structure_to_dict
from vogn.structures.base import Structure

StructureKey = str | type[nn.Module]
"""A name pattern, or a module type."""
StructureOption = Structure | str | Mapping[StructureKey, Structure | str] | None
"""One structure (or its registered name) for every block, a mapping to structures, or ``None`` for the method's own."""

INHERITED = ("negative", "sharing")
"""Options that say how evidence is read; a structure given by name takes them over from the method's own structure."""


@dataclass(frozen=True)
class Selection:
    """A structure for every block.

    Args:
        default: the method's own structure.
        rules: ``(key, structure)`` in order; the first key that matches a block decides.

    A pattern (``fnmatch``, case-sensitive) is compared with the names of the block's parameters and with the names of
    all modules around them: ``"head"`` matches ``head.weight`` and ``head.0.weight``. A type matches the layer and the
    modules around it, subclasses too.
    """

    default: Structure
    rules: tuple[tuple[StructureKey, Structure], ...] = ()

    def choose(self, model: nn.Module | None, names: Iterable[str]) -> tuple[StructureKey | None, Structure]:
        """The key and structure of the block with these parameters; the key is ``None`` if no entry matches."""
        paths = _paths(names) if self.rules else []
        for key, structure in self.rules:
            if _matches(key, model, paths):
                return key, structure
        return None, self.default

    def check(self, model: nn.Module | None, names: Iterable[str], used: Iterable[StructureKey | None]) -> None:
        """Every entry decides about something.

        Args:
            model: where types are looked up.
            names: full names of all parameters, frozen ones too.
            used: the keys that :meth:`choose` has returned.

        Raises:
            ValueError: naming an entry that matches nothing, with names that are close to it, or one that is hidden
                by the entries before it.
        """
        reached, paths = list(used), _paths(names)
        for key, _ in self.rules:
            if key in reached:
                continue
            if not _matches(key, model, paths):
                raise ValueError(_nothing(key, model, paths))
            raise ValueError(
                f"structure: the entry {_label(key)} is never used: the entries before it take every block that it "
                "matches; the first match wins, so put it further up"
            )

    def to_list(self) -> list[list[Any]]:
        """Plain description of the rules for checkpoints."""
        return [
            [key if isinstance(key, str) else f"{key.__module__}.{key.__qualname__}", structure_to_dict(structure)]
            for key, structure in self.rules
        ]


def make_selection(option: Selection | StructureOption, own: Structure) -> Selection:
    """The selection that a user's ``structure=`` means for a method whose own structure is ``own``.

    Raises:
        ValueError: for an unknown name or an empty mapping.
        TypeError: for a key or value of another type.
    """
    if option is None:
        return Selection(own)
    if isinstance(option, Selection):
        return option
    if isinstance(option, Structure | str):
        return Selection(_structure(option, own, ""))
    if not isinstance(option, Mapping):
        raise TypeError(
            f"structure={option!r}: give a structure, its registered name, or a mapping from name patterns or module "
            'types to them, for example {"head": "dense", nn.Conv2d: "kronecker"}'
        )
    if not option:
        raise ValueError("structure={} has no entries; leave it out for the method's own structure")
    for key in option:
        if not (isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module))):
            raise TypeError(f"structure: the key {key!r} is neither a name pattern nor a module type")
    rules = tuple((key, _structure(value, own, f" of the entry {_label(key)}")) for key, value in option.items())
    return Selection(own, rules)


def _structure(value: Structure | str, own: Structure, where: str) -> Structure:
    if isinstance(value, Structure):
        return value
    if not isinstance(value, str):
        raise TypeError(f"structure{where}: {value!r} is neither a structure nor the registered name of one")
    if value not in REGISTRY:
        close = difflib.get_close_matches(value, REGISTRY, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"structure{where}: {value!r} is unknown{hint} registered: {', '.join(sorted(REGISTRY))}")
    kind = REGISTRY[value]
    if kind is type(own):
        return own
    mine = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}  # type: ignore[arg-type]
    theirs = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: mine[name] for name in INHERITED if name in mine and name in theirs})


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern (see :class:`Selection`) means one of these parameters, by its name or that of a module around
    it."""
    return _matches(pattern, None, _paths(names))


def _paths(names: Iterable[str]) -> list[str]:
    """The names and all their prefixes, each once."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        found.update(dict.fromkeys(".".join(parts[: k + 1]) for k in reversed(range(len(parts)))))
    return list(found)


def _modules(model: nn.Module | None, paths: Iterable[str]) -> list[nn.Module]:
    """The model and the modules with these names."""
    if model is None:
        return []
    found = [model]
    for path in paths:
        try:
            found.append(model.get_submodule(path))
        except AttributeError:  # a parameter, not a module
            continue
    return found


def _matches(key: StructureKey, model: nn.Module | None, paths: list[str]) -> bool:
    if isinstance(key, str):
        return any(fnmatchcase(path, key) for path in paths)
    return any(isinstance(module, key) for module in _modules(model, paths))


def _label(key: StructureKey) -> str:
    return repr(key) if isinstance(key, str) else key.__name__


def _nothing(key: StructureKey, model: nn.Module | None, paths: list[str]) -> str:
    """The message for an entry that matches nothing."""
    if isinstance(key, str):
        plain = key.strip("*.") or key
        close = [path for path in paths if plain and plain.lower() in path.lower()][:3]
        close = close or difflib.get_close_matches(plain, paths, 3, 0.5)
        kind = "parameter or module has a name like it"
        hint = f"; close to it: {', '.join(close)}" if close else ""
    elif model is None:
        kind, hint = "types are known", "; pass the model instead of its parameters, or use name patterns"
    else:
        kind = "layer with parameters is of this type"
        hint = f"; the types here: {', '.join(dict.fromkeys(type(m).__name__ for m in _modules(model, paths)))}"
    return f"structure: the entry {_label(key)} matches nothing: no {kind}{hint}"

"""Floor 2: matrix families that store curvature, one per file.

:data:`REGISTRY` lists them by name; :func:`structure_to_dict` and :func:`structure_from_dict` carry a configuration
through JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vogn.structures.base import Feature, Negative, Shift, Structure
from vogn.structures.compressed_gram import CompressedGram
from vogn.structures.dense import Dense
from vogn.structures.diagonal import Diagonal
from vogn.structures.diagonal_low_rank import DiagonalLowRank
from vogn.structures.eigen_kronecker import EigenKronecker
from vogn.structures.gradient_window import GradientWindow
from vogn.structures.gram import Gram
from vogn.structures.identity import Identity
from vogn.structures.interpolative_gram import InterpolativeGram
from vogn.structures.kronecker import Kronecker
from vogn.structures.local_fisher import LocalFisher
from vogn.structures.pair_gram import PairGram
from vogn.structures.sample_space import SampleSpace
from vogn.structures.sampled_gram import SampledGram
from vogn.structures.sketched_gram import SketchedGram
from vogn.structures.sketched_pair_gram import SketchedPairGram
from vogn.structures.swift_kronecker import SwiftKronecker
from vogn.structures.switched_gram import SwitchedGram, SwitchedInterpolativeGram
from vogn.structures.unit_window import UnitGradientWindow

REGISTRY: dict[str, type[Structure]] = {
    "identity": Identity,
    "diagonal": Diagonal,
    "dense": Dense,
    "kronecker": Kronecker,
    "eigen_kronecker": EigenKronecker,
    "diagonal_low_rank": DiagonalLowRank,
    "gram": Gram,
    "gradient_window": GradientWindow,
    "swift_kronecker": SwiftKronecker,
    "local_fisher": LocalFisher,
    "sketched_gram": SketchedGram,
    "sampled_gram": SampledGram,
    "compressed_gram": CompressedGram,
    "interpolative_gram": InterpolativeGram,
    "sample_space": SampleSpace,
    "switched_gram": SwitchedGram,
    "switched_interpolative_gram": SwitchedInterpolativeGram,
    "pair_gram": PairGram,
    "sketched_pair_gram": SketchedPairGram,
    "unit_gradient_window": UnitGradientWindow,
}
"""Name to structure. A third party adds its own line: ``REGISTRY["mine"] = Mine``."""


def structure_to_dict(structure: Structure) -> dict[str, Any]:
    """A JSON-ready description: ``{"name": ..., **fields}``.

    Raises:
        ValueError: if the type of the structure is not in :data:`REGISTRY`.
    """
    for name, kind in REGISTRY.items():
        if type(structure) is kind:
            return {"name": name, **asdict(structure)}  # type: ignore[call-overload]
    raise ValueError(
        f"{type(structure).__name__} is not registered, so it cannot be written to a checkpoint; "
        f"add it: vogn.structures.REGISTRY['name'] = {type(structure).__name__}"
    )


def structure_from_dict(data: Mapping[str, Any]) -> Structure:
    """Rebuild a structure from :func:`structure_to_dict`.

    Raises:
        ValueError: if the name is unknown.
    """
    fields = dict(data)
    name = fields.pop("name", None)
    if name not in REGISTRY:
        raise ValueError(f"unknown structure {name!r}; registered: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name](**fields)


__all__ = [
    "REGISTRY",
    "CompressedGram",
    "Dense",
    "Diagonal",
    "DiagonalLowRank",
    "EigenKronecker",
    "Feature",
    "Gram",
    "GradientWindow",
    "Identity",
    "InterpolativeGram",
    "Kronecker",
    "LocalFisher",
    "Negative",
    "PairGram",
    "SampledGram",
    "SampleSpace",
    "Shift",
    "SketchedGram",
    "SketchedPairGram",
    "Structure",
    "SwiftKronecker",
    "SwitchedGram",
    "SwitchedInterpolativeGram",
    "UnitGradientWindow",
    "structure_from_dict",
    "structure_to_dict",
]

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest

from vogn.structures import REGISTRY, Diagonal, Feature, Kronecker, structure_from_dict, structure_to_dict


def test_a_configuration_is_its_name_and_fields():
    assert structure_to_dict(Kronecker(damping="factored", max_dim=100)) == {
        "name": "kronecker",
        "damping": "factored",
        "sharing": "expand",
        "max_dim": 100,
    }


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_defaults_are_rebuilt_from_the_name_alone(name):
    assert structure_from_dict({"name": name}) == REGISTRY[name]()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown structure 'cauchy'; registered: .*diagonal"):
        structure_from_dict({"name": "cauchy"})


def test_unregistered_types_are_refused_with_the_remedy():
    @dataclass(frozen=True)
    class Mine(Diagonal):
        pass

    with pytest.raises(ValueError, match=r"vogn.structures.REGISTRY\['name'\] = Mine"):
        structure_to_dict(Mine())


def test_every_registered_structure_names_a_degree_per_leaf_and_known_features():
    known = set(get_args(Feature))
    for structure in REGISTRY.values():
        assert known.issuperset(structure.SUPPORTS)
        assert {"rows", "probe"}.issuperset(structure.OBSERVES)
        assert set(structure.DEGREE.values()) <= {0, 1, 2} and structure.REDUCE in ("sum", "concat")

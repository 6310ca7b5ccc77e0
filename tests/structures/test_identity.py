from __future__ import annotations

import torch

from vogn.structures import Identity


def test_evidence_and_initial_curvature_change_nothing():
    structure = Identity()
    state = structure.init((2, 3), initial=7.0, dtype=torch.float64, device="cpu")
    seen = structure.observe_probe(state, torch.ones(2, 3), torch.ones(2, 3))
    new = structure.update(state, seen, decay=0.5, weight=0.5, shift=0.0)
    assert torch.equal(structure.to_dense(new, 0.5), 1.5 * torch.eye(6, dtype=torch.float64))


def test_the_state_holds_no_numbers():
    assert Identity().bytes_per_block((1000, 1000)) == 0

"""Digests change with any bit of a tensor."""

from __future__ import annotations

import pytest
import torch

from vogn.predict.digest import digest

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_changing_any_single_element_changes_the_digest(dtype):
    values = (torch.arange(11) % 2).to(dtype)
    found = {digest(values)}
    for k in range(11):
        changed = values.clone()
        changed[k] = 1 - int(values[k].real)
        found.add(digest(changed))
    assert len(found) == 12
    assert digest(values.clone()) in found


def test_the_smallest_change_is_seen():
    x = torch.ones(3)
    assert digest(torch.nextafter(x, 2 * x)) != digest(x)


def test_order_counts_and_memory_layout_does_not():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert digest(x.T.contiguous().T) == digest(x) != digest(x.flip(0))
    assert digest(x.T) != digest(x)


def test_empty_and_scalar_tensors_have_digests():
    assert digest(torch.zeros(0, 3)) == digest(torch.zeros(0)) != digest(torch.zeros(1))
    assert digest(torch.tensor(2.0)) == digest(torch.tensor([2.0])) != digest(torch.tensor(3.0))

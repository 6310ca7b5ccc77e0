"""Names for the plain containers that travel between the floors."""

from __future__ import annotations

from torch import Tensor

State = dict[str, Tensor]
"""Curvature state of one block. Plain dictionaries survive ``torch.save`` and ``load_state_dict``."""

Observation = dict[str, Tensor]
"""What one batch tells a structure: leaves that are summed or concatenated over micro-batches."""

Shape = tuple[int, ...]
"""A block shape ``(*lead, d_out, d_in)``; leading dimensions are independent sub-blocks."""

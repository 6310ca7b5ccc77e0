"""Rows of a layer as few pairs of inputs and output gradients: the truncation of SENG's implicit form."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.linalg.eigh import eigh
from vogn.linalg.rows import GradientRow, IndexedRows, Rows


def truncated_pairs(rows: Rows | IndexedRows | GradientRow, positions: int) -> tuple[Tensor, Tensor]:
    """``a~ (K N, q, d_in)`` and ``g~ (K N, q, d_out)`` with ``sum_q g~ a~^T`` near the rows, ``k`` slow and ``n`` fast.

    ``J = sum_t g_t a_t^T = G^T A``. With the singular value decomposition ``G = U S V^T`` of the output gradients
    ``(T, d_out)`` of one example and the ``p`` largest singular values, ``J~ = G_p^T A = (U_p^T G)^T (U_p^T A)``: exact
    if ``G`` has rank ``p``, in particular with ``p >= min(T, d_out)``. ``q = min(p, T, d_out)``, or ``T`` where nothing
    is cut. The decomposition runs on the smaller side, and nothing is divided by a singular value. A mini-batch
    gradient is cut to its own ``p`` largest singular values.

    Args:
        rows: of a block without leading dimensions.
        positions: ``p``, at least 1.

    Source: Yang, Xu, Wen, Chen, Xu (2020), "Sketchy Empirical Natural Gradient Methods for Deep Learning", section 3.
    """
    if isinstance(rows, GradientRow):
        spoilt = (rows.gradient * 0.0).sum()  # NaN stays for whoever checks numbers before a step
        left, values, right = torch.linalg.svd(rows.gradient.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
        return right[:positions].unsqueeze(0), (values * left + spoilt).mT[:positions].unsqueeze(0)
    g = rows.g
    steps, d_out = g.shape[-2:]
    if steps <= positions:
        a = rows.a.expand(rows.columns, *rows.a.shape)
        return a.flatten(0, 1), g.flatten(0, 1)
    largest = g.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(largest > 0, g / largest, 0.0).nan_to_num(0.0, 0.0, 0.0)  # does not scale with the loss
    if steps <= d_out:
        left = eigh(unit @ unit.mT)[1][..., -positions:]  # U_p, (K, N, T, p)
        a, short = rows.changed(g=left, outputs=None).dense(), left.mT @ g
    else:
        right = eigh(unit.mT @ unit)[1][..., -positions:]  # V_p, (K, N, d_out, p)
        a, short = rows.changed(g=unit @ right, outputs=None).dense(), largest * right.mT
    return a.flatten(0, 1), short.flatten(0, 1)

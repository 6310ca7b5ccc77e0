"""Dense curvature of a model: what the capture says, and what a loop over examples says."""

from __future__ import annotations

import pytest

import tiny_models
from dense_curvature import (
    assert_blocks,
    block_rows,
    cross_entropy,
    empirical,
    exact,
    ggn_blocks,
    jacobian_rows,
    measure,
    measured,
    softmax_hessian,
    watch,
)
from tiny_models import labels, normal


def fill(model, seed=0):
    """Reproducible weights in double precision; scales and shifts of norm layers are away from zero."""
    return tiny_models.fill(model.double(), seed, vectors=0.1)


class Tools:
    normal = staticmethod(normal)
    labels = staticmethod(labels)
    fill = staticmethod(fill)
    watch = staticmethod(watch)
    measured = staticmethod(measured)
    block_rows = staticmethod(block_rows)
    jacobian_rows = staticmethod(jacobian_rows)
    ggn_blocks = staticmethod(ggn_blocks)
    measure = staticmethod(measure)
    empirical = staticmethod(empirical)
    exact = staticmethod(exact)
    softmax_hessian = staticmethod(softmax_hessian)
    cross_entropy = staticmethod(cross_entropy)
    assert_blocks = staticmethod(assert_blocks)


@pytest.fixture
def tools():
    return Tools

"""Calling a model with the inputs of a batch, whatever their form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def outputs_of(model: nn.Module, inputs: Any) -> Tensor:
    """``model(**inputs)`` of a dictionary, ``model(*inputs)`` of a tuple or list, else ``model(inputs)``.

    Raises:
        TypeError: if the model returns something else than a tensor.
    """
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model returns {type(outputs).__name__}; give a module that returns the tensor of the likelihood"
        )
    return outputs

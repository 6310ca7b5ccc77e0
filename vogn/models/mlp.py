"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(sizes: Sequence[int] = (64, 32, 10), activation: str = "relu") -> nn.Sequential:
    """Linear layers with an activation between them; inputs ``(N, ...)`` are flattened to ``(N, sizes[0])``.

    Weights start normal with variance ``2 / fan_in`` (He et al. 2015) for ``"relu"`` and ``1 / fan_in`` (LeCun et al.
    1998) for ``"tanh"`` and for the last layer; biases start at zero.

    Args:
        sizes: features from input to output, two or more, each >= 1.
        activation: ``"relu"`` or ``"tanh"``.

    Raises:
        ValueError: for fewer than two sizes, a size below 1 or an unknown activation.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}; give two or more sizes of at least 1, from input to output")
    make_activation = find_activation(activation)
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        linear = nn.Linear(fan_in, fan_out)
        last = index == len(sizes) - 2
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear" if last or activation == "tanh" else "relu")
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, make_activation()]
    return nn.Sequential(*layers)


def find_activation(name: str) -> type[nn.Module]:
    """The module of an activation name.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}; known activations: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]

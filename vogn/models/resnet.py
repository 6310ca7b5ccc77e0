"""Residual networks in the two forms of the paper: small images (6 n + 2 layers) and ImageNet (18, 34, 50 layers).

Source: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition", section 4.2 and table 1.
Initialisation of He et al. 2015: convolutions normal with variance ``2 / fan_out``, the classifier as
``torch.nn.Linear`` has it.
Every convolution and the pooling are padded, so no image is too small: strides round the size up, 1 stays 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vogn.models.norm import make_norm

Shortcut = Callable[[int, int, int, str], nn.Module]
Branch = Callable[[int, int, int, str], nn.Sequential]


class PadShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, new channels filled with zeros. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        assert out_channels >= in_channels
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W)`` to ``(N, out, ceil(H / stride), ceil(W / stride))``."""
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + branch(x))``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return self.activation(self.shortcut(x) + self.branch(x))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, linear classifier. Input ``(N, in_channels, H, W)``.

    Args:
        stem: first layers, ending with ``channels[0]`` channels.
        stages: residual blocks in order.
        features: channels after the last block.
        num_classes: number of outputs, >= 1.
    """

    def __init__(self, stem: nn.Module, stages: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.stem, self.stages = stem, stages
        self.classifier = nn.Linear(features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        return self.classifier(torch.mean(self.stages(self.stem(x)), (-2, -1)))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _basic(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential:
    """Two 3 x 3 convolutions."""
    return nn.Sequential(
        _conv(in_channels, out_channels, 3, stride),
        make_norm(norm, out_channels, relu=True),
        _conv(out_channels, out_channels, 3),
        make_norm(norm, out_channels, relu=False),
    )


def _bottleneck(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential:
    """1 x 1, 3 x 3, 1 x 1 with a quarter of the channels inside. The stride sits in the 3 x 3 convolution, as in common
    pretrained weights (the paper has it in the first 1 x 1); the parameter count is the same."""
    inner = out_channels // 4
    return nn.Sequential(
        _conv(in_channels, inner, 1),
        make_norm(norm, inner, relu=True),
        _conv(inner, inner, 3, stride),
        make_norm(norm, inner, relu=True),
        _conv(inner, out_channels, 1),
        make_norm(norm, out_channels, relu=False),
    )


def _pad_shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Module:
    return PadShortcut(in_channels, out_channels, stride)


def _projection_shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Module:
    return nn.Sequential(
        _conv(in_channels, out_channels, 1, stride),
        make_norm(norm, out_channels, relu=False),
    )


def _stages(
    widths: Sequence[int], depths: Sequence[int], in_channels: int, norm: str, branch: Branch, shortcut: Shortcut
) -> nn.Sequential:
    """Every stage but the first halves the resolution in its first block."""
    stages = []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = []
        for position in range(depth):
            stride = 2 if index > 0 and position == 0 else 1
            changes = stride != 1 or in_channels != width
            skip = shortcut(in_channels, width, stride, norm) if changes else nn.Identity()
            blocks.append(ResidualBlock(branch(in_channels, width, stride, norm), skip))
            in_channels = width
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}; it must be at least 1")


def _small(depth: int, num_classes: int, width: int, in_channels: int, norm: str) -> ResNet:
    _check(num_classes=num_classes, width=width, in_channels=in_channels)
    stem = nn.Sequential(_conv(in_channels, width, 3), make_norm(norm, width, relu=True))
    widths = (width, 2 * width, 4 * width)
    stages = _stages(widths, [(depth - 2) // 6] * 3, width, norm, _basic, _pad_shortcut)
    return ResNet(stem, stages, widths[-1], num_classes)


def _large(
    depths: Sequence[int], branch: Branch, expansion: int, num_classes: int, width: int, in_channels: int, norm: str
) -> ResNet:
    _check(num_classes=num_classes, width=width, in_channels=in_channels)
    stem = nn.Sequential(
        _conv(in_channels, width, 7, 2), make_norm(norm, width, relu=True), nn.MaxPool2d(3, 2, padding=1)
    )
    widths = [expansion * width * 2**stage for stage in range(4)]
    stages = _stages(widths, depths, width, norm, branch, _projection_shortcut)
    return ResNet(stem, stages, widths[-1], num_classes)


def resnet8(num_classes: int = 10, width: int = 16, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-8 for small images; see :func:`resnet20`."""
    return _small(8, num_classes, width, in_channels, norm)


def resnet14(num_classes: int = 10, width: int = 16, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-14 for small images; see :func:`resnet20`."""
    return _small(14, num_classes, width, in_channels, norm)


def resnet20(num_classes: int = 10, width: int = 16, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-20 for small images: three stages of ``width``, ``2 width``, ``4 width`` channels, option A shortcuts.

    269,722 parameters with the defaults.

    Args:
        num_classes: number of outputs, >= 1.
        width: channels of the first stage, >= 1.
        in_channels: channels of the image, >= 1.
        norm: ``"batch"``, ``"group"`` or ``"frn"`` (no coupling between examples; its threshold replaces the ReLU
            inside the branch, the ReLU after the addition stays).

    Raises:
        ValueError: for an illegal size or an unknown norm.
    """
    return _small(20, num_classes, width, in_channels, norm)


def resnet32(num_classes: int = 10, width: int = 16, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-32 for small images; see :func:`resnet20`."""
    return _small(32, num_classes, width, in_channels, norm)


def resnet18(num_classes: int = 1000, width: int = 64, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-18 in the ImageNet form; see :func:`resnet50`. 11,689,512 parameters with the defaults."""
    return _large((2, 2, 2, 2), _basic, 1, num_classes, width, in_channels, norm)


def resnet34(num_classes: int = 1000, width: int = 64, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-34 in the ImageNet form; see :func:`resnet50`. 21,797,672 parameters with the defaults."""
    return _large((3, 4, 6, 3), _basic, 1, num_classes, width, in_channels, norm)


def resnet50(num_classes: int = 1000, width: int = 64, in_channels: int = 3, norm: str = "batch") -> ResNet:
    """ResNet-50 in the ImageNet form: 7 x 7 stem, max pooling, four stages of bottlenecks, option B (1 x 1) shortcuts.

    25,557,032 parameters with the defaults. Arguments and errors as :func:`resnet20`; ``width`` is the inner width of
    the first stage.
    """
    return _large((3, 4, 6, 3), _bottleneck, 4, num_classes, width, in_channels, norm)

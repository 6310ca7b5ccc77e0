"""A small convolutional body for 32 x 32 images: features for one head or several."""

from __future__ import annotations

from torch import nn

from vogn.models.norm import make_norm


def small_convolutional(in_channels: int = 3, width: int = 16, norm: str = "frn") -> nn.Sequential:
    """Three 3 x 3 convolutions of ``width``, ``2 width`` and ``4 width`` channels, averaged over positions at the end.

    The first two have stride 2; each is followed by a norm with its activation. 23,808 parameters with the defaults.
    The norms ``"frn"`` and ``"group"`` keep no statistics, so that nothing but weights is to be remembered.

    Args:
        in_channels: channels of the image, >= 1; height and width are at least 4.
        width: channels of the first convolution, >= 1; the features are ``4 width``.
        norm: ``"frn"``, ``"group"`` or ``"batch"``.

    Returns:
        From images ``(N, in_channels, H, W)`` to features ``(N, 4 width)``.

    Raises:
        ValueError: for an illegal size or an unknown norm.
    """
    if in_channels < 1 or width < 1:
        raise ValueError(f"in_channels={in_channels}, width={width}; both must be at least 1")
    layers: list[nn.Module] = []
    for channels, multiple in ((in_channels, 1), (width, 2), (2 * width, 4)):
        stride = 1 if multiple == 4 else 2
        convolution = nn.Conv2d(channels, multiple * width, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, make_norm(norm, multiple * width, relu=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

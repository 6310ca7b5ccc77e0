"""LeNet-5 with max pooling.

Source: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", section II.B.
"""

from __future__ import annotations

from torch import nn

from vogn.models.mlp import find_activation


def lenet5(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, activation: str = "relu"
) -> nn.Sequential:
    """Two 5 x 5 convolutions (6 and 16 channels), each pooled by 2, then linear layers of 120, 84 and ``num_classes``.

    61,706 parameters with the defaults. The first convolution is padded by 2 (28 becomes the 32 of the paper); so is
    the second one if the pooled image is smaller than 6, for example for 8 x 8 digits. Unlike the paper: max pooling,
    full connections between the channels, a linear last layer.

    Args:
        num_classes: number of outputs, >= 1.
        in_channels: channels of the image, >= 1.
        image_size: height and width of the square image in pixels, >= 4.
        activation: ``"relu"`` or ``"tanh"``.

    Raises:
        ValueError: for an illegal size or an unknown activation.
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes={num_classes}, in_channels={in_channels}; both must be at least 1")
    if image_size < 4:
        raise ValueError(f"image_size={image_size}; it must be at least 4")
    make_activation = find_activation(activation)
    padding = 0 if image_size // 2 >= 6 else 2
    side = (image_size // 2 + 2 * padding - 4) // 2
    network = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        make_activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        make_activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        make_activation(),
        nn.Linear(120, 84),
        make_activation(),
        nn.Linear(84, num_classes),
    )
    for module in list(network)[:-1]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if activation == "relu" else "linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network

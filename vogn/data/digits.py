"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels, 10 classes; no download."""

from __future__ import annotations

import numpy as np

from vogn.data.raw import RawData


def load_digits(location: str, *, image_size: int | None) -> RawData:
    """The digits, values 0 to 16; ``location`` and ``image_size`` must be empty."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = digits.images.astype(np.float32)
    return RawData(train=(images, digits.target), validation=None, test=None, class_names=tuple("0123456789"))

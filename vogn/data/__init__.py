"""Small data sets as tensors: loading, checking, splitting, standardising, augmenting, corrupting, ordering."""

from vogn.data.augmentation import Augmentation, standard_augmentation
from vogn.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vogn.data.errors import DataError
from vogn.data.indexed import Indexed
from vogn.data.loading import SOURCES, load_data
from vogn.data.npz import load_inputs
from vogn.data.order import epoch_batches, epoch_order
from vogn.data.other import load_other
from vogn.data.preprocessing import Preprocessing
from vogn.data.splits import Data, Split, stratified_parts

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "SOURCES",
    "Augmentation",
    "Data",
    "DataError",
    "Indexed",
    "Preprocessing",
    "Split",
    "corrupt",
    "epoch_batches",
    "epoch_order",
    "load_data",
    "load_inputs",
    "load_other",
    "standard_augmentation",
    "stratified_parts",
]

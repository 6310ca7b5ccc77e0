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
from vogn.data.real import TASKS, load_real_data, load_task_data
from vogn.data.splits import Data, Parts, RealData, Split, stratified_parts
from vogn.data.targets import TargetScale

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "SOURCES",
    "TASKS",
    "Augmentation",
    "Data",
    "DataError",
    "Indexed",
    "Parts",
    "Preprocessing",
    "RealData",
    "Split",
    "TargetScale",
    "corrupt",
    "epoch_batches",
    "epoch_order",
    "load_data",
    "load_inputs",
    "load_other",
    "load_real_data",
    "load_task_data",
    "standard_augmentation",
    "stratified_parts",
]

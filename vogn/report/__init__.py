"""Floor 7: predictors side by side: figures, pictures, and one page that opens anywhere without a network.

``measure`` runs any number of predictors on the same examples, on inputs of another kind and on worse and worse images;
``html`` makes of it a page that holds everything that it shows. The command line's ``vogn evaluate`` is made of these.
"""

from vogn.report.figures import Drawing, drawings
from vogn.report.measuring import Measured, Measurements, Outside, Predictor, measure
from vogn.report.page import html
from vogn.report.shift import Shift, ShiftFigures
from vogn.report.tables import (
    LABEL_COLUMNS,
    REAL_COLUMNS,
    Column,
    Table,
    difference_table,
    figures_table,
    ood_table,
    shift_table,
)

__all__ = [
    "LABEL_COLUMNS",
    "REAL_COLUMNS",
    "Column",
    "Drawing",
    "Measured",
    "Measurements",
    "Outside",
    "Predictor",
    "Shift",
    "ShiftFigures",
    "Table",
    "difference_table",
    "drawings",
    "figures_table",
    "html",
    "measure",
    "ood_table",
    "shift_table",
]

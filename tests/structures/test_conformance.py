"""Every registered structure, in every configuration, keeps the promises of the interface."""

from __future__ import annotations

from vogn.structures import (
    REGISTRY,
    Dense,
    Diagonal,
    DiagonalLowRank,
    EigenKronecker,
    GradientWindow,
    Gram,
    Identity,
    Kronecker,
    LocalFisher,
    SwiftKronecker,
)
from vogn.testing import StructureConformance

CONFIGURATIONS = {
    "Identity": Identity(),
    "Dense": Dense(),
    "DenseRetract": Dense(negative="retract"),
    "Diagonal": Diagonal(),
    "DiagonalRetract": Diagonal(negative="retract"),
    "DiagonalClamp": Diagonal(negative="clamp"),
    "DiagonalAbs": Diagonal(negative="abs"),
    "Kronecker": Kronecker(),
    "KroneckerFactored": Kronecker(damping="factored"),
    "KroneckerReduce": Kronecker(sharing="reduce"),
    "KroneckerOneSided": Kronecker(max_dim=3),
    "KroneckerOneSidedReduce": Kronecker(max_dim=2, sharing="reduce"),
    "KroneckerFactoredTwoDiagonals": Kronecker(max_dim=0, damping="factored"),
    "EigenKronecker": EigenKronecker(),
    "EigenKroneckerReduce": EigenKronecker(sharing="reduce"),
    "EigenKroneckerOneSided": EigenKronecker(max_dim=3),
    "EigenKroneckerContractionOneSided": EigenKronecker(
        basis="contraction", restart=False, negative="retract", max_dim=3
    ),
    "EigenKroneckerTwoDiagonals": EigenKronecker(max_dim=0),
    "EigenKroneckerContraction": EigenKronecker(basis="contraction"),
    "EigenKroneckerCarried": EigenKronecker(basis="contraction", restart=False, negative="retract"),
    "EigenKroneckerKfacCarried": EigenKronecker(restart=False, negative="abs"),
    "DiagonalLowRank1": DiagonalLowRank(rank=1),
    "DiagonalLowRank3": DiagonalLowRank(rank=3),
    "DiagonalLowRank30": DiagonalLowRank(rank=30),
    "Gram": Gram(),
    "GramMerged": Gram(window=2),
    "GradientWindow": GradientWindow(),
    "GradientWindowFull": GradientWindow(window=2),
    "GradientWindowFixed": GradientWindow(window=4, law="fixed"),
    "GradientWindowAverage": GradientWindow(window=2, columns=3, law="average"),
    "GradientWindowColumns": GradientWindow(window=3, columns=20),
    "GradientWindowKept": GradientWindow(window=3, columns=2, law="average", keep=3),
    "GradientWindowStatic": GradientWindow(window=3, columns=2, inverse="static"),
    "GradientWindowDynamic": GradientWindow(window=3, columns=2, inverse="dynamic"),
    "LocalFisher": LocalFisher(),
    "LocalFisherReduce": LocalFisher(sharing="reduce"),
    "LocalFisherDiagonal": LocalFisher(max_dim=3),
    "LocalFisherNystrom1": LocalFisher(root="nystrom", columns=1),
    "LocalFisherNystrom3": LocalFisher(root="nystrom", columns=3),
    "LocalFisherDenmanBeavers": LocalFisher(root="denman_beavers"),
    "LocalFisherUnit": LocalFisher(scope="unit"),
    "LocalFisherUnitNystrom": LocalFisher(scope="unit", root="nystrom", columns=2),
    "LocalFisherUnitDenmanBeavers": LocalFisher(scope="unit", root="denman_beavers"),
    "SwiftKronecker": SwiftKronecker(),
    "SwiftKroneckerExactDamping": SwiftKronecker(damping="exact"),
    "SwiftKronecker2": SwiftKronecker(rank=2),
    "SwiftKronecker1ExactDampingExpand": SwiftKronecker(rank=1, damping="exact", sharing="expand"),
    "SwiftKroneckerStride": SwiftKronecker(rank=2, sharing="expand", stride=2),
    "SwiftKroneckerOneSided": SwiftKronecker(rank=2, max_dim=3),
    "SwiftKroneckerTwoDiagonals": SwiftKronecker(rank=None, max_dim=0, damping="exact"),
}

for _name, _structure in CONFIGURATIONS.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (StructureConformance,), {"structure": _structure})

for _name, _structure in CONFIGURATIONS.items():
    if getattr(_structure, "root", None) == "denman_beavers":  # it loses half of the condition number's digits
        globals()[f"Test{_name}"].tiny_shift = 1e-4


def test_every_registered_structure_is_under_test():
    assert {type(structure) for structure in CONFIGURATIONS.values()} == set(REGISTRY.values())

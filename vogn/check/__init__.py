"""Floor 6: may a posterior be trusted? Comparison with references in function space, simulation-based calibration."""

from vogn.check.posterior import PosteriorCheck, check_posterior
from vogn.check.reference import REFERENCES, Reference, Sampler, make_reference
from vogn.check.simulation import SimulationBasedCalibration, simulation_based_calibration
from vogn.check.statistics import Estimate

__all__ = [
    "REFERENCES",
    "Estimate",
    "PosteriorCheck",
    "Reference",
    "Sampler",
    "SimulationBasedCalibration",
    "check_posterior",
    "make_reference",
    "simulation_based_calibration",
]

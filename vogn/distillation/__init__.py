"""Floor 6: a posterior predictive in one network with an uncertainty head, for one forward pass per prediction."""

from vogn.distillation.distillation import distill
from vogn.distillation.distilled import Distilled

__all__ = ["Distilled", "distill"]

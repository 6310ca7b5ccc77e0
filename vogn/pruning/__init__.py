"""Floor 6: weights, units and filters that a posterior says can go, and what that costs."""

from vogn.pruning.curve import PruningCurve, PruningPoint, pruning_curve
from vogn.pruning.pruned import PrunedPosterior
from vogn.pruning.pruning import prune
from vogn.pruning.scores import SCORES, scores

__all__ = ["SCORES", "PrunedPosterior", "PruningCurve", "PruningPoint", "prune", "pruning_curve", "scores"]

"""Floor 6: exploration by posteriors: bandits, value learning, intrinsic rewards, trust regions."""

from vogn.rl.bandit_agent import BanditAgent, UniformBandit
from vogn.rl.bandit_baselines import EnsembleThompson, EpsilonGreedy, LastLayerThompson
from vogn.rl.bandit_problem import (
    BanditProblem,
    breast_cancer_bandit,
    classification_bandit,
    digits_bandit,
    wheel_bandit,
)
from vogn.rl.bandit_registry import BANDIT_AGENTS, BANDITS, BanditInfo, make_bandit_agent
from vogn.rl.bandit_runner import BanditResult, run_bandit
from vogn.rl.linear_thompson import LinearThompson
from vogn.rl.neural_bandit import NeuralBandit
from vogn.rl.neural_thompson import NeuralThompson

__all__ = [
    "BANDITS",
    "BANDIT_AGENTS",
    "BanditAgent",
    "BanditInfo",
    "BanditProblem",
    "BanditResult",
    "EnsembleThompson",
    "EpsilonGreedy",
    "LastLayerThompson",
    "LinearThompson",
    "NeuralBandit",
    "NeuralThompson",
    "UniformBandit",
    "breast_cancer_bandit",
    "classification_bandit",
    "digits_bandit",
    "make_bandit_agent",
    "run_bandit",
    "wheel_bandit",
]

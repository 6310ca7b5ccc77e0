"""Floor 6: exploration by posteriors: bandits, value learning, intrinsic rewards, trust regions."""

from vogn.rl.acktr import ACKTR, ACKTRSettings, Bonus
from vogn.rl.actor_critic_likelihood import ActorCritic
from vogn.rl.actor_critic_network import ActorCriticNetwork
from vogn.rl.agent import Agent
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
from vogn.rl.bayesian_dqn import BayesianDQN
from vogn.rl.coverage import StateCoverage
from vogn.rl.ddpg import DDPG, DDPGSettings
from vogn.rl.dqn import DQN, DQNSettings, ValueLearner
from vogn.rl.environments import EnvironmentFailure, Environments, SpaceMismatchError, Transitions
from vogn.rl.information_gain import diagonal_kl, information_gain, kronecker_kl
from vogn.rl.intrinsic_rewards import DynamicsBonus, InformationGain, PredictionError
from vogn.rl.linear_thompson import LinearThompson
from vogn.rl.neural_bandit import NeuralBandit
from vogn.rl.neural_thompson import NeuralThompson
from vogn.rl.noisy_dqn import NoisyDQN, NoisyLinear
from vogn.rl.registry import RL_AGENTS, AgentInfo, make_agent
from vogn.rl.runner import RunResult, evaluate_agent, run_agent
from vogn.rl.thompson_policy import ThompsonPolicy
from vogn.rl.watching import progress_bar

__all__ = [
    "ACKTR",
    "ACKTRSettings",
    "ActorCritic",
    "ActorCriticNetwork",
    "Agent",
    "AgentInfo",
    "BANDITS",
    "BANDIT_AGENTS",
    "BanditAgent",
    "BanditInfo",
    "BanditProblem",
    "BanditResult",
    "BayesianDQN",
    "Bonus",
    "DDPG",
    "DDPGSettings",
    "DQN",
    "DQNSettings",
    "DynamicsBonus",
    "EnsembleThompson",
    "EnvironmentFailure",
    "Environments",
    "EpsilonGreedy",
    "InformationGain",
    "LastLayerThompson",
    "LinearThompson",
    "NeuralBandit",
    "NeuralThompson",
    "NoisyDQN",
    "NoisyLinear",
    "PredictionError",
    "RL_AGENTS",
    "RunResult",
    "SpaceMismatchError",
    "StateCoverage",
    "ThompsonPolicy",
    "Transitions",
    "UniformBandit",
    "ValueLearner",
    "breast_cancer_bandit",
    "classification_bandit",
    "diagonal_kl",
    "digits_bandit",
    "evaluate_agent",
    "information_gain",
    "kronecker_kl",
    "make_agent",
    "make_bandit_agent",
    "progress_bar",
    "run_agent",
    "run_bandit",
    "wheel_bandit",
]

"""How do posteriors explore?

A tour in cells: bandits, values, information, trust regions. Open it as a notebook (the cells begin with `# %%`) or run
it as it is: the sizes are small, and the environment variable VOGN_TUTORIAL_SCALE multiplies them (10 gives learning
curves worth looking at).
"""

# %% [markdown]
# # Exploration by posteriors
#
# A learner that only repeats what has worked never finds what works better. Adding noise to its actions is the usual
# cure. A posterior over the weights is another: act on a *draw* of it, and exploration goes where the data leave
# questions open, and ends by itself where they do not.

# %%
import os

import torch

import vogn
from vogn.models import mlp
from vogn.rl import (
    ACKTR,
    ACKTRSettings,
    BayesianDQN,
    DQNSettings,
    Environments,
    InformationGain,
    NeuralThompson,
    StateCoverage,
    ThompsonPolicy,
    breast_cancer_bandit,
    evaluate_agent,
    make_bandit_agent,
    run_agent,
    run_bandit,
)

SCALE = float(os.environ.get("VOGN_TUTORIAL_SCALE", "1"))

# %% [markdown]
# ## 1. Bandits: one decision at a time
#
# Thirty measurements of cells come in; the agent says benign or malignant and learns whether it was right. Any method
# of `vogn.METHODS` keeps the posterior; its precision grows with every round.

# %%
problem = breast_cancer_bandit(round(150 * SCALE))
torch.manual_seed(0)
thompson = NeuralThompson(mlp((30, 20, 2)), problem.features, problem.arms, method="kfac")
for agent in (make_bandit_agent("uniform", problem), make_bandit_agent("linear", problem), thompson):
    print(f"{type(agent).__name__:16s} regret {run_bandit(agent, problem).cumulative_regret[-1]:.0f}")
print("entropy of the posterior", float(thompson.posterior().entropy()))

# %% [markdown]
# ## 2. Values: one draw for a whole episode
#
# In DeepSea one path of 2^N is rewarded. A new random number at every step does not get there; a draw that stays for an
# episode, with targets that are drawn too, does.

# %%
settings = DQNSettings(hidden=(), noise=0.1, discount=1.0, warmup=60, update_every=2, target_every=20)
diver = BayesianDQN(Environments("DeepSea-6"), settings, options={"lr": 0.1, "damping": 0.01})
result = run_agent(diver, "DeepSea-6", steps=round(450 * SCALE))
print("treasure found at step", result.first_return_above(0.5))
print("return of the best actions", evaluate_agent(diver, "DeepSea-6", episodes=1)[0])

# %% [markdown]
# The posterior is an object of its own. Saved, it acts wherever a model of stable-baselines3 does:

# %%
policy = ThompsonPolicy(diver.network, diver.posterior(), seed=1)
observation = Environments("DeepSea-6").observations.numpy()
print("drawn", policy.predict(observation)[0], "mean", policy.predict(observation, deterministic=True)[0])

# %% [markdown]
# ## 3. Information as a reward, within a trust region
#
# A model of the environment has a posterior too. How much a step taught it is a KL divergence, in closed form, and
# that is what ACKTR is paid here beside the goal's reward.

# %%
task = "SparseMountainCarContinuous"
environments = Environments(task, count=4)
bonus = InformationGain(environments, method="kfac")
explorer = ACKTR(environments, ACKTRSettings(rollout=50, shared=False, entropy_weight=0.0), bonus=bonus)
cells = StateCoverage([-1.2, -0.07], [0.6, 0.07])
run_agent(explorer, task, steps=round(1000 * SCALE), coverage=cells)
print(f"{len(cells)} of 400 cells seen; the last step moved the policy by {explorer.last_kl:.4f} nats")

# %% [markdown]
# ## 4. An environment of your own
#
# Anything with Gymnasium's `reset` and `step` will do: give `Environments` a function that makes one. Runs with a
# folder can be killed at any time and go on exactly where they were.

# %%
balancer = ACKTR(Environments("CartPole-v1", count=8))
run_agent(balancer, "CartPole-v1", steps=round(2400 * SCALE))
print("CartPole", evaluate_agent(balancer, "CartPole-v1", episodes=3))
print("made with vogn", vogn.__version__)

"""How does a network learn task after task, and what keeps the first ones?

A tutorial in cells (``# %%``): open it in an editor that runs them one by one, or run it from top to bottom.
"""

# %% Tasks
# Four orders of the pixels of small digits, learnt one after the other; ten classes in each.
import tempfile
import warnings

import torch
from torch import nn

import vogn
from vogn.continual import (
    CONTINUAL_METHODS,
    ContinualMethod,
    MultiHead,
    StoppedError,
    permuted_tasks,
    run_tasks,
    split_tasks,
    use_as_prior,
)
from vogn.data import load_data
from vogn.likelihoods import Categorical, Gaussian
from vogn.models import mlp

warnings.filterwarnings("ignore")  # posteriors of a network that is larger than its data
EPOCHS = 4
data = load_data("digits")
arrays = (data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y)
tasks = permuted_tasks(*arrays, tasks=4)


def network(seed=0):
    torch.manual_seed(seed)
    return mlp((64, 60, 10))


def show(name, result):
    print(f"\n{name}: average accuracy {result.metrics['average_accuracy']:.3f}")
    for row in result.matrix:  # after which task; tested on which task
        print("  " + " ".join(f"{value:.2f}" for value in row))


# %% Forgetting
# Plain training: the first column falls from row to row.
finetune = CONTINUAL_METHODS["finetune"].build(network(), Categorical())
show("plain training", run_tasks(finetune, tasks, epochs=EPOCHS))

# %% Bayes' rule forgets nothing
# A linear model with Gaussian noise: the posterior of the first half of the data, as the prior of the second, gives
# the posterior of all of it. Each half is one natural-gradient step of rate 1, which is exact for a quadratic.
x, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
linear, noise, posterior = nn.Linear(3, 1, bias=False).double(), Gaussian(noise=0.5), None
for half in (slice(0, 15), slice(15, 30)):
    opt = vogn.NaturalGradient(
        linear, vogn.structures.Dense(), "ggn", lr=1.0, ess=15, weight_decay=1.0 / 15, momentum=0.0,
        curvature_decay=0.0, variational=False,
    )  # fmt: skip
    if posterior is not None:
        use_as_prior(opt, posterior)
    opt.zero_grad()
    with opt.sampled_params():
        noise(linear(x[half]), y[half]).backward()
    opt.step()
    posterior = opt.posterior()
precision = x.T @ x / 0.25 + torch.eye(3, dtype=torch.float64)  # ridge regression on everything
mean = torch.linalg.solve(precision, x.T @ y / 0.25).T
print("\nlinear model, two halves against all data:", bool(torch.allclose(linear.weight, mean)))

# %% A posterior as the next prior
# The same in a network, with a diagonal posterior (VOGN) and with Kronecker factors (noisy K-FAC).
for name, options in (("vcl", {"temperature": 0.1}), ("vcl-kfac", {})):
    learner = CONTINUAL_METHODS[name].build(network(), Categorical(), samples=4, **options)
    show(name, run_tasks(learner, tasks, epochs=EPOCHS))
print("nats of entropy left:", round(float(learner.posterior.entropy()), 1))

# %% Penalties
# A quadratic around the old weights. Strength 1 is Bayes' rule; firmer is often better, as losses far from the old
# weights grow faster than that. Diagonal (EWC) against Kronecker factors.
for name in ("ewc", "kronecker"):
    method = CONTINUAL_METHODS[name].build(network(), Categorical(), strength=10.0)
    show(name, run_tasks(method, tasks, epochs=EPOCHS))

# %% Memories
# Forty inputs of every task; the network shall still say of them what it said.
for name in ("kpriors", "replay"):
    method = CONTINUAL_METHODS[name].build(network(), Categorical(), memory=40)
    show(name, run_tasks(method, tasks, epochs=EPOCHS))

# %% Heads
# Two digits at a time, and a head for every pair, which is told at test time: little is left to forget.
pairs = split_tasks(*arrays, scenario="task")
torch.manual_seed(0)
heads = MultiHead(nn.Sequential(mlp((64, 60)), nn.ReLU()), 60, [task.outputs for task in pairs])
show("a head each", run_tasks(CONTINUAL_METHODS["finetune"].build(heads, Categorical()), pairs, epochs=EPOCHS))


# %% A method of your own
# Say what is kept of a task, and what it costs the next ones, in nats of the sum over examples.
class Anchor(ContinualMethod):
    """All weights alike: half the squared distance to where the latest task ended."""

    anchor = None

    def penalty(self):
        if self.anchor is None:
            return self.zero()
        return 0.5 * 100.0 * sum((p - self.anchor[name]).square().sum() for name, p in self.weights().items())

    def after_task(self, loader):
        self.anchor = self.copy_of_weights()


show("an anchor", run_tasks(Anchor(network(), Categorical()), tasks, epochs=EPOCHS))

# %% Interrupts
# With a folder, a run that was stopped goes on where it was and ends with the same bits.
with tempfile.TemporaryDirectory() as folder:

    def ewc():
        return CONTINUAL_METHODS["ewc"].build(network(), Categorical())

    asked = iter(range(1000))
    try:
        run_tasks(ewc(), tasks, epochs=EPOCHS, folder=folder, should_stop=lambda: next(asked) == 130)
    except StoppedError as stopped:
        print(f"\n{stopped}")
    resumed, whole = run_tasks(ewc(), tasks, epochs=EPOCHS, folder=folder), run_tasks(ewc(), tasks, epochs=EPOCHS)
    print("the same as without a stop:", resumed == whole)

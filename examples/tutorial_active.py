"""Which examples should somebody label next, and how does a posterior tell?

A tutorial in cells (percent format): run it as a script, or cell by cell in an editor or notebook.
"""

# %% [markdown]
# Labels are dear, inputs are not. A posterior over weights knows what it does not know: where its weight samples
# disagree, a label tells something. This tutorial asks for labels by hand first, then in a loop that survives a kill.

# %% A pool of inputs without labels, and somebody who knows them.
import tempfile
import warnings
from pathlib import Path

import torch
from sklearn.datasets import make_friedman1

import vogn
from vogn.active import ActiveLearner, BatchBALD, NaturalGradientMethod, bald, batchbald, entropy
from vogn.active.recipes import RECIPES
from vogn.data import load_data
from vogn.likelihoods import Categorical, Gaussian
from vogn.models import mlp

warnings.filterwarnings("ignore")  # posteriors of a network that is larger than its data
data = load_data("digits")
pool, answers = data.train.x.flatten(1), data.train.y
test = (data.test.x.flatten(1), data.test.y)
print(f"{len(pool)} images, 20 of them will have labels")

# %% A first posterior: query(), label(), update() by hand. The first query is random: nobody knows anything yet.
learner = ActiveLearner(
    lambda: mlp((64, 50, 10)),
    NaturalGradientMethod("kfac", steps=100, update_steps=40, temperature=0.1, **RECIPES["kfac"]),
    pool,
    "bald",
    likelihood=Categorical(),
    initial=20,
    query_size=10,
    samples=16,
    test=test,
)
query = learner.query()
learner.label(answers[query])
row = learner.update()
print(f"{row['labels']} labels: accuracy {row['accuracy']:.3f}")

# %% Two kinds of uncertainty. Entropy: the label is unsure, for any reason. BALD: the weight samples are sure, each of
# something else. Only the second is something that a label of this image can teach.
found = vogn.predict(learner.model, learner.posterior, pool, samples=16, likelihood=Categorical())
both = torch.stack([entropy(found.samples), bald(found.samples)])
print(f"correlation of entropy and BALD over the pool: {torch.corrcoef(both)[0, 1]:.2f}")

# %% Ten images with the largest BALD say much the same. BatchBALD counts what is said twice only once.
largest = bald(found.samples).topk(10).indices
alone = batchbald(found.samples[:, largest], 10, configurations=1000)
together = batchbald(found.samples, 10, configurations=1000)
print(f"information of ten labels: {alone.gains.sum():.2f} nats by BALD, {together.gains.sum():.2f} by BatchBALD")

# %% What the learner would choose now, without any consequence; then the same in earnest.
print("would ask for", learner.select(5).indices.tolist())
for _ in range(2):
    query = learner.query()
    learner.label(answers[query])
    row = learner.update()
    print(f"{row['labels']} labels: accuracy {row['accuracy']:.3f}")

# %% A loop with a folder. Every label is on disk before the next is asked for; a run that was killed goes on.


def asker(folder: Path, oracle) -> ActiveLearner:
    method = NaturalGradientMethod("kfac", steps=100, update_steps=40, temperature=0.1, **RECIPES["kfac"])
    return ActiveLearner(
        lambda: mlp((64, 50, 10)), method, pool, BatchBALD(kept=300), likelihood=Categorical(), oracle=oracle,
        initial=20, query_size=10, samples=16, test=test, folder=folder,
    )  # fmt: skip


def tired(numbers, inputs):
    """A person who leaves in the middle of the first query."""
    for count, number in enumerate(numbers):
        if count == 7:
            raise KeyboardInterrupt
        yield answers[number]


with tempfile.TemporaryDirectory() as name:
    try:
        asker(Path(name), tired).run(2)
    except KeyboardInterrupt:
        print("interrupted with", len((Path(name) / "labels.jsonl").read_text().splitlines()), "labels on disk")
    result = asker(Path(name), lambda numbers, inputs: answers[numbers]).run(2)
    print("continued:", result.labels, [f"{value:.3f}" for value in result.curve("accuracy")])

# %% Real targets: an observation tells 0.5 log(1 + variance / noise^2) nats about the weights. It is largest at the
# rim of the pool, where networks extrapolate; "epig" asks what predictions for the whole pool need.
inputs, numbers = make_friedman1(400, n_features=5, noise=0.5, random_state=0)
x = torch.tensor(2 * inputs - 1, dtype=torch.float32)
y = torch.tensor((numbers - numbers.mean()) / numbers.std(), dtype=torch.float32).unsqueeze(1)
for acquisition in ("random", "information_gain", "epig"):
    asking = ActiveLearner(
        lambda: mlp((5, 30, 1)), NaturalGradientMethod("kfac", steps=150, update_steps=40, **RECIPES["kfac"]), x[:300],
        acquisition, likelihood=Gaussian(noise=0.3), oracle=lambda n, inputs: y[n], initial=20, query_size=10,
        samples=16, test=(x[300:], y[300:]),
    )  # fmt: skip
    curve = asking.run(5).curve("rmse")
    asked = float(x[asking.numbers[20:]].abs().amax(1).mean())
    print(f"{acquisition:17s} rmse", [f"{value:.2f}" for value in curve], f"distance from the centre {asked:.2f}")

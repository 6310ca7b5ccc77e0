"""How many labels does a posterior save that asks for them itself?

Handwritten digits whose labels cost something. A network with noisy K-FAC begins with 20 of them, and asks for 10 more
at a time: at random, or those that together tell most about its weights.
"""

from __future__ import annotations

import warnings

from vogn.active import ActiveLearner, BatchBALD, NaturalGradientMethod
from vogn.active.recipes import RECIPES
from vogn.data import load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

ROUNDS = 7


def main() -> None:
    warnings.filterwarnings("ignore")  # posteriors of a network that is larger than its data
    data = load_data("digits")
    x, y = data.train.x.flatten(1), data.train.y
    results = {}
    for acquisition in ("random", "bald", BatchBALD(kept=300)):
        learner = ActiveLearner(
            lambda: mlp((64, 40, 10)),
            NaturalGradientMethod("kfac", steps=150, update_steps=50, temperature=0.1, **RECIPES["kfac"]),
            x,
            acquisition,
            likelihood=Categorical(),
            oracle=lambda numbers, inputs: y[numbers],  # a person, in earnest
            initial=20,
            query_size=10,
            samples=32,
            test=(data.test.x.flatten(1), data.test.y),
        )
        name = acquisition if isinstance(acquisition, str) else "batchbald"
        results[name] = learner.run(ROUNDS)
    print("labels     " + "".join(f"{count:7d}" for count in results["random"].labels))
    for acquisition, result in results.items():
        print(f"{acquisition:11s}" + "".join(f"{value:7.3f}" for value in result.curve("accuracy")))


if __name__ == "__main__":
    main()

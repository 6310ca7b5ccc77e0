"""The ratios that are aimed at, and where the time goes in rows that miss them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.contenders import ADAMW, QUARTER, SGD


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at.

    Args:
        question: file of results.
        case: network.
        row: what is measured.
        reference: what it is compared with.
        ratio: at most this.
        note: where the time goes if it is more.
    """

    question: str
    case: str
    row: str
    reference: str
    ratio: float
    note: str = ""


ELEMENTWISE = (
    "of a step of IVON on the MLP, 24.0 ms beside AdamW's 16.0, the draw takes 1.9 ms (half of it normal numbers), "
    "its undoing 0.5, the evidence 0.8, the two passes of the step 2.4 where AdamW's one takes 1.3, and 3.2 more "
    "than AdamW's are in no part: Python between calls, which finds cold caches after the products of the layers"
)
IMAGES = (
    "weight gradients of single examples, whose sums are the layers' own, and their squares; the batch norms' inputs "
    "normalised once more; sampling"
)
POSITIONS = (
    "products that form the gradients of the examples, whose sums are the layers' own, and their squares; the layer "
    "norms' inputs normalised once more"
)
VECTORS = (
    "the products of squared rows cost as many operations as the weight gradients, 5.8 ms of the 29.0 of a step; "
    "since the first layer needs no input gradient, that alone is 1.39"
)
CONVOLUTION_FACTORS = (
    "an observing step is 2.9 plain ones, 2.1 with statistics of a quarter: the factors, and a backward pass for the "
    "drawn labels, which goes through the whole batch in any case; charged every tenth step, this is most of the excess"
)
POSITION_FACTORS = (
    "products with the inverses of both factors (solve, below) take o^2 i + o i^2 multiply-adds for a layer, in "
    "every step: 3.67e9 beside the network's 10.7e9 with 1024 positions, 0.30 of SGD's step at the rate of products"
    " that is measured under K-FAC's factors; those of the factors by halves add 0.05 in every tenth step's share, "
    "Cholesky's inverses 0.01 in every hundredth's: 1.36 is the least, so that no schedule of the statistics "
    "reaches the aim"
)
RANK = (
    "2 rank weight-gradient products per layer, J U and J^T c: on the MLP sixteen of 5.8 ms each, which alone are 3.3 "
    "of VOGN's steps; networks with positions form the rows twice more instead. Draws and solves, passes "
    "over eight columns per parameter, are a third of a step on the MLP and a fifth of one on the GPT"
)
DRAWS = (
    "the draws alone take 0.29 of the forward passes, 0.20 of it normal numbers (rows below): a batch of 128 is small "
    "for 1.9 million weights; the rest is products with weights that no cache holds yet, and averages of predictions"
)
POINT = (
    "the draws alone take 0.05 of the forward passes over only 1024 positions (a row below); the rest is averages of "
    "the predictions, their entropies, and Python"
)
IMAGE_DRAWS = "the draws alone take 0.01 of the forward passes (a row below); the rest is Python, once for every sample"
BANDS = (
    "the bound is half of the operations of plain products, at the rate of large square ones, and nothing else. torch "
    "has no product that forms one half only; ours goes in bands, 0.63 of the operations, and copies mirror images, a "
    "quarter of the time on the MLP, where products over 128 rows also run below that rate. The BLAS behind scipy took "
    "half of a plain product's time in a trial, mirror images not counted; it keeps threads of its own beside torch's, "
    "so that it is not used"
)
LATER = ("step_time_noise", "step_time_quarter")
"""Files of results that go before ``step_time`` where they have the row: measured later, in more rounds."""
DYNAMO = "the library's own modules"
VOGN = "vogn (variational)"
GRADIENT = "forward and backward"
HALVES, HALVES_NUMBER = "symmetric products", "symmetric products at that rate, x gradient"
"""The bound of K-FAC's factors as a reference, and as a number among the results."""
IVON, VADAM, SLANG = "ivon (variational)", "vadam (variational)", "slang rank 8 (variational)"
FACTORS = "factors, empirical"
DRAWN, PASSES = "predict, diagonal", "32 forward passes"
TARGETS = (
    Target("step_time", "resnet20", IVON, ADAMW, 1.05, ELEMENTWISE),
    Target("step_time", "mlp", IVON, ADAMW, 1.45, ELEMENTWISE),
    Target("step_time", "gpt", IVON, ADAMW, 1.10, ELEMENTWISE),
    Target("step_time", "resnet20", VADAM, ADAMW, 1.05, ELEMENTWISE),
    Target("step_time", "mlp", VADAM, ADAMW, 1.45, ELEMENTWISE),
    Target("step_time", "gpt", VADAM, ADAMW, 1.10, ELEMENTWISE),
    Target("step_time", "resnet20", VOGN, SGD, 1.75, IMAGES),
    Target("step_time", "mlp", VOGN, SGD, 1.85, VECTORS),
    Target("step_time", "gpt", VOGN, SGD, 1.5, POSITIONS),
    Target("per_example", "mlp", "vogn", GRADIENT, 1.35, VECTORS),
    Target("per_example", "resnet20", "vogn", GRADIENT, 1.6, IMAGES),
    Target("per_example", "gpt", "vogn", GRADIENT, 1.4, POSITIONS),
    Target("step_time", "resnet20", "kfac 10/100 (deterministic)", SGD, 1.35, CONVOLUTION_FACTORS),
    Target("step_time", "resnet20", QUARTER, SGD, 1.15, CONVOLUTION_FACTORS),
    Target("step_time", "gpt", "kfac 10/100 (deterministic)", SGD, 1.3, POSITION_FACTORS),
    Target("step_time", "resnet20", "kfac 10/100 (variational)", SGD, 1.5, CONVOLUTION_FACTORS),
    Target("curvature_refresh", "mlp", FACTORS, HALVES, 1.3, BANDS),
    Target("curvature_refresh", "resnet20", FACTORS, HALVES, 1.3, BANDS),
    Target("curvature_refresh", "gpt", FACTORS, HALVES, 1.3, BANDS),
    Target("step_time", "mlp", SLANG, VOGN, 1.5, RANK),
    Target("step_time", "resnet20", SLANG, VOGN, 1.5, RANK),
    Target("step_time", "gpt", SLANG, VOGN, 1.5, RANK),
    Target("predictive", "mlp", DRAWN, PASSES, 1.05, DRAWS),
    Target("predictive", "resnet20", DRAWN, PASSES, 1.05, IMAGE_DRAWS),
    Target("predictive", "gpt", DRAWN, PASSES, 1.05, POINT),
    Target("import_time", "import", "import vogn", "import torch", 1.5, DYNAMO),
)


def measured(
    target: Target, results: Mapping[str, Mapping[str, Any]], *, two_threads: bool = False
) -> tuple[float, float, float] | str:
    """The ratio and its quartiles, or why there is none."""
    question = target.question + ("_two_threads" if two_threads else "")
    files = [name for name in LATER if question == "step_time"] + [question]
    lines = (results.get(name, {}).get(target.case, {}).get("lines", {}).get(target.row) for name in files)
    line = next((line for line in lines if line is not None), None)
    if line is None:
        return "not measured"
    if "skipped" in line:
        return str(line["skipped"])
    found = line["ratio"].get(target.reference)
    if target.reference == HALVES:
        bound = results[question][target.case]["numbers"][HALVES_NUMBER]
        found = [ratio / bound for ratio in line["ratio"][GRADIENT]]
    return "not measured" if found is None else (found[0], found[1], found[2])

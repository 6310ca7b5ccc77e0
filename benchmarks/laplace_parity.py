"""Is our Laplace approximation the one of laplace-torch, where both have it?

Precision matrices and log marginal likelihoods of a small trained network in float64, for both likelihoods, all three
structures and both subsets; relative differences, and failure above 1e-5. Conversions:

- laplace-torch sums curvature over the data and adds the prior precision to the sum; ``vogn`` keeps the mean and the
  number of loss terms apart. The precisions are the same numbers.
- its Kronecker blocks are the single parameters: ``partition="parameter"``.
- its Kronecker factors of several batches are sums of products; one batch is compared.
- its regression likelihood is the Gaussian of one ``sigma_noise``: ``vogn.likelihoods.Gaussian(noise=...)``.

    pip install --no-deps laplace-torch backpack-for-pytorch curvlinops-for-pytorch asdfghjkl einops einconv \\
        opt_einsum unfoldNd
    python -m benchmarks.laplace_parity
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, write_cell
from vogn.likelihoods import Categorical, Gaussian

RESULTS = Path(__file__).parent / "results" / "laplace_parity" / "summary.json"
TOLERANCE, PRIOR, NOISE = 1e-5, 2.0, 0.7
STRUCTURES = {"diag": "diagonal", "kron": "kronecker", "full": "dense"}


def trained(task: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network after some steps of Adam, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    y = torch.randint(3, (40,)) if task == "classification" else torch.randn(40, 3, dtype=torch.float64)
    likelihood, adam = likelihood_of(task), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        adam.zero_grad()
        likelihood(model(x), y).backward()
        adam.step()
    return model, x, y


def likelihood_of(task: str) -> Any:
    """Of the task."""
    return Categorical() if task == "classification" else Gaussian(noise=NOISE)


def ours(model: nn.Module, x: Tensor, y: Tensor, task: str, structure: str, subset: str) -> tuple[Tensor, float]:
    """Precision in the order of the network's parameters, and the evidence."""
    partition = "model" if structure == "full" else "parameter"
    likelihood = likelihood_of(task)
    posterior = vogn.laplace(
        model,
        likelihood,
        [(x, y)],
        structure=STRUCTURES[structure],
        subset=subset,
        prior_precision=PRIOR,
        partition=partition,
    )
    precision = torch.block_diag(*posterior.precision_matrices().values())
    order = {name: p.detach().clone() for name, p in model.named_parameters() if name in posterior.names}
    start = 0
    for name, tensor in order.items():
        order[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float64).view_as(tensor)
        start += tensor.numel()
    back = posterior.flatten(order).long().argsort()
    log_likelihood = -float(likelihood(model(x), y).detach()) * len(x)
    return precision[back][:, back], float(vogn.log_evidence(posterior, log_likelihood))


def theirs(
    laplace: Any, model: nn.Module, x: Tensor, y: Tensor, task: str, structure: str, subset: str
) -> tuple[Tensor, float]:
    """The same of laplace-torch."""
    options = {} if task == "classification" else {"sigma_noise": NOISE}
    fitted = laplace.Laplace(
        model, task, subset_of_weights=subset, hessian_structure=structure, prior_precision=PRIOR, **options
    )
    data = torch.utils.data.TensorDataset(x, y)
    fitted.fit(torch.utils.data.DataLoader(data, batch_size=len(x)))
    precision = fitted.posterior_precision
    if structure == "kron":
        precision = precision.to_matrix()
    return (precision.diag() if structure == "diag" else precision), float(fitted.log_marginal_likelihood())


def main() -> int:
    """Print and write the table; 1 if a difference is too large."""
    try:
        import laplace
    except ImportError as error:
        sys.exit(f"laplace-torch, or what it needs, is not installed ({error}); see the top of {Path(__file__).name}")
    rows = []
    print("| task | subset | structure | precision, relative difference | log evidence, ours | theirs |")
    print("|---|---|---|---|---|---|")
    for task, subset, structure in itertools.product(
        ("classification", "regression"), ("all", "last_layer"), STRUCTURES
    ):
        model, x, y = trained(task)
        (found, evidence), (expected, reference) = (
            ours(model, x, y, task, structure, subset),
            theirs(laplace, model, x, y, task, structure, subset),
        )
        error = float((found - expected).abs().max() / expected.abs().max())
        rows.append(
            {
                "task": task,
                "subset": subset,
                "structure": structure,
                "precision": error,
                "evidence": [evidence, reference],
            }
        )
        print(f"| {task} | {subset} | {structure} | {error:.1e} | {evidence:.6f} | {reference:.6f} |")
    write_cell(RESULTS, {"rows": rows, "environment": environment(), "command": "python -m benchmarks.laplace_parity"})
    worst = max(max(r["precision"], abs(r["evidence"][0] / r["evidence"][1] - 1)) for r in rows)
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

"""What do K-FAC's factors and their factorisation cost, as multiples of one gradient?

Rows, each the processor time of the named work alone:

- ``factors, ...``: forward, backward and factors of all layers, minus forward and backward (``empirical``: from the
  same backward; ``mc``: with sampled labels and a backward of their own);
- ``running average``: the blend of new into old factors;
- ``factors as plain products``: ``a^T a`` and ``g^T g`` of the same sizes, as matrix products of random numbers. Half
  of it is the bound of a product that knows its result is symmetric;
- ``kfac refresh``, ``ekfac refresh``: the eigendecompositions of all layers, once;
- ``cholesky inverses``: of matrices of the same sizes, for comparison;
- ``curvlinops``: its K-FAC from scratch (empirical Fisher, its own forward and backward included).

    python -m benchmarks.speed.curvature_refresh
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.speed.cases import Case
from benchmarks.speed.measuring import (
    arguments_of,
    call_seconds,
    in_turn,
    limit_memory,
    lines_of,
    quartiles,
    short,
)
from benchmarks.speed.peers import load
from benchmarks.speed.questions import over_cases, ready
from benchmarks.speed.report import table
from benchmarks.speed.targets import GRADIENT, HALVES_NUMBER
from vogn.likelihoods import Categorical

Work = Callable[[], Any]


class Tracked:
    """An optimizer of the registry after two steps, and its parts."""

    def __init__(self, case: Case, method: str, fisher: str) -> None:
        self.model, (self.x, self.y) = case.model(), case.batch()
        self.likelihood = Categorical()
        self.optimizer = vogn.METHODS[method].build(
            self.model, lr=1e-5, ess=5e6, variational=False, fisher=fisher, refresh_every=1
        )
        for _ in range(2):
            self.context()
            self.optimizer.step()
        self.table, self.collector = self.optimizer._build()

    def context(self) -> None:
        """Forward, backward and observations."""
        self.optimizer.zero_grad()
        with self.optimizer.sampled_params():
            self.likelihood(self.model(self.x), self.y).backward()

    def refresh(self) -> None:
        """Factorise every block."""
        with torch.no_grad():
            for block in self.table.blocks:
                block.structure.refresh(self.table.state(block)["curvature"])

    def averaging(self) -> Work:
        """Blend the observations of one context into every block."""
        self.context()
        leaves = {block: self.collector.finish(block, 1) for block in self.table.blocks}
        found = {block: {key: leaf.product() for key, leaf in own.items()} for block, own in leaves.items()}

        def work() -> None:
            with torch.no_grad():
                for block, observation in found.items():
                    old = self.table.state(block)["curvature"]
                    block.structure.update(old, observation, decay=0.95, weight=0.05, shift=1e-4)

        return work


def sides(model: nn.Module, x: Tensor) -> list[tuple[int, int]]:
    """(rows, size) of the inputs and output gradients of all linear layers and convolutions."""
    found: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = int(module.bias is not None)
        if isinstance(module, nn.Conv2d):
            positions = output.numel() // module.out_channels
            fan_in = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        else:
            positions, fan_in = output.numel() // module.out_features, module.in_features
        found.extend([(positions, fan_in + bias), (positions, output.numel() // positions)])

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def products(sizes: Sequence[tuple[int, int]]) -> Work:
    """Second moments as plain matrix products."""
    rows, widest = max(r for r, _ in sizes), max(size for _, size in sizes)
    pool = torch.randn(rows * widest)

    def work() -> None:
        for r, size in sizes:
            a = pool[: r * size].view(r, size)
            a.T @ a

    return work


def inverses(sizes: Sequence[tuple[int, int]]) -> Work:
    """Inverses through Cholesky factors."""
    matrices = [torch.eye(size) + 0.01 * torch.ones(size, size) for _, size in sizes]

    def work() -> None:
        for matrix in matrices:
            torch.cholesky_inverse(torch.linalg.cholesky(matrix))

    return work


def product_rate(size: int) -> float:
    """Operations per second of a square matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    times = []
    for _ in range(5):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2.0 * size**3 / max(quartiles(times)[1], 1e-9)


def curvlinops(case: Case) -> Work:
    """The K-FAC of curvlinops from scratch."""
    made = load("curvlinops", "curvlinops-for-pytorch").KFACLinearOperator
    model, (x, y) = case.model(), case.batch()

    def work() -> None:
        loss = nn.CrossEntropyLoss()
        flat = nn.Sequential(model, nn.Flatten(0, -2)) if case.tokens else model
        parameters = [p for m in flat.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()]
        operator = made(
            flat, loss, parameters, [(x, y.flatten())], fisher_type="empirical", check_deterministic=False,
            separate_weight_and_bias=False, num_per_example_loss_terms=1, num_data=x.shape[0],
        )  # fmt: skip
        compute = getattr(operator, "compute_kronecker_factors", None)
        if compute is not None:
            compute()

    return work


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The lines of a network, their baseline, and its numbers of operations."""
    model, (x, y) = case.model(), case.batch()
    likelihood, sizes = Categorical(), sides(model, x)

    def gradient() -> None:
        model.zero_grad()
        likelihood(model(x), y).backward()

    def tracked(method: str, fisher: str, part: str) -> Work:
        one = Tracked(case, method, fisher)
        return one.averaging() if part == "averaging" else getattr(one, part)

    builders: dict[str, Callable[[], Work]] = {
        GRADIENT: lambda: gradient,
        "factors, empirical": lambda: tracked("kfac", "empirical", "context"),
        "factors, mc": lambda: tracked("kfac", "mc", "context"),
        "running average": lambda: tracked("kfac", "empirical", "averaging"),
        "factors as plain products": lambda: products(sizes),
        "kfac refresh": lambda: tracked("kfac", "empirical", "refresh"),
        "ekfac refresh": lambda: tracked("ekfac", "empirical", "refresh"),
        "cholesky inverses": lambda: inverses(sizes),
        "curvlinops": lambda: curvlinops(case),
    }
    works, refused = ready(builders, 60.0)
    timers = {name: (lambda work=work: call_seconds(work)) for name, work in works.items()}
    times = in_turn(timers, arguments.rounds, dict.fromkeys(timers, 3.0 * arguments.row_seconds))
    for name in ("factors, empirical", "factors, mc"):
        if name in times:
            pairs = zip(times[name], times[GRADIENT], strict=True)
            times[name] = [None if t is None or base is None else t - base for t, base in pairs]
    lines = lines_of(times, [GRADIENT])
    operations = sum(2.0 * rows * size**2 for rows, size in sizes)
    numbers = {
        "operations of the products": short(operations),
        "operations per second, 1024 x 1024": short(product_rate(1024 if not arguments.tiny else 16)),
    }
    seconds = 1e-3 * lines[GRADIENT]["ms"]
    bound = 0.5 * operations / numbers["operations per second, 1024 x 1024"] / seconds
    numbers[HALVES_NUMBER] = short(bound)
    lines = {name: lines[name] if name in lines else {"skipped": refused[name]} for name in builders}
    return {"lines": lines, "baseline": GRADIENT, "numbers": numbers}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("curvature_refresh", __doc__, argv, "rounds", "cases")
    limit_memory()

    def show(content: Mapping[str, Any]) -> list[str]:
        return [*table(content["lines"], GRADIENT), "", str(content["numbers"])]

    return over_cases("curvature_refresh", arguments, measure, show)


if __name__ == "__main__":
    main()

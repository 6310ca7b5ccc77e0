"""A few steps of optimizers with and without Triton's kernels, and what comes out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_models import OPTIONS, fill, labels, normal, square_network
from vogn import EKFAC, EVON, IVON, KFAC, VOGN, VON, VAdam
from vogn.kernels import TABLE
from vogn.likelihoods import Categorical
from vogn.optim import NaturalGradient
from vogn.structures import Dense

STEPS = 4
Make = Callable[[nn.Module], NaturalGradient]


@dataclass(frozen=True)
class Method:
    """An optimizer and the kernels that its steps run.

    Args:
        make: of the model.
        kernels: their names.
        tolerance: of everything after :data:`STEPS` steps, relative to the largest number of its tensor. A pass over
            diagonal numbers rounds each of a dozen operations in another order, about 1e-7 each. Products are sums of
            up to 150 terms in another order, which eigenvectors and solves enlarge: the curvatures are up to 25 times
            as large as the smallest shifted eigenvalue.
        network: takes the inputs.
        inputs: shape of one.
    """

    make: Make
    kernels: frozenset[str]
    tolerance: float
    network: Callable[[], nn.Module]
    inputs: tuple[int, ...]


def method(
    kind: type[NaturalGradient],
    *kernels: str,
    tolerance: float = 2e-5,
    network: Callable[[], nn.Module] | None = None,
    inputs: tuple[int, ...] = (2, 4, 4),
    **options: Any,
) -> Method:
    def make(model: nn.Module) -> NaturalGradient:
        return kind(model, **OPTIONS | {"refresh_every": 2, "curvature_decay": 0.8} | options)

    return Method(make, frozenset(kernels), tolerance, network or convolutions, inputs)


def diagonal(kind: type[NaturalGradient], **options: Any) -> Method:
    return method(kind, "diagonal_step", tolerance=2e-6, **options)


def convolutions() -> nn.Module:
    """A convolution in the plane, one along a line, and a linear layer; its factors have full rank on 17 examples."""
    return fill(
        nn.Sequential(
            nn.Conv2d(2, 3, 2, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(2),
            nn.Conv1d(3, 2, 2, dilation=2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(14, 3),
        ),
        seed=1,
    )


METHODS: dict[str, Method] = {
    "VOGN": diagonal(VOGN),
    "VOGN without momentum": diagonal(VOGN, momentum=0.0),
    "VON": diagonal(VON),
    "IVON": diagonal(IVON, lr=0.2),
    "IVON, two samples, without rescaling": diagonal(IVON, mc_samples=2, rescale_lr=False),
    "IVON, one layer by the chain": diagonal(IVON, structure={"6": Dense(negative="retract")}),
    "IVON, clipped": diagonal(IVON, lr=0.2, clip_radius=0.3),
    "IVON, clipped, one layer by the chain": diagonal(
        IVON, clip_radius=0.3, structure={"6": Dense(negative="retract")}, rescale_lr=False
    ),
    "VOGN, clipped": diagonal(VOGN, clip_radius=0.3),
    "VAdam": diagonal(VAdam, damping=1e-3),
    "K-FAC, factored damping": method(KFAC, "symmetric_update", "patch_factor", fisher="empirical"),
    "K-FAC, exact damping": method(
        KFAC, "symmetric_update", "patch_factor", "eigenbasis_solve", fisher="empirical", factored=False
    ),
    "EK-FAC": method(EKFAC, "symmetric_update", "patch_factor", "eigenbasis_solve", fisher="empirical"),
    "EVON": method(  # square layers: see there; without older gradients, which would bring eigenvalues together
        EVON, "symmetric_update", "eigenbasis_solve", basis_decay=0.0, network=square_network, inputs=(3,)
    ),
}


def trained(
    method: Method, device: torch.device, dtype: torch.dtype = torch.float32, *, steps: int = STEPS
) -> dict[str, Tensor]:
    """Weights, variances, precisions and what the optimizer keeps after some steps."""
    model = method.network().to(device, dtype)
    opt = method.make(model)
    x = normal(17, *method.inputs, seed=2, dtype=dtype).to(device)
    y = labels(17, 3, seed=3).to(device)
    for _ in range(steps):
        for _ in range(opt.param_groups[0]["mc_samples"]):
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    posterior = opt.posterior()
    found = {f"mean of {name}": x for name, x in posterior.mean().items()}
    found |= {f"variance of {name}": x for name, x in posterior.variance().items()}
    found |= {f"draw of {name}": x for name, x in posterior.sample(1).items()}
    found |= {f"precision of {name}": x for name, x in posterior.precision_matrices().items()}
    share = opt.diagnostics().get("elements_clipped_share")
    if share is not None:
        assert 0.0 < share < 1.0
        found["share of clipped elements"] = torch.tensor(share)
    for block in opt._build()[0].blocks:
        state = opt.state[block.parameters[0]]
        kept = state["curvature"] | state["memory"]
        found |= {f"{key} of {block.name}": kept[key] for key in ("A", "S", "c", "momentum") if key in kept}
    return found


def assert_equal_up_to(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor, relative to its largest number."""
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        assert found[key].dtype == x.dtype and found[key].shape == x.shape, key
        error = float((found[key] - x).abs().max()) / float(x.abs().max())
        assert error <= tolerance, f"{key}: {error:.1e}"


@contextmanager
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each Triton kernel is called inside."""
    counter: Counter[str] = Counter()

    def counted(op: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counter[op] += 1
            return kernel(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for op, table in TABLE.items():
            if "triton" in table:
                patch.setitem(table, "triton", counted(op, table["triton"]))
        yield counter

"""What every named method promises to a training loop, in both modes; the outcomes make a table for the documentation.

``pytest tests/promises --promise-table docs/promises.md`` (in one process) writes the tables of the tests that ran.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_models import OPTIONS, batch, fill, flat, normal, square_network, train
from vogn.likelihoods import Categorical
from vogn.optim import METHODS, NaturalGradient

MODES = {"variational": True, "deterministic": False}


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """3 inputs, 4 hidden units, 3 classes, one norm layer."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3))
    fill(model)
    with torch.no_grad():
        model[2].weight.add_(1)
    return model.to(dtype)


@dataclass
class Case:
    """A named method in one of its modes."""

    method: str
    variational: bool
    likelihood: Any = field(default_factory=Categorical)

    def build(self, model: Any, **options: Any) -> NaturalGradient:
        return METHODS[self.method].constructor(model, **(OPTIONS | {"variational": self.variational} | options))

    def batch(self, seed: int, dtype: torch.dtype = torch.float64, n: int = 8) -> tuple[Tensor, Tensor]:
        return batch(n, seed, dtype)

    def backward(self, model: Callable[..., Tensor], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
        x, y = self.batch(seed, dtype)
        loss: Tensor = self.likelihood(model(x), y)
        loss.backward()
        return loss

    def train(
        self,
        opt: NaturalGradient,
        model: Callable[..., Tensor],
        steps: int,
        *,
        start: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """The loop of the documentation on a fresh batch per step."""
        train(opt, model, steps, start=start, likelihood=self.likelihood, dtype=dtype)


def everything(opt: NaturalGradient, model: nn.Module) -> dict[str, Tensor]:
    """Weights and all tensors of the optimizer's state, by name."""
    names = {p: n for group in opt.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)}
    out = {f"weight {name}": parameter.detach().clone() for name, parameter in model.named_parameters()}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Tensor):
            out[prefix] = value.detach().clone()
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix} {key}", item)

    for parameter, state in opt.state.items():
        walk(f"state {names[parameter]}", state)
    return out


def meaning(opt: NaturalGradient, model: nn.Module) -> dict[str, Tensor]:
    """Weights and posterior precisions: what a state means, where the order of rows makes the state ambiguous."""
    weights = {f"weight {name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    return weights | {f"precision {name}": p for name, p in opt.posterior().precision_matrices().items()}


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def assert_near(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


class Tools:
    network = staticmethod(network)
    square_network = staticmethod(square_network)
    normal = staticmethod(normal)
    fill = staticmethod(fill)
    flat = staticmethod(flat)
    everything = staticmethod(everything)
    meaning = staticmethod(meaning)
    assert_identical = staticmethod(assert_identical)
    assert_near = staticmethod(assert_near)


@pytest.fixture
def tools() -> type[Tools]:
    return Tools


CASES = [(method, mode) for method, info in METHODS.items() for mode in info.modes]


@pytest.fixture(params=CASES, ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    method, mode = request.param
    return Case(method, MODES[mode])


# ---------------------------------------------------------------------- the table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promise-table", default=None, help="write the table of promises that were tested")


OUTCOMES = pytest.StashKey[dict[tuple[str, str, str], str]]()
LAYER_ROWS = pytest.StashKey[set[str]]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    outcome = yield
    report = outcome.get_result()
    promise = item.get_closest_marker("promise")
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if promise is None or "case" not in parameters or (report.when != "call" and not report.skipped):
        return
    method, mode = parameters["case"]
    key = (parameters.get("layer", promise.args[0]), method, mode)
    if "layer" in parameters:
        item.config.stash.setdefault(LAYER_ROWS, set()).add(parameters["layer"])
    outcomes = item.config.stash.setdefault(OUTCOMES, {})
    rank = {"passed": 0, "skipped": 1, "failed": 2}
    if rank[report.outcome] >= rank[outcomes.get(key, "passed")]:
        outcomes[key] = report.outcome


SIGNS = {"passed": "✓", "skipped": "–", "failed": "✗"}
HEAD = """# What holds

Written by `pytest tests/promises --promise-table docs/promises.md` from the tests that ran. ✓: tested in both modes;
two signs: variational, deterministic; –: not applicable. Limits are stated in the name of the promise. That the
per-example gradients of each layer are exact is proved in `tests/layers`; data parallel training has a page of its own
([distributed.md](distributed.md)).
"""


def table(first: str, rows: list[str], outcomes: dict[tuple[str, str, str], str]) -> list[str]:
    lines = [f"| {first} | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for row in rows:
        cells = []
        for method in METHODS:
            marks = [SIGNS[outcomes[key]] for mode in MODES if (key := (row, method, mode)) in outcomes]
            cells.append(marks[0] if len(set(marks)) == 1 else " ".join(marks))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--promise-table", None)
    outcomes = session.config.stash.get(OUTCOMES, {})
    if not path or not outcomes:
        return
    rows = list(dict.fromkeys(row for row, _, _ in outcomes))
    layers = [row for row in rows if row in session.config.stash.get(LAYER_ROWS, set())]
    promises = [row for row in rows if row not in layers]
    lines = [HEAD, "## Methods and promises", "", *table("promise", promises, outcomes), ""]
    lines += ["## Methods and layers", "", *table("layer", layers, outcomes)]
    Path(path).write_text("\n".join(lines) + "\n")

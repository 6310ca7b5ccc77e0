"""How much noise of the weights training stands: the temperature by short runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from vogn.errors import RangeTestError
from vogn.optim.base import NaturalGradient
from vogn.optim.copied_runs import Watch, copies, require_alone, require_pairs, run_ends
from vogn.optim.methods import sets_groups
from vogn.optim.range_choice import STRIDE, Losses, climb, joined, plain_loss
from vogn.optim.range_test import STEPS

FARTHEST = 1000.0
"""The search goes no farther from the optimizer's temperature than this factor."""


@dataclass(frozen=True)
class TemperatureSearch:
    """What a search has found.

    Args:
        factor: to multiply ``ess`` with: above 1 the posterior is colder, its temperature divided by the factor.
        trials: factor and final loss (infinite where a run failed) of all that were tried, ascending.
    """

    factor: float
    trials: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the loss of a run that failed is ``None``."""
        return {"factor": self.factor, "trials": [[factor, plain_loss(loss)] for factor, loss in self.trials]}


def temperature_search(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    *,
    held_out: Iterable[Any],
    further: Sequence[tuple[Iterable[Any], Iterable[Any]]] = (),
    steps: int = STEPS,
    indexed: bool = False,
    watch: Watch | None = None,
) -> TemperatureSearch:
    """Compare training at the optimizer's temperature with colder and warmer training, on examples it does not see.

    The noise of the weights regularises, and beyond some width it keeps a network from learning; which width that is
    depends on the network, the data and the length of training. Runs of ``steps`` steps with warm-up and cosine decay,
    on the same batches, at the rates and dampings that the optimizer has, are compared by the losses of the held-out
    examples at the mean of the weights. Temperatures differ by half decades; colder and warmer ones are tried, and the
    search goes on as long as the mean loss falls. Where training fails at the optimizer's temperature it begins with
    the first colder one at which it does not.

    ``weight_decay`` stays, so that the mean is regularised as before: only ``ess``, the number of examples over the
    temperature, changes, and only in groups that are variational. Costs three to five runs. Choose rate and damping
    before (:func:`vogn.damping_search`), and make runs as long as the training if that is affordable: short ones stand
    more noise. Where the posterior is to be the true one, of temperature 1, there is nothing to search.

    Rate and damping were chosen because a run with them ended low, at the temperature of today, and part of that is
    chance, which another temperature does not have: compare on other folds, or at least with the batches in another
    order, than those that chose them.

    Model, optimizer and likelihood are not touched: multiply ``ess`` of the variational groups yourself.

    Args:
        optimizer, model, likelihood, loader, indexed, watch: see :func:`vogn.learning_rate_range_test`; at least one
            group in variational mode.
        held_out: batches ``(inputs, targets)`` that training does not see; a few hundred examples do.
        further: pairs of loader and held-out batches besides ``loader`` and ``held_out``: every temperature is run on
            each, and compared by all of their losses.
        steps: of a run, >= 1.

    Returns:
        The factor for ``ess``, and what was tried.

    Raises:
        RangeTestError: if training fails at all temperatures that were tried.
        ValueError: in deterministic mode, where weights have no noise, if the method sets ``ess`` itself, ``steps`` is
            not positive, the loader or ``held_out`` is empty, ``further`` holds something else than pairs, a loss is
            not finite because the data are not, or several processes train together.
        RuntimeError: inside a sampled context.

    Example:
        >>> import torch, vogn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> x = torch.randn(300, 4)
        >>> data = torch.utils.data.TensorDataset(x[:200], x[:200, :3].argmax(1))
        >>> loader, held_out = torch.utils.data.DataLoader(data, batch_size=20), [(x[200:], x[200:, :3].argmax(1))]
        >>> opt = vogn.VOGN(model, lr=0.1, ess="auto", data=loader, weight_decay=0.01)
        >>> found = vogn.temperature_search(opt, model, vogn.likelihoods.Categorical(), loader, held_out=held_out)
        >>> for group in opt.param_groups:
        ...     group["ess"] *= found.factor
        >>> 1e-3 <= found.factor <= 1e3
        True
    """
    if not any(group["variational"] for group in optimizer.param_groups):
        raise ValueError("a deterministic optimizer has no temperature: set variational=True")
    if sets_groups(optimizer):
        raise ValueError(f"{type(optimizer).__name__} sets ess itself: there is no temperature to choose")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if held_out is None:
        raise ValueError("held_out=None: training losses always prefer less noise; give examples that are held out")
    require_pairs(further, "held-out batches")
    require_alone(optimizer, "a temperature search", "ess")
    rate = max(group["lr"] for group in optimizer.param_groups)

    @cache
    def ends(factor: float) -> Losses:
        twin, network, loss_of = copies(optimizer, model, likelihood)
        for group in twin.param_groups:
            if group["variational"]:
                group["ess"] *= factor
        runs = [
            run_ends(twin, network, loss_of, batches, rate, steps, held_out=outside, indexed=indexed, watch=watch)
            for batches, outside in ((loader, held_out), *further)
        ]
        return joined(runs)

    start = 1.0
    while not ends(start) and start * STRIDE < FARTHEST:
        start *= STRIDE
    try:
        factor, trials, _ = climb(start, ends, 1.0 / FARTHEST, FARTHEST, errors=0.0)
    except RangeTestError as error:
        raise RangeTestError(
            "training fails at every temperature that was tried: lower the learning rate, or raise the damping"
        ) from error
    return TemperatureSearch(factor, trials)

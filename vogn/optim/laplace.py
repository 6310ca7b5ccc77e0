"""The Laplace approximation of a trained network: its curvature at the weights that it has, over all data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vogn.capture.selection import StructureOption, make_selection, matches
from vogn.errors import PosteriorWarning
from vogn.likelihoods import Likelihood
from vogn.optim.base import NaturalGradient
from vogn.optim.calling import outputs_of
from vogn.optim.kfac import fisher_statistic
from vogn.posterior import GaussianPosterior
from vogn.structures import Dense, Kronecker

Subset = Literal["all", "last_layer"] | Sequence[str]


def laplace(
    model: nn.Module,
    likelihood: Any,
    loader: Iterable[Any],
    *,
    structure: StructureOption = None,
    subset: Subset = "all",
    prior_precision: float = 1.0,
    temperature: float = 1.0,
    fisher: Literal["ggn", "mc", "empirical"] = "ggn",
    ggn_samples: int | None = None,
    seed: int = 0,
    **options: Any,
) -> GaussianPosterior:
    """A Gaussian posterior of a trained network: ``N(theta, (sum_n H_n / temperature + prior_precision I)^-1)``.

    ``H_n`` is the curvature of the loss of example ``n``, in the structure that is asked for. Any network will do that
    this library trains: normalisation, attention, recurrent layers, tied weights. Weights, gradients, buffers, modes
    and ``requires_grad`` are left as they are; the network runs in evaluation mode. A ``PosteriorWarning`` tells of
    parameters that no gradient reaches, whose posterior is the prior, and of dense blocks whose rounding errors exceed
    the prior's precision.

    Args:
        model: the trained network; returns the outputs of the likelihood.
        likelihood: one of :mod:`vogn.likelihoods`: what the network was trained with.
        loader: batches ``(inputs, targets)``, gone through once; inputs are a tensor, a tuple or a dictionary.
        structure: as for :class:`vogn.NaturalGradient`; by default Kronecker factors, in which the prior is exact.
        subset: ``"all"``; ``"last_layer"``: the last module that holds parameters of its own; or names and patterns of
            parameters and modules (``"head"``, ``"encoder.3.*"``), as in ``structure``. Others are point masses that
            the posterior leaves out.
        prior_precision: ``delta`` of the prior ``N(0, I / delta)``, > 0; :func:`vogn.tune_prior_precision` chooses it.
        temperature: of the data, > 0; below 1 the posterior is narrower.
        fisher: ``"ggn"`` (exact Gauss-Newton), ``"mc"`` (labels drawn from the network, unbiased, one pass however
            many classes) or ``"empirical"``.
        ggn_samples: with ``"ggn"``, random combinations of the output Hessian's columns instead of all of them.
        seed: of what is drawn.
        **options: further arguments of :class:`vogn.NaturalGradient`, for example ``partition="model"``.

    Returns:
        The posterior, with ``ess`` the number of loss terms over the temperature.

    Raises:
        ValueError: if the loader is empty, a number is out of range, the subset matches no parameter, or the last
            layer shares its weights with another.
        RuntimeError: under ``torch.inference_mode``.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> data = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(2)]
        >>> posterior = vogn.laplace(model, vogn.likelihoods.Categorical(), data, subset="last_layer")
        >>> posterior.names
        ('2.weight', '2.bias')
        >>> vogn.predict(model, posterior, torch.randn(5, 4)).mean.shape
        torch.Size([5, 3])

    Source: MacKay (1992), "A Practical Bayesian Framework for Backpropagation Networks"; Ritter, Botev, Barber (2018),
    "A Scalable Laplace Approximation for Neural Networks"; Daxberger et al. (2021), "Laplace Redux".
    """
    for name, value in (("prior_precision", prior_precision), ("temperature", temperature)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be a positive finite number")
    if torch.is_inference_mode_enabled():
        raise RuntimeError("vogn.laplace differentiates: call it outside of torch.inference_mode()")
    wanted = _subset(model, subset)
    with _undisturbed(model, likelihood, wanted):
        settings: dict[str, Any] = {"curvature_decay": 0.0, "loss_reduction": "sum", "process_group": None}
        optimizer = NaturalGradient(
            model,
            make_selection(structure, Kronecker()),
            fisher_statistic(fisher, ggn_samples),
            lr=0.0,
            steps=(),
            variational=False,
            seed=seed,
            **(settings | options),
        )
        terms = _measure(optimizer, model, likelihood, loader)
        for group in optimizer.param_groups:
            group["ess"] = terms / temperature
            group["weight_decay"] = prior_precision / group["ess"]
        posterior = optimizer.posterior()
        table, _ = optimizer._build()
        unseen = [block.name for block in table.blocks if not table.known(block)]
        optimizer.close()
    posterior.method = "laplace"
    _warn(posterior, unseen)
    return posterior


@contextmanager
def unseen_allowed() -> Iterator[None]:
    """Inside, parameters that no gradient reaches are meant to keep the prior, as the heads of other tasks are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no gradient has reached", PosteriorWarning)
        yield


def _warn(posterior: GaussianPosterior, unseen: Sequence[str]) -> None:
    """Of blocks that are the prior, and of dense ones whose rounding is no smaller than it."""
    if unseen:
        warnings.warn(
            f"no gradient has reached block {unseen[0]!r}{' and others' if len(unseen) > 1 else ''}: the posterior of "
            "these parameters is the prior. If the network uses them (under torch.no_grad, say), leave them out: "
            "freeze them with requires_grad_(False), or name the others in subset=",
            PosteriorWarning,
            stacklevel=3,
        )
    for block in posterior.sampled_blocks:
        if not isinstance(block.structure, Dense):
            continue
        curvature = block.structure.to_dense(block.state)
        rounding = torch.finfo(curvature.dtype).eps * _largest_eigenvalue(curvature)
        if rounding > block.shift:
            warnings.warn(
                f"block {block.name!r}: the curvature's rounding errors, about {rounding * block.ess:.1e}, are larger "
                f"than the prior precision {block.shift * block.ess:.1e}, so that its posterior is too narrow where "
                "the data say little: compute it in float64 (model.double() and such data), or in another structure",
                PosteriorWarning,
                stacklevel=3,
            )


def _largest_eigenvalue(matrix: Tensor) -> float:
    """Of a semidefinite matrix, by a few power iterations: from below, and close enough for its order of magnitude."""
    vector = matrix[:, int(matrix.diagonal().argmax())]
    for _ in range(20):
        length = vector.norm()
        if not length > 0:
            return 0.0
        vector = matrix @ (vector / length)
    return float(vector.norm())


def _measure(optimizer: NaturalGradient, model: nn.Module, likelihood: Any, loader: Iterable[Any]) -> int:
    """Let the optimizer see all data at the weights as they are; the number of loss terms.

    Sums of all batches make one observation. Structures that hold rows take each batch into an average instead, so
    that they never hold more rows than a batch has.
    """
    table, _ = optimizer._build()
    device = next(model.parameters()).device
    by_batch = any(block.structure.REDUCE == "concat" for block in table.blocks)
    seen = 0
    optimizer.zero_grad()
    with nullcontext() if by_batch else optimizer.sampled_params():
        for number, batch in enumerate(loader):
            inputs, targets = tree_map(
                lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, _split(batch, number)
            )
            with optimizer.sampled_params() if by_batch else nullcontext(), torch.enable_grad():
                outputs = outputs_of(model, inputs)
                count = math.prod(likelihood.term_shape(outputs))
                (likelihood(outputs, targets) * count).backward()
            seen += count
            if by_batch:
                for group in optimizer.param_groups:
                    group["curvature_decay"] = 1.0 - count / seen
                optimizer.step()
                optimizer.zero_grad()
    if not seen:
        raise ValueError("the loader is empty: there is nothing to measure")
    if not by_batch:
        optimizer.step()
    return seen


def _split(batch: Any, number: int) -> tuple[Any, Tensor]:
    if isinstance(batch, (Tensor, Mapping)) or not isinstance(batch, Sequence) or len(batch) != 2:
        raise ValueError(
            f"batch {number} of the loader is no pair (inputs, targets): give a generator of such pairs, for example "
            "[(batch, batch['labels']) for batch in loader] where the network takes dictionaries"
        )
    return batch[0], batch[1]


def _subset(model: nn.Module, subset: Subset) -> set[str]:
    """Names of the parameters that are meant."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(subset, str) and subset not in ("all", "last_layer"):
        raise ValueError(f"subset={subset!r}: choose 'all', 'last_layer' or a list of names and patterns")
    if subset == "all":
        return set(names)
    if subset == "last_layer":
        if not names:
            raise ValueError("the model has no parameters")
        held = {path: {id(p) for p in module.parameters(recurse=False)} for path, module in model.named_modules()}
        last = [path for path, own in held.items() if own][-1]
        tied = [path for path, own in held.items() if path != last and own & held[last]]
        if tied:
            raise ValueError(
                f"subset='last_layer': {last!r} shares a weight with {tied[0]!r}, so that it has no posterior of its "
                f"own: name what is meant, subset=[{tied[0]!r}], or take subset='all'"
            )
        return {name for name in names if name.rpartition(".")[0] == last}
    for pattern in subset:
        if not matches(pattern, names):
            raise ValueError(f"subset: no parameter matches {pattern!r}; there are {', '.join(names[:5])} ...")
    return {name for name in names if any(matches(pattern, [name]) for pattern in subset)}


@contextmanager
def _undisturbed(model: nn.Module, likelihood: Any, wanted: set[str]) -> Iterator[None]:
    """Evaluation mode, gradients for the wanted parameters alone; everything comes back."""
    modes = {module: module.training for module in model.modules()}
    learnable = tuple(likelihood.parameters()) if isinstance(likelihood, Likelihood) else ()
    kept = {parameter: (parameter.requires_grad, parameter.grad) for parameter in (*model.parameters(), *learnable)}
    try:
        for parameter in learnable:
            parameter.requires_grad_(False)
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in wanted and parameter.is_floating_point())
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, (requires_grad, grad) in kept.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad

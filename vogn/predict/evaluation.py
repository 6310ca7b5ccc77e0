"""Running a model with other weights and leaving it exactly as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from vogn.predict.inputs import Arguments


@contextmanager
def undisturbed(model: nn.Module, *, seed: int) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards flags, gradient mode and torch's random states are as before.

    Args:
        model: every submodule's ``training`` flag is set to ``False`` and later to what it was.
        seed: seeds torch's generators meanwhile, for models that draw random numbers in evaluation mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    with seeded(seed, cuda_devices_of(model)), torch.no_grad():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, flag in flags:
                module.training = flag


@contextmanager
def seeded(seed: int, devices: Sequence[int] = ()) -> Iterator[None]:
    """Torch's random states of the CPU and of CUDA devices, by index, start from a seed; afterwards they are as
    before. Those of other devices are not touched."""
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def cuda_devices_of(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices on which the model has parameters."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU if it has neither."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], *, batch: int) -> None:
    """Names and shapes of a posterior's weights fit the model.

    Args:
        model: the model.
        weights: ``{name: (*batch dimensions, *shape)}``.
        batch: number of batch dimensions in front.

    Raises:
        ValueError: naming the first parameter that the model lacks or has in another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in weights if name not in parameters]
    if missing:
        raise ValueError(
            f"the posterior has parameters that the model lacks: {missing[:5]}; "
            f"the model has {list(parameters)[:5]} ...; pass the trained model, not a wrapper that renames parameters"
        )
    for name, tensor in weights.items():
        if tensor.shape[batch:] != parameters[name].shape:
            raise ValueError(
                f"parameter {name!r} has shape {tuple(parameters[name].shape)} in the model "
                f"and {tuple(tensor.shape[batch:])} in the posterior"
            )


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@contextmanager
def cumulative(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Batch norm layers in training mode, averaging all batches equally; afterwards in evaluation mode as before."""
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for layer, _ in momenta:
            layer.momentum, layer.training = None, True
        yield
    finally:
        for layer, momentum in momenta:
            layer.momentum, layer.training = momentum, False


def weights_for(model: nn.Module, weights: Mapping[str, Tensor], *, batch: int = 0) -> dict[str, Tensor]:
    """``{name: (*batch dimensions, *shape)}``, checked, in the device and dtype of the model's parameters."""
    check_weights(model, weights, batch=batch)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: tensor.to(parameters[name]) for name, tensor in weights.items()}


def evaluate(
    model: nn.Module, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], batches: Iterable[Arguments]
) -> Tensor:
    """Outputs of the model with the given weights, all batches concatenated.

    Args:
        model: inside :func:`undisturbed`; its buffers are copied, so that no module can change them.
        weights: ``{name: shape}`` in the device and dtype of the parameters; others are used as they are.
        statistics: ``{name: shape}``, values of buffers; the other buffers start as they are.
        batches: arguments of the calls.

    Returns:
        ``(N, ...)``.

    Raises:
        ValueError: if there is no example.
        TypeError: if the model returns something else than a tensor.
    """
    replaced = dict(weights)
    return _over(model, statistics, batches, lambda call: call(replaced))


def evaluate_linearized(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    displacement: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    batches: Iterable[Arguments],
) -> Tensor:
    """Outputs of the network's linearisation at some weights, ``f(x; m) + J(x; m) d``, by forward differentiation.

    Args:
        model, statistics, batches: see :func:`evaluate`.
        weights: ``m``, ``{name: shape}``.
        displacement: ``d`` of the same parameters.

    Returns:
        ``(N, ...)``.

    Raises:
        ValueError, TypeError: see :func:`evaluate`.
        NotImplementedError: naming an operation that PyTorch cannot differentiate forward.
    """
    mean, direction = dict(weights), dict(displacement)

    def linearized(call: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(value, direction[name]) for name, value in mean.items()}
            try:
                output, change = forward_ad.unpack_dual(call(dual))
            except (NotImplementedError, RuntimeError) as error:
                if not isinstance(error, NotImplementedError) and "jvp" not in str(error):
                    raise
                raise NotImplementedError(f"{error}; use method='mc', which needs no derivatives") from error
            return output if change is None else output + change

    with plain_attention():
        return _over(model, statistics, batches, linearized)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Fused attention has no forward derivative."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class Call:
    """One call of a network as a function of its weights.

    Args:
        outputs: ``{name: shape}`` to the network's outputs ``(N, ...)``.
        inputs: positional and keyword arguments, where the network lives.
        buffers: values of all buffers; modules may change them.
    """

    outputs: Callable[[dict[str, Tensor]], Tensor]
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    buffers: dict[str, Tensor]


def calls_of(model: nn.Module, statistics: Mapping[str, Tensor], batches: Iterable[Arguments]) -> Iterator[Call]:
    """The network on one batch after the other; see :func:`evaluate` for the arguments."""
    device = device_of(model)
    buffers = {name: statistics.get(name, buffer).to(buffer, copy=True) for name, buffer in model.named_buffers()}
    for batch in batches:
        args, kwargs = batch.to(device)

        def outputs(weights: dict[str, Tensor], args: Any = args, kwargs: Any = kwargs) -> Tensor:
            output = functional_call(model, (weights, buffers), args, kwargs)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"predict needs a model that returns a tensor of outputs, got {type(output).__name__}; "
                    "wrap it in a module that returns the tensor, e.g. the logits"
                )
            return output

        yield Call(outputs, (args, kwargs), buffers)


def concatenated(outputs: list[Tensor]) -> Tensor:
    """Outputs of all batches.

    Raises:
        ValueError: if there is no example.
    """
    if not outputs or sum(len(output) for output in outputs) == 0:
        raise ValueError("x holds no examples: predict needs at least one")
    return torch.cat(outputs)


def _over(
    model: nn.Module,
    statistics: Mapping[str, Tensor],
    batches: Iterable[Arguments],
    outputs_of: Callable[[Callable[[dict[str, Tensor]], Tensor]], Tensor],
) -> Tensor:
    """What ``outputs_of`` makes of the network as a function of its weights, all batches concatenated."""
    return concatenated([outputs_of(call.outputs) for call in calls_of(model, statistics, batches)])

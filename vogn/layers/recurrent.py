"""Recurrent networks from tapped linear maps, with one position per time step.

A step adds the map of the input and that of the hidden state, so both have the same output gradient; it arrives in one
tensor, the mapped inputs of all steps. Only the new-gate of a GRU differs: its hidden map is multiplied by the reset
gate, and so is its gradient. Everything inside runs time first: ``(T, N, d)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vogn.layers.base import Axes, ExplicitRule, SiteRule, Tap, register_explicit
from vogn.layers.recurrent_steps import CELLS, Cell
from vogn.layers.sites import LinearSite
from vogn.linalg.rows import Rows


@dataclass(frozen=True)
class GatedSite(LinearSite):
    """The hidden map of a GRU: ``saved = (h, reset gate)`` or with a mask, gradient of the mapped inputs."""

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        h, reset, *mask = saved
        size = reset.shape[-1]
        g = torch.cat([grad_output[..., : 2 * size], grad_output[..., 2 * size :] * reset], -1)
        return super().rows(module, attributes, (h, *mask), g)


@dataclass(frozen=True)
class Parameters:
    """The parameters of one layer in one direction; ``hr`` projects the hidden state of an LSTM."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None = None


def _sites(cell: Cell, suffix: str, axes: Axes) -> dict[str, SiteRule]:
    """Sites of one layer in one direction; parameters that it does not have are never found."""
    hidden = GatedSite if cell.GATED else LinearSite
    return {
        f"ih{suffix}": LinearSite(f"weight_ih{suffix}", f"bias_ih{suffix}", axes=axes),
        f"hh{suffix}": hidden(f"weight_hh{suffix}", f"bias_hh{suffix}", axes=axes),
        f"hr{suffix}": LinearSite(f"weight_hr{suffix}", None, axes=axes),
    }


def _unroll(
    cell: Cell,
    tap: Tap,
    suffix: str,
    parameters: Parameters,
    x: Tensor,
    hidden: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer in one direction over ``(T, N, d)``; returns outputs, last hidden state and last cell state.

    Args:
        mask: ``(T, N)``, ``False`` past the end of an example, where its states stand still; ``None`` without padding.
    """
    ih = F.linear(x, parameters.ih, parameters.bias_ih)
    if not ih.requires_grad and any(p is not None and p.requires_grad for p in vars(parameters).values()):
        ih.requires_grad_()  # a place for the gradient, although the maps before it are frozen
    if cell.REMEMBERS:  # under autocast the stock forward keeps the states of an LSTM in half precision
        hidden, memory = hidden.to(ih.dtype), memory.to(ih.dtype)
    # the projected states go on into several maps; their whole gradient is that of zeros added to them
    place = None if parameters.hr is None else ih.new_zeros((*x.shape[:2], parameters.hr.shape[0])).requires_grad_()
    masks = () if mask is None else (mask.T,)
    tap(f"ih{suffix}", ih)(x.transpose(0, 1), *masks)
    keep_states = tap(f"hh{suffix}", ih)
    keep_unprojected = None if place is None else tap(f"hr{suffix}", place)
    mapped, corrections = ih.unbind(), () if place is None else place.unbind()
    before: list[Tensor] = []
    unprojected: list[Tensor] = []
    gates: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []
    order = range(len(mapped) - 1, -1, -1) if reverse else range(len(mapped))
    for t in order:
        before.append(hidden.detach())
        hh = F.linear(hidden, parameters.hh, parameters.bias_hh)
        h, c, gate = cell.step(mapped[t], hh, memory if cell.REMEMBERS else hidden)
        if parameters.hr is not None:
            unprojected.append(h.detach())
            h = F.linear(h, parameters.hr) + corrections[t]
        if mask is not None:
            live = mask[t].unsqueeze(-1)
            h, c = torch.where(live, h, hidden), torch.where(live, c, memory)
        hidden, memory = h, c
        outputs.append(h)
        gates.append(gate)

    def in_order(steps: list[Tensor]) -> Tensor:
        return torch.stack(steps[::-1] if reverse else steps)

    reset = [in_order(list(kind)).transpose(0, 1) for kind in zip(*gates, strict=True)]
    keep_states(in_order(before).transpose(0, 1), *reset, *masks)
    if keep_unprojected is not None:
        keep_unprojected(in_order(unprojected).transpose(0, 1), *masks)
    return in_order(outputs), hidden, memory


@register_explicit(nn.RNN, nn.LSTM, nn.GRU)
class RecurrentRule(ExplicitRule):
    """``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``: layers, directions, projections, dropout and packed sequences."""

    NOTE = "step by step while capturing, without the fused kernel"

    def sites(self, module: nn.Module) -> Mapping[str, SiteRule]:
        """See :meth:`ExplicitRule.sites`."""
        assert isinstance(module, nn.RNNBase)
        sites: dict[str, SiteRule] = {}
        for suffix in _suffixes(module):
            sites |= _sites(CELLS[module.mode], suffix, "time_first")
        return sites

    def forward(
        self, module: nn.Module, tap: Tap, input: Tensor | PackedSequence, hx: Any = None
    ) -> tuple[Tensor | PackedSequence, Any]:
        """See :meth:`ExplicitRule.forward`; the arguments are those of the stock forward.

        Raises:
            ValueError: if the input or the initial states have a wrong number of dimensions.
        """
        assert isinstance(module, nn.RNNBase)
        packed = input if isinstance(input, PackedSequence) else None
        unbatched = packed is None and isinstance(input, Tensor) and input.ndim == 2
        x, mask = _time_first(module, input)
        hidden, memory = _initial(module, x, hx, unbatched=unbatched)
        module.check_input(x, None)
        last_hidden, last_memory = [], []
        suffixes = _suffixes(module)
        directions = len(suffixes) // module.num_layers
        for layer in range(module.num_layers):
            outputs = []
            for k in range(layer * directions, (layer + 1) * directions):
                y, h, c = _unroll(
                    CELLS[module.mode],
                    tap,
                    suffixes[k],
                    _parameters(module, suffixes[k]),
                    x,
                    hidden[k],
                    memory[k],
                    mask,
                    reverse=k % directions == 1,
                )
                outputs.append(y)
                last_hidden.append(h)
                last_memory.append(c)
            x = torch.cat(outputs, -1)
            if module.dropout and layer < module.num_layers - 1:
                x = _dropped(x, module, packed)
        states = tuple(torch.stack(states) for states in (last_hidden, last_memory))
        if unbatched:
            x, states = x.squeeze(1), tuple(state.squeeze(1) for state in states)
        elif packed is not None:
            return packed._replace(data=_pack(x, packed)), states if CELLS[module.mode].REMEMBERS else states[0]
        elif module.batch_first:
            x = x.transpose(0, 1)
        return x, states if CELLS[module.mode].REMEMBERS else states[0]


def _suffixes(module: nn.RNNBase) -> list[str]:
    """Endings of the parameter names, layer by layer and direction by direction, in the order of the states."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def _parameters(module: nn.RNNBase, suffix: str) -> Parameters:
    """Parameters of one layer in one direction, as they are now: they may be parametrised."""
    biases = [getattr(module, f"bias_{kind}{suffix}") if module.bias else None for kind in ("ih", "hh")]
    projection = getattr(module, f"weight_hr{suffix}") if module.proj_size else None
    return Parameters(
        getattr(module, f"weight_ih{suffix}"), getattr(module, f"weight_hh{suffix}"), biases[0], biases[1], projection
    )


def _time_first(module: nn.RNNBase, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
    """The input as ``(T, N, d)`` in the user's order of examples, and the mask ``(T, N)`` of a packed one."""
    if isinstance(input, PackedSequence):
        x, lengths = pad_packed_sequence(input)
        steps = torch.arange(len(x), device=x.device)
        return x, steps.unsqueeze(1) < lengths.to(x.device)
    if input.ndim not in (2, 3):
        raise ValueError(f"{type(module).__name__}: the input must have 2 or 3 dimensions, got {tuple(input.shape)}")
    if input.ndim == 2:
        return input.unsqueeze(1), None
    return (input.transpose(0, 1) if module.batch_first else input), None


def _initial(module: nn.RNNBase, x: Tensor, hx: Any, *, unbatched: bool) -> tuple[Tensor, Tensor]:
    """Initial hidden and cell states ``(layers * directions, N, size)``; without a cell state the hidden one twice."""
    remembers = CELLS[module.mode].REMEMBERS
    sizes = [module.proj_size or module.hidden_size] + [module.hidden_size] * remembers
    expected = [(len(_suffixes(module)), x.shape[1], size) for size in sizes]
    if hx is None:
        states = [x.new_zeros(shape) for shape in expected]
    else:
        states = [state.unsqueeze(1) if unbatched else state for state in (hx if remembers else (hx,))]
    for state, shape in zip(states, expected, strict=True):
        if tuple(state.shape) != shape:
            raise ValueError(
                f"{type(module).__name__}: an initial state must have shape {shape}"
                f"{', without dimension 1 for an unbatched input' if unbatched else ''}; got {tuple(state.shape)}"
            )
    return states[0], states[-1]


def _pack(x: Tensor, packed: PackedSequence) -> Tensor:
    """``(T, N, d)`` in the user's order as the data of a packed sequence like ``packed``."""
    if packed.sorted_indices is not None:
        x = x.index_select(1, packed.sorted_indices)
    steps = torch.arange(x.shape[1])
    lengths = (packed.batch_sizes.unsqueeze(1) > steps).sum(0)
    return pack_padded_sequence(x, lengths).data


def _dropped(x: Tensor, module: nn.RNNBase, packed: PackedSequence | None) -> Tensor:
    """Dropout between two layers, drawing the same numbers as the stock forward on a CPU."""
    if packed is None:
        return F.dropout(x, module.dropout, module.training)
    data = F.dropout(_pack(x, packed), module.dropout, module.training)
    return pad_packed_sequence(packed._replace(data=data), total_length=len(x))[0]


@register_explicit(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
class RecurrentCellRule(ExplicitRule):
    """``nn.RNNCell``, ``nn.LSTMCell`` and ``nn.GRUCell``: one step per call."""

    NOTE = "without the fused kernel while capturing"

    def sites(self, module: nn.Module) -> Mapping[str, SiteRule]:
        """See :meth:`ExplicitRule.sites`."""
        return _sites(_cell(module), "", "time_first")

    def forward(self, module: nn.Module, tap: Tap, input: Tensor, hx: Any = None) -> Any:
        """See :meth:`ExplicitRule.forward`; the arguments are those of the stock forward.

        Raises:
            ValueError: if the input or the states have a wrong number of dimensions.
        """
        assert isinstance(module, nn.RNNCellBase)
        cell = _cell(module)
        given = () if hx is None else tuple(hx) if cell.REMEMBERS else (hx,)
        if input.ndim not in (1, 2) or any(state.ndim != input.ndim for state in given):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (input, *given))
            raise ValueError(
                f"{type(module).__name__}: input and states must all have 2 dimensions, or all 1 (unbatched); "
                f"got shapes {shapes}"
            )
        x = input if input.ndim == 2 else input.unsqueeze(0)
        states = [state if input.ndim == 2 else state.unsqueeze(0) for state in given]
        if not states:
            states = [x.new_zeros((len(x), module.hidden_size))] * (1 + cell.REMEMBERS)
        parameters = Parameters(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
        _, h, c = _unroll(cell, tap, "", parameters, x.unsqueeze(0), states[0], states[-1], None)
        out = (h, c) if input.ndim == 2 else (h.squeeze(0), c.squeeze(0))
        return out if cell.REMEMBERS else out[0]


def _cell(module: nn.Module) -> Cell:
    """The arithmetic of a cell module."""
    modes = {nn.RNNCell: "RNN_TANH", nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
    mode = next(modes[kind] for kind in type(module).__mro__ if kind in modes)
    if isinstance(module, nn.RNNCell):
        mode = f"RNN_{module.nonlinearity.upper()}"
    return CELLS[mode]

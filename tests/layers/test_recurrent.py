"""Recurrent networks: the explicit forward is the stock forward, and its rows are per-example gradients."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from vogn.layers import find_explicit

N, T, D, H = 3, 4, 2, 3
LENGTHS = [2, 4, 1]
BUILD = {"rnn": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k), "lstm": nn.LSTM, "gru": nn.GRU}
OPTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}
CASES = [(kind, options) for kind in BUILD for options in OPTIONS.values()] + [
    ("lstm", {"proj_size": 2, "bidirectional": True, "num_layers": 2, "batch_first": True}),
    ("lstm", {"proj_size": 2, "bias": False}),
]
CELLS = {
    "rnn": nn.RNNCell,
    "relu": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}


def states(module, normal, count=N, seed=5):
    """Initial states ``(layers * directions, N, size)``, as the module takes them."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    hidden = normal(rows, count, module.proj_size or module.hidden_size, seed=seed)
    return (hidden, normal(rows, count, module.hidden_size, seed=seed + 1)) if module.mode == "LSTM" else hidden


def leaves(hx):
    return list(hx) if isinstance(hx, tuple) else [hx]


def flat(output, last):
    """Batch-first output and last states as ``(N, features)``."""
    return torch.cat([output.flatten(1)] + [state.transpose(0, 1).flatten(1) for state in leaves(last)], 1)


def select(hx, n):
    parts = [state[:, n : n + 1] for state in leaves(hx)]
    return tuple(parts) if isinstance(hx, tuple) else parts[0]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_explicit_forward_equals_the_stock_forward_and_the_loop(check_explicit, normal, kind, options):
    module, x = BUILD[kind](D, H, **options), normal(N, T, D).requires_grad_()
    hx = states(module, normal)
    for state in leaves(hx):
        state.requires_grad_()

    def run(forward, n):
        chosen = x if n is None else x[n : n + 1]
        chosen = chosen if module.batch_first else chosen.transpose(0, 1)
        output, last = forward(chosen, hx if n is None else select(hx, n))
        return flat(output if module.batch_first else output.transpose(0, 1), last)

    check_explicit(module, run, [x, *leaves(hx)], N)


@pytest.mark.parametrize("kind", BUILD)
def test_states_default_to_zero(check_explicit, normal, kind):
    module, x = BUILD[kind](D, H, batch_first=True), normal(N, T, D)
    check_explicit(module, lambda forward, n: flat(*forward(x if n is None else x[n : n + 1])), [], N)


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", BUILD)
def test_packed_sequences_of_different_lengths(check_explicit, normal, kind, given, enforce_sorted):
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else LENGTHS
    module, x = BUILD[kind](D, H, num_layers=2, bidirectional=True), normal(N, T, D).requires_grad_()
    if kind == "lstm":
        module = nn.LSTM(D, H, num_layers=2, bidirectional=True, proj_size=2)
    hx = states(module, normal) if given else None

    def run(forward, n):
        if n is not None:  # one example without padding; positions past its end give nothing
            output, last = forward(x[n : n + 1, : lengths[n]].transpose(0, 1), select(hx, n) if given else None)
            output = nn.functional.pad(output.transpose(0, 1), (0, 0, 0, T - lengths[n]))
            return flat(output, last)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)
        output, last = forward(packed, hx)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert getattr(output, name) is getattr(packed, name)
        padded, found = nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=T)
        assert found.tolist() == lengths and type(output) is type(packed)
        return flat(padded, last)

    check_explicit(module, run, [x], N)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_unbatched_input_is_one_example(check_explicit, normal, kind, batch_first, given):
    module, x = BUILD[kind](D, H, batch_first=batch_first, bidirectional=True), normal(T, D).requires_grad_()
    hx = states(module, normal, 1)
    hx = tuple(s.squeeze(1) for s in hx) if isinstance(hx, tuple) else hx.squeeze(1)

    def run(forward, n):
        output, last = forward(x, hx if given else None)
        return torch.cat([part.flatten() for part in (output, *leaves(last))]).unsqueeze(0)

    check_explicit(module, run, [x], 1)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0", "bias_hh_l0"])
def test_the_rest_of_a_partly_frozen_module(check_explicit, normal, frozen):
    module, x = nn.LSTM(D, H, proj_size=2), normal(T, N, D)
    module.get_parameter(frozen).requires_grad_(False)

    def run(forward, n):
        output, last = forward(x if n is None else x[:, n : n + 1])
        return flat(output.transpose(0, 1), last)

    check_explicit(module, run, [], N)


def test_only_the_hidden_maps_of_a_gru_are_trained(check_explicit, normal):
    """The place where their gradient arrives requires one although nothing before it does."""
    module, x = nn.GRU(D, H), normal(T, N, D)
    module.weight_ih_l0.requires_grad_(False)
    module.bias_ih_l0.requires_grad_(False)

    def run(forward, n):
        output, last = forward(x if n is None else x[:, n : n + 1])
        return flat(output.transpose(0, 1), last)

    check_explicit(module, run, [], N)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_equals_the_stock_forward_and_the_loop(check_explicit, normal, kind, bias, given):
    module, x, h = CELLS[kind](D, H, bias=bias), normal(N, D).requires_grad_(), normal(N, H, seed=1).requires_grad_()
    c = normal(N, H, seed=2)

    def run(forward, n):
        pick = slice(None) if n is None else slice(n, n + 1)
        hx = None if not given else (h[pick], c[pick]) if kind == "lstm" else h[pick]
        out = forward(x[pick], hx)
        return torch.cat(leaves(out), 1)

    check_explicit(module, run, [x, h] if given else [x], N)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_takes_one_unbatched_example(check_explicit, normal, kind):
    module, x, h = CELLS[kind](D, H), normal(D), normal(H, seed=1)

    def run(forward, n):
        out = forward(x, (h, h) if kind == "lstm" else h)
        return torch.cat(leaves(out)).unsqueeze(0)

    check_explicit(module, run, [], 1)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_between_layers_draws_the_same_numbers(normal, packed, nobody):
    module, x = nn.LSTM(D, H, num_layers=3, dropout=0.5).double(), normal(T, N, D)
    x = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
    rule, outputs = find_explicit(module), []
    for forward in (module, lambda x: rule.forward(module, nobody, x)):
        torch.manual_seed(0)
        output = forward(x)[0]
        outputs.append(output.data if packed else output)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    module.eval()
    evaluated = module(x)[0]
    assert not torch.allclose(evaluated.data if packed else evaluated, outputs[0])


@pytest.mark.parametrize("kind", BUILD)
def test_autocast_gives_the_types_of_the_stock_forward(normal, kind, nobody):
    module, x = BUILD[kind](D, H, num_layers=2), normal(T, N, D).float()
    rule = find_explicit(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = module(x), rule.forward(module, nobody, x)
    for ours, theirs in zip((found[0], *leaves(found[1])), (expected[0], *leaves(expected[1])), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (lambda: nn.GRU(D, H), (torch.zeros(1, T, N, D),), r"GRU: the input must have 2 or 3 dimensions"),
        (
            lambda: nn.GRU(D, H),
            (torch.zeros(T, N, D), torch.zeros(2, N, H)),
            r"GRU: an initial state must have shape \(1, 3, 3\); got \(2, 3, 3\)",
        ),
        (
            lambda: nn.RNNCell(D, H),
            (torch.zeros(N, D), torch.zeros(H)),
            r"RNNCell: input and states must all have 2 dimensions.*got shapes \(3, 2\), \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, arguments, message, nobody):
    module = build()
    with pytest.raises(ValueError, match=message):
        find_explicit(module).forward(module, nobody, *arguments)

"""Modules with explicit forwards in whole networks: exact curvature, and nothing left behind."""

import copy
import gc
import io
import pickle
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from vogn import KFAC, METHODS
from vogn.capture import oracle
from vogn.capture.partition import partition
from vogn.capture.statistics import GGN, Empirical, MonteCarlo
from vogn.likelihoods import Categorical
from vogn.structures import Dense

N, T, E = 4, 3, 4
STATISTICS = [Empirical(), GGN()]


class Attention(nn.Module):
    """Self- and cross-attention, in either order of dimensions, with learnt keys and separate projections."""

    def __init__(self, batch_first=False, **options):
        super().__init__()
        self.batch_first = batch_first
        self.itself = nn.MultiheadAttention(E, 2, batch_first=batch_first, **options)
        self.cross = nn.MultiheadAttention(E, 1, kdim=2, vdim=3, add_bias_kv=True, batch_first=batch_first, **options)
        self.head = nn.Linear(E, 3)

    def forward(self, x):
        y = x if self.batch_first else x.transpose(0, 1)
        y = y + self.itself(y, y, y, need_weights=False)[0]
        y = self.cross(y, y[..., :2].cos(), y[..., 1:].sin())[0]
        y = y if self.batch_first else y.transpose(0, 1)
        return self.head(y.mean(1))


class Encoded(nn.Module):
    """The stock layers, time first: their linear and norm layers see the examples in dimension 1."""

    def __init__(self, batch_first=False, norm_first=False):
        super().__init__()
        self.batch_first = batch_first
        kind = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(2, 1, 3, **kind), 1, norm=nn.LayerNorm(2), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(2, 1, 2, **kind), 1, norm=nn.LayerNorm(2))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.encoder(x[..., :2])
        z = self.decoder(x[..., 2:], y)
        return self.head(z.mean(1 if self.batch_first else 0))


class Whole(nn.Module):
    """``nn.Transformer`` as it comes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Transformer(2, 1, 1, 1, 2, dropout=0.0)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = x.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(len(x)).double()
        return self.head(self.body(x[..., :2], x[..., 2:], tgt_mask=mask, tgt_is_causal=True).mean(0))


class Recurrent(nn.Module):
    """An LSTM with projections over packed sequences, then a GRU time first, then a vanilla network called twice."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(E, 3, proj_size=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(4, 2, num_layers=2)
        self.twice = nn.RNN(2, 2, batch_first=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        lengths = (x[:, 0, 0] > 0).long() + 1  # of one example: whatever the batch is
        packed, _ = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        y, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=T)
        y = self.gru(y.transpose(0, 1))[0].transpose(0, 1)
        return self.head(self.twice(self.twice(y)[0])[1][0])


class Cells(nn.Module):
    """Cells called once per time step by the user's own loop."""

    def __init__(self):
        super().__init__()
        self.gru, self.lstm, self.rnn = nn.GRUCell(E, 3), nn.LSTMCell(3, 2), nn.RNNCell(2, 2, nonlinearity="relu")
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h, state, r = None, None, None
        for t in range(T):
            h = self.gru(x[:, t], h)
            state = self.lstm(h, state)
            r = self.rnn(state[0], r)
        return self.head(r + state[1])


NETWORKS = {
    "attention": Attention,
    "attention batch first": lambda: Attention(batch_first=True, bias=False, add_zero_attn=True),
    "encoder and decoder": Encoded,
    "encoder and decoder batch first": lambda: Encoded(batch_first=True, norm_first=True),
    "transformer": Whole,
    "recurrent": Recurrent,
    "cells": Cells,
}


def batch(tools):
    return tools.normal(N, T, E), tools.labels(N, 3)


def inside(opt, model, x, y):
    with opt.sampled_params():
        Categorical()(model(x), y).backward()


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.NAME)
@pytest.mark.parametrize("partition", ["layer", "model"])
@pytest.mark.parametrize("name", NETWORKS)
def test_curvature_equals_a_loop_over_examples(tools, name, partition, statistic):
    model, (x, y) = tools.fill(NETWORKS[name]()), batch(tools)
    ours, posterior = tools.measure(model, statistic, Categorical(), x, y, partition=partition)
    tools.assert_blocks(ours, tools.exact(model, statistic, posterior, x, y))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_parameter_needs_a_pass_of_its_own(tools, name):
    model = tools.fill(NETWORKS[name]())
    blocks = partition(model, model.named_parameters(), structure=Dense(), fallback=Dense())
    assert sorted(name for block in blocks for name in block.layout.names) == sorted(oracle.trainable(model))
    assert not any(block.has_bare for block in blocks)


@pytest.mark.parametrize("statistic", [*STATISTICS, MonteCarlo()], ids=lambda s: s.NAME)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_stock_forward(tools, name, statistic):
    model, (x, y) = tools.fill(NETWORKS[name]()), batch(tools)
    Categorical()(model(x), y).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    opt = tools.watch(model, statistic, partition="layer")
    opt.zero_grad()
    inside(opt, model, x, y)
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-10, atol=1e-13)


def clean(model):
    return not any(m._forward_hooks or "forward" in vars(m) or "_site_listeners" in vars(m) for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_after_a_context_nor_after_an_exception(tools, name):
    model, (x, y) = tools.fill(NETWORKS[name]()), batch(tools)
    opt = tools.watch(model, Empirical(), partition="layer")
    stock = {module: module.forward.__func__ for module in model.modules()}
    inside(opt, model, x, y)
    assert clean(model)
    with pytest.raises(ZeroDivisionError), opt.sampled_params():
        assert not clean(model)
        model(x)
        1 / 0  # noqa: B018
    assert clean(model)
    assert all(module.forward.__func__ is stock[module] for module in model.modules())


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_taken_inside_a_context_is_another_model(tools, name, duplicate):
    model, (x, y) = tools.fill(NETWORKS[name]()), batch(tools)
    opt = tools.watch(model, Empirical(), partition="layer")
    expected = model(x)
    with opt.sampled_params():
        other = duplicate(model)
        calls = len(opt._collector._taps.calls)
        torch.testing.assert_close(other(x), expected)
        assert len(opt._collector._taps.calls) == calls, "nobody listens to the copy"
        Categorical()(model(x), y).backward()
    assert clean(model)
    assert not any(module._forward_hooks for module in other.modules()), "what came along has removed itself"
    assert all(module.forward.__func__ is type(module).forward for module in other.modules())
    own = tools.watch(other, Empirical(), partition="layer")
    inside(own, other, x, y)
    tools.assert_blocks(tools.measured(own)[0], tools.measured(opt)[0])
    assert clean(other)


def test_the_inference_fast_path_is_used_again_after_a_context(tools, monkeypatch):
    layer = tools.fill(nn.TransformerEncoderLayer(E, 2, 4, dropout=0.0, batch_first=True))
    model, (x, y) = nn.Sequential(layer, nn.Flatten(), tools.fill(nn.Linear(E * T, 3))), batch(tools)
    fast, original = [], torch._transformer_encoder_layer_fwd

    def spy(*args):
        fast.append(1)
        return original(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
    opt = tools.watch(model, Empirical(), partition="layer")
    model.eval()
    inside(opt, model, x, y)
    assert not fast
    with opt.sampled_params():
        other = copy.deepcopy(model)
    with torch.no_grad():
        slow = [other(x) for _ in range(2)][1]
        assert len(fast) == 1, "the first call removes the copied hooks"
        torch.testing.assert_close(model(x), slow)
    assert len(fast) == 2


def test_evaluation_inside_a_context_is_stock(tools):
    model, (x, _) = tools.fill(Attention()), batch(tools)
    opt = tools.watch(model, Empirical(), partition="layer")
    with torch.no_grad():
        expected = model(x)
        with opt.sampled_params():
            assert torch.equal(model(x), expected)
            assert not opt._collector._taps.calls


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_capture_one_module(tools, order):
    """Each hears its own parameters, and the first to leave does not silence the other."""
    model, (x, y) = tools.fill(Attention()), batch(tools)
    split = [
        [(n, p) for n, p in model.named_parameters() if "in_proj" in n],
        [(n, p) for n, p in model.named_parameters() if "in_proj" not in n],
    ]
    whole, _ = tools.measure(model, Empirical(), Categorical(), x, y, partition="layer")
    model.zero_grad()
    opts = []
    for part in split:
        for p in model.parameters():
            p.requires_grad_(False)
        for _, p in part:
            p.requires_grad_(True)
        opts.append(tools.watch(model, Empirical(), partition="layer"))
        opts[-1]._build()
    for p in model.parameters():
        p.requires_grad_(True)
    for opt in opts:  # what is unfrozen later would be tracked: each keeps its own half
        opt._table.outdated = lambda: False
    for opt in opts:
        opt.sample_()
    Categorical()(model(x), y).backward()
    for k in order:
        opts[k].restore_()
    assert clean(model)
    found = {}
    for opt in opts:
        opt.step()
        found |= {n: m - torch.eye(len(m)) for n, m in opt.posterior().precision_matrices().items()}
    tools.assert_blocks(found, whole)


def test_a_forward_replaced_on_the_instance_is_not_bypassed(tools):
    """Its mathematics is unknown: the parameters are measured in a pass of our own, exactly."""
    model, (x, y) = tools.fill(Attention(batch_first=True)), batch(tools)
    stock = model.itself.forward

    def doubled(*args, **kwargs):
        output, weights = stock(*args, **kwargs)
        return 2 * output, weights

    model.itself.forward = doubled
    ours, posterior = tools.measure(model, Empirical(), Categorical(), x, y, partition="layer")
    tools.assert_blocks(ours, tools.empirical(model, posterior, x, y))
    assert model.itself.forward is doubled
    del model.itself.forward
    opt = tools.watch(model, Empirical(), partition="layer")
    opt.coverage()
    model.itself.forward = doubled
    message = "MultiheadAttention that holds 'itself.in_proj_weight' was replaced on the instance after the optimizer"
    with pytest.raises(TypeError, match=message), opt.sampled_params():
        pass
    assert model.itself.forward is doubled and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", [name for name, info in METHODS.items() if info.needs_model])
@pytest.mark.parametrize("network", ["attention", "recurrent"])
def test_a_micro_batch_is_freed_when_its_backward_ends(tools, name, network):
    model, (x, y) = tools.fill(NETWORKS[network]()).float(), batch(tools)
    seen = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(weakref.ref(args[0])))
    opt = METHODS[name].build(model, ess=10.0)
    gc.collect()
    gc.disable()
    try:
        with opt.sampled_params():
            for _ in range(2):
                (Categorical()(model(x.float()), y) / 2).backward()
                assert seen[-1]() is None
        opt.step()
        assert len(seen) == 2
    finally:
        gc.enable()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["encoder and decoder", "recurrent"])
def test_activation_checkpointing_changes_nothing(tools, name, checkpointed):
    from torch.utils.checkpoint import checkpoint

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = NETWORKS[name]()

        def forward(self, x):
            x = x * 1.0
            return checkpoint(self.inner, x, use_reentrant=False) if checkpointed else self.inner(x)

    x, y = batch(tools)
    for statistic in STATISTICS:
        model = tools.fill(Outer())
        ours, posterior = tools.measure(model, statistic, Categorical(), x, y, partition="layer")
        tools.assert_blocks(ours, tools.exact(model, statistic, posterior, x, y))


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.NAME)
@pytest.mark.parametrize("partition", ["layer", "model"])
def test_one_attention_called_on_sequences_of_different_lengths(tools, partition, statistic):
    """Self-attention, then cross-attention; what follows works in place."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(E, 2, batch_first=True), nn.Linear(E, 3)

        def forward(self, x):
            y = self.attention(x, x, x, need_weights=False)[0]
            y += x
            z = self.attention(y[:, :2], y, y)[0]
            z.relu_()
            return self.head(z.sum(1))

    model, (x, y) = tools.fill(Twice()), batch(tools)
    ours, posterior = tools.measure(model, statistic, Categorical(), x, y, partition=partition)
    tools.assert_blocks(ours, tools.exact(model, statistic, posterior, x, y))


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_unbatched_sequence_is_one_example_in_every_layer(tools, batch_first):
    class Unbatched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(E, 2, 3, dropout=0.0, batch_first=batch_first)
            self.rnn = nn.GRU(E, 3, batch_first=batch_first)

        def forward(self, x):
            return self.rnn(self.layer(x[0]))[1]

    model, x, y = tools.fill(Unbatched()), tools.normal(1, T, E), tools.labels(1, 3)
    ours, posterior = tools.measure(model, Empirical(), Categorical(), x, y, partition="layer")
    tools.assert_blocks(ours, tools.empirical(model, posterior, x, y))


@dataclass
class Output:
    logits: torch.Tensor
    attention: torch.Tensor


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.NAME)
def test_dicts_tuples_and_dataclasses_travel_between_modules(tools, statistic):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(E, 2, batch_first=True)
            self.out = nn.Linear(E, 3)

        def forward(self, *, inputs):
            y, weights = self.attention(query=inputs["x"], key=inputs["x"], value=inputs["x"])
            return Output(self.out(input=y.mean(1)), weights)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(E, E), Inner()

        def forward(self, x):
            return self.inner(inputs={"x": self.first(x)}).logits

    model, (x, y) = tools.fill(Outer()), batch(tools)
    ours, posterior = tools.measure(model, statistic, Categorical(), x, y, partition="layer")
    tools.assert_blocks(ours, tools.exact(model, statistic, posterior, x, y))


def test_kfac_learns_with_a_recurrent_network_and_attention(tools):
    """The default structure takes every block; the loss falls in both modes."""
    for variational in (False, True):
        for name in ("attention", "recurrent"):
            model, (x, y) = tools.fill(NETWORKS[name]()), batch(tools)
            opt = KFAC(model, lr=0.1, ess=1e6, damping=1e-2, variational=variational)
            before = Categorical()(model(x), y).item()
            for _ in range(10):
                opt.zero_grad()
                inside(opt, model, x, y)
                opt.step()
            assert Categorical()(model(x), y).item() < 0.7 * before

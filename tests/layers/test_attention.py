"""Multi-head attention: the explicit forward is the stock forward, and its rows are per-example gradients."""

import pytest
import torch
from torch import nn

from vogn.capture.forwards import forward as explicit_forward
from vogn.layers import find_explicit
from vogn.layers.base import child_axes
from vogn.layers.sites import examples_first

N, L, S, E, HEADS = 3, 4, 2, 4, 2
CAUSAL = torch.ones(L, L, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False] * L, [False, False, True, True], [False, True, False, False]])
SCORES = torch.linspace(-1, 1, N * HEADS * L * L, dtype=torch.float64).view(N * HEADS, L, L)

SELF = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {}),
    "without bias": ({"bias": False}, {}),
    "without weights": ({}, {"need_weights": False}),
    "weights by head": ({"batch_first": True}, {"average_attn_weights": False}),
    "boolean mask": ({"batch_first": True}, {"attn_mask": CAUSAL}),
    "causal hint": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "causal hint with weights": ({}, {"attn_mask": CAUSAL, "is_causal": True}),
    "causal hint with padding": (
        {},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False, "key_padding_mask": PADDED},
    ),
    "score mask per head": ({"batch_first": True}, {"attn_mask": SCORES, "need_weights": False}),
    "padding": ({}, {"key_padding_mask": PADDED}),
    "padding and scores": ({"batch_first": True}, {"attn_mask": SCORES, "key_padding_mask": PADDED.double()}),
    "learnt key and value": ({"add_bias_kv": True}, {"attn_mask": CAUSAL, "key_padding_mask": PADDED}),
    "zero attention": (
        {"add_zero_attn": True, "batch_first": True},
        {"attn_mask": CAUSAL, "need_weights": False},
    ),
}
CROSS = {
    "packed": {},
    "packed batch first": {"batch_first": True},
    "packed without bias": {"bias": False},
    "separate": {"kdim": 3, "vdim": 5},
    "separate with learnt key and value": {"kdim": 3, "vdim": 5, "batch_first": True, "add_bias_kv": True},
    "separate without bias": {"kdim": 3, "vdim": 5, "bias": False},
}


def part(options, n):
    """The masks of one example."""
    if n is None:
        return options
    out = dict(options)
    if "key_padding_mask" in out:
        out["key_padding_mask"] = out["key_padding_mask"][n : n + 1]
    if out.get("attn_mask") is SCORES:
        out["attn_mask"] = SCORES[n * HEADS : (n + 1) * HEADS]
    return out


def flat(module, output, weights):
    output = output if module.batch_first else output.transpose(0, 1)
    return output.flatten(1) if weights is None else torch.cat([output.flatten(1), weights.flatten(1)], 1)


def call(module, forward, tensors, **options):
    arranged = [x if module.batch_first else x.transpose(0, 1) for x in tensors]
    return flat(module, *forward(*arranged, **options))


@pytest.mark.parametrize("case", SELF)
def test_self_attention_equals_the_stock_forward_and_the_loop(check_explicit, normal, case):
    build, options = SELF[case]
    module, x = nn.MultiheadAttention(E, HEADS, **build), normal(N, L, E).requires_grad_()

    def run(forward, n):
        chosen = x if n is None else x[n : n + 1]
        chosen = chosen if module.batch_first else chosen.transpose(0, 1)
        return flat(module, *forward(chosen, chosen, chosen, **part(options, n)))

    check_explicit(module, run, [x], N)


@pytest.mark.parametrize("case", CROSS)
def test_cross_attention_equals_the_stock_forward_and_the_loop(check_explicit, normal, case):
    module = nn.MultiheadAttention(E, HEADS, **CROSS[case])
    sizes = ((L, E), (S, module.kdim), (S, module.vdim))
    tensors = [normal(N, *size, seed=k).requires_grad_() for k, size in enumerate(sizes)]
    check_explicit(
        module,
        lambda forward, n: call(module, forward, tensors if n is None else [x[n : n + 1] for x in tensors]),
        tensors,
        N,
    )


def test_shared_key_and_value_of_the_same_length(check_explicit, normal):
    module, x, y = nn.MultiheadAttention(E, 1, batch_first=True), normal(N, L, E), normal(N, L, E, seed=1)

    def run(forward, n):
        q, k = (x, y) if n is None else (x[n : n + 1], y[n : n + 1])
        return flat(module, *forward(q, k, k))

    check_explicit(module, run, [], N)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_an_unbatched_input_is_one_example(check_explicit, normal, batch_first, need_weights):
    module = nn.MultiheadAttention(E, HEADS, batch_first=batch_first)
    x, mask = normal(L, E).requires_grad_(), SCORES[:HEADS]

    def run(forward, n):
        padded = PADDED[1].double()
        output, weights = forward(x, x, x, attn_mask=mask, key_padding_mask=padded, need_weights=need_weights)
        assert output.shape == (L, E)
        return torch.cat([part.flatten() for part in (output, weights) if part is not None]).unsqueeze(0)

    check_explicit(module, run, [x], 1)


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight"])
@pytest.mark.parametrize("cross", [False, True])
def test_the_rest_of_a_partly_frozen_module(check_explicit, normal, frozen, cross):
    module = nn.MultiheadAttention(E, HEADS, batch_first=True)
    module.get_parameter(frozen).requires_grad_(False)
    x, y = normal(N, L, E), normal(N, S, E, seed=1)

    def run(forward, n):
        q, k = (x, y) if n is None else (x[n : n + 1], y[n : n + 1])
        return flat(module, *(forward(q, k, k) if cross else forward(q, q, q)))

    check_explicit(module, run, [], N)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_draws_the_same_numbers(normal, need_weights, nobody):
    module, x = nn.MultiheadAttention(E, HEADS, dropout=0.5).double(), normal(L, N, E)
    rule, outputs = find_explicit(module), []
    for forward in (module, lambda *args, **kwargs: rule.forward(module, nobody, *args, **kwargs)):
        torch.manual_seed(0)
        outputs.append(forward(x, x, x, need_weights=need_weights)[0])
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    module.eval()
    assert not torch.allclose(module(x, x, x)[0], outputs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_mask": torch.zeros(L, L + 1)}, r"attn_mask must have shape \(4, 4\) or \(6, 4, 4\), got \(4, 5\)"),
        ({"key_padding_mask": torch.zeros(N, L + 1)}, r"key_padding_mask must have shape \(3, 4\), got \(3, 5\)"),
        ({"key_padding_mask": torch.zeros(L)}, r"key_padding_mask must have 2 dimensions, got shape \(4,\)"),
        ({"is_causal": True}, "is_causal=True is a hint about attn_mask, which is missing"),
        ({"value": torch.zeros(N, L + 1, E)}, r"key \(3, 4, 4\) and value \(3, 5, 4\) must agree"),
        ({"key": torch.zeros(L, E)}, "must all have 3 dimensions, or all 2"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, nobody):
    module, x = nn.MultiheadAttention(E, HEADS, batch_first=True), torch.zeros(N, L, E)
    arguments = {"query": x, "key": x, "value": x} | change
    with pytest.raises(ValueError, match=message):
        find_explicit(module).forward(module, nobody, **arguments)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(nobody):
    module = nn.MultiheadAttention(E, HEADS, batch_first=True)
    x = torch.nested.nested_tensor([torch.zeros(2, E), torch.zeros(3, E)])
    with pytest.raises(ValueError, match="nested tensors only in its inference fast path.*key_padding_mask"):
        find_explicit(module).forward(module, nobody, x, x, x)


def test_autocast_gives_the_types_of_the_stock_forward(normal, nobody):
    module, x = nn.MultiheadAttention(E, HEADS), normal(L, N, E).float()
    rule = find_explicit(module)
    for options in ({"need_weights": False}, {"attn_mask": CAUSAL}):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, found = (
                forward(x, x, x, **options)[0]
                for forward in (module, lambda *a, **k: rule.forward(module, nobody, *a, **k))
            )
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # bfloat16 keeps 8 bits


def test_query_and_key_of_different_lengths_are_padded_and_masked(normal):
    module = nn.MultiheadAttention(E, HEADS, batch_first=True).double()
    site = find_explicit(module).sites(module)["in"]
    saved = (normal(N, L, E), normal(N, S, E, seed=1), normal(N, S, E, seed=2))
    rows = site.rows(module, site.parameters, saved, normal(1, N, L + 2 * S, E, seed=3))
    assert rows.mask.shape == (3, N, L)
    assert rows.mask[0].all() and rows.mask[1:, :, :S].all() and not rows.mask[1:, :, S:].any()
    for a, x in zip(rows.a, saved, strict=True):
        assert torch.equal(a[:, : x.shape[1], :E], x) and not a[:, x.shape[1] :].any()
    assert not rows.g[1:, :, :, S:].any()


def test_a_subclass_with_its_own_forward_has_no_explicit_one():
    class Scaled(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    class Named(nn.MultiheadAttention):
        pass

    assert find_explicit(Scaled(E, HEADS)) is None and find_explicit(nn.Linear(2, 2)) is None
    assert find_explicit(Named(E, HEADS)) is find_explicit(nn.MultiheadAttention(E, HEADS))
    assert explicit_forward.__name__ == "forward"  # bound methods are pickled by name


def test_sequence_modules_say_where_examples_are_in_their_children():
    for batch_first, axes in ((False, "time_first"), (True, "batch_first")):
        layer = nn.TransformerEncoderLayer(E, HEADS, 8, batch_first=batch_first)
        assert child_axes(layer)["linear1"] == axes
        stack = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(E), enable_nested_tensor=False)
        assert child_axes(stack) == {"norm": axes}
    assert child_axes(nn.TransformerEncoder(nn.Linear(2, 2), 1, enable_nested_tensor=False)) == {}
    assert child_axes(nn.Linear(2, 2)) == {}


def test_examples_first(normal):
    x = normal(L, N, E)
    assert torch.equal(examples_first(x, "time_first"), x.transpose(0, 1))
    assert examples_first(x, "batch_first") is x and examples_first(x, "examples") is x
    for axes in ("time_first", "batch_first"):
        assert examples_first(x[0], axes).shape == (1, N, E)
        assert examples_first(x, axes, 1).shape == (L, 1, N, E)
    assert examples_first(x.unsqueeze(0), "time_first", 1).shape == (1, N, L, E)

"""Rows of the normalisation layers."""

import pytest
import torch
from torch import nn

BATCH = {
    "1d": (nn.BatchNorm1d, (5, 4)),
    "1d with length": (nn.BatchNorm1d, (5, 4, 3)),
    "2d": (nn.BatchNorm2d, (3, 4, 2, 3)),
    "3d": (nn.BatchNorm3d, (3, 4, 2, 1, 3)),
}
INSTANCE = {"1d": (nn.InstanceNorm1d, (5,)), "2d": (nn.InstanceNorm2d, (2, 3)), "3d": (nn.InstanceNorm3d, (2, 1, 3))}


def randomise_buffers(layer):
    source = torch.Generator().manual_seed(5)
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=source) + 0.5)
    return layer


@pytest.mark.parametrize("kind", BATCH)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_batch_norm_rows_equal_the_gradient_by_row(check_rule, normal, kind, training, track):
    layer_type, shape = BATCH[kind]
    layer = randomise_buffers(layer_type(4, track_running_stats=track, eps=1e-2, momentum=0.0)).train(training)
    rows, layout = check_rule(layer, normal(*shape) * 2 + 1)
    assert layout.block_shape == (4, 2, 1)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_a_single_tracked_parameter(check_rule, normal, frozen, training):
    layer = randomise_buffers(nn.BatchNorm2d(4, momentum=0.0)).train(training)
    getattr(layer, frozen).requires_grad_(False)
    _, layout = check_rule(layer, normal(3, 4, 2, 2))
    assert layout.block_shape == (4, 1, 1)


def test_a_replaced_training_flag_between_forward_and_backward_changes_nothing(normal):
    from vogn.layers import find_rule

    layer, x, g = randomise_buffers(nn.BatchNorm1d(4)).double().eval(), normal(5, 4), normal(1, 5, 4, seed=1)
    rule = find_rule(layer)
    saved = rule.saved(layer, (x,), layer(x))
    before = rule.rows(layer, ("weight", "bias"), saved, g).dense()
    layer.train()(normal(5, 4, seed=2))
    assert torch.equal(rule.rows(layer, ("weight", "bias"), saved, g).dense(), before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_synchronised_batch_norm_of_one_process_is_batch_norm(check_rule, normal, training, track):
    layer = randomise_buffers(nn.SyncBatchNorm(4, track_running_stats=track, momentum=0.0)).train(training)
    _, layout = check_rule(layer, normal(3, 4, 2, 3) * 2 + 1)
    assert layout.block_shape == (4, 2, 1)


@pytest.mark.parametrize("space", [(), (3,)])
def test_synchronised_rows_are_those_of_the_batch_of_all_processes(normal, monkeypatch, space):
    """Two processes with 2 and 3 examples: the second is played by adding its moments to the first's."""
    from vogn.layers import find_rule

    x, g, attributes = normal(5, 4, *space) * 2 + 1, normal(1, 5, 4, *space, seed=1), ("weight", "bias")
    whole, layer = nn.BatchNorm1d(4).double(), nn.SyncBatchNorm(4).double()
    expected = find_rule(whole).rows(whole, attributes, (x,), g).dense()
    rule, sent = find_rule(layer), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda moments, group: sent.append(moments.clone()))
    halves = (slice(0, 2), slice(2, 5))
    for half in halves:
        rule.saved(layer, (x[half],), x[half])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda moments, group: moments.copy_(sent[0] + sent[1]))
    for half in halves:
        rows = rule.rows(layer, attributes, rule.saved(layer, (x[half],), x[half]), g[:, half])
        torch.testing.assert_close(rows.dense(), expected[:, half])
    layer.eval()
    assert len(rule.saved(layer, (x,), x)) == 3  # the running statistics: nothing is sent
    assert torch.equal(rule.saved(layer, (x,), x)[1], layer.running_mean)


@pytest.mark.parametrize("kind", INSTANCE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_instance_norm(check_rule, normal, kind, training, track, batched):
    layer_type, space = INSTANCE[kind]
    layer = randomise_buffers(layer_type(4, affine=True, track_running_stats=track, momentum=0.0)).train(training)
    x = normal(*((3,) if batched else ()), 4, *space) * 2 + 1
    rows, _ = check_rule(layer, x, unbatched=not batched)
    assert rows.count == (3 if batched else 1)


@pytest.mark.parametrize(
    ("groups", "space"),
    [(1, ()), (2, ()), (1, (5,)), (2, (5,)), (4, (5,)), (1, (2, 3)), (2, (2, 3)), (4, (2, 3))],
)
def test_group_norm(check_rule, normal, groups, space):
    check_rule(nn.GroupNorm(groups, 4), normal(3, 4, *space))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
        (lambda: nn.LayerNorm(4), (3, 2, 4)),
        (lambda: nn.InstanceNorm1d(4, affine=True), (3, 4, 5)),
    ],
    ids=["group", "layer", "instance"],
)
def test_a_norm_with_a_single_tracked_parameter(check_rule, normal, layer, shape, frozen):
    layer = layer()
    getattr(layer, frozen).requires_grad_(False)
    _, layout = check_rule(layer, normal(*shape))
    assert layout.block_shape == (4, 1, 1)


@pytest.mark.parametrize("middle", [(), (2,), (2, 3)])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(check_rule, normal, middle, shape, bias):
    rows, layout = check_rule(nn.LayerNorm(shape, bias=bias), normal(3, *middle, *shape))
    assert layout.block_shape == (torch.Size(shape).numel(), 1 + bias, 1)


def test_layer_norm_of_an_unbatched_input(check_rule, normal):
    rows, _ = check_rule(nn.LayerNorm((2, 3)), normal(2, 3), unbatched=True)
    assert rows.count == 1


@pytest.mark.parametrize("middle", [(), (2,), (2, 3)])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
@pytest.mark.parametrize("eps", [None, 1e-2])
def test_rms_norm(check_rule, normal, middle, shape, eps):
    check_rule(nn.RMSNorm(shape, eps=eps), normal(3, *middle, *shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rms_norm_without_eps_uses_the_input_type(dtype):
    from vogn.layers import find_rule

    layer = nn.RMSNorm(4).to(dtype)
    x = torch.full((1, 4), 2.0 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps ** 0.5, dtype=dtype)
    output = layer(x)
    rule = find_rule(layer)
    rows = rule.rows(layer, ("weight",), rule.saved(layer, (x,), output), torch.ones(1, 1, 4, dtype=dtype))
    torch.testing.assert_close(rows.dense().flatten().to(dtype), output.flatten())

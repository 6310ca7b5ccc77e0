"""Models: shapes, sizes of the papers, gradients everywhere, reproducibility, functional calls."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from vogn.models import MODELS, build_model, lenet5, mlp, resnet18, resnet20, resnet34, resnet50
from vogn.models.norm import group_count

RESNETS = [name for name in MODELS if name.startswith("resnet")]
SMALL: dict[str, tuple[dict, tuple[int, ...]]] = {
    "mlp": ({"sizes": [64, 5, 3]}, (1, 8, 8)),
    "lenet5": ({"num_classes": 3, "image_size": 8}, (1, 8, 8)),
    **{name: ({"num_classes": 3, "width": 4, "in_channels": 1}, (1, 8, 8)) for name in RESNETS},
}


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_has_a_small_form():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_small_images_give_logits_and_gradients_reach_every_parameter(name):
    arguments, shape = SMALL[name]
    torch.manual_seed(0)
    model = build_model(name, **arguments).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    kept = x.clone()
    outputs = model(x)
    assert outputs.shape == (4, 3)
    assert torch.equal(x, kept)
    outputs.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("name", MODELS)
def test_seed_decides_the_initial_parameters(name):
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(nn.utils.parameters_to_vector(build_model(name, **SMALL[name][0]).parameters()))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize("name", MODELS)
def test_functional_call_equals_the_module(name):
    arguments, shape = SMALL[name]
    torch.manual_seed(0)
    model = build_model(name, **arguments).eval()
    x = torch.randn(2, *shape)
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(functional_call(model, parameters, (x,)), expected)


@pytest.mark.parametrize("norm", ["batch", "group", "frn"])
@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet50"])
def test_norms_run_and_get_gradients(name, norm):
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, width=4, norm=norm).double()
    model(torch.randn(3, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
    # tau of a filter response norm is hit only where its input lies below it: a finite gradient is all one can ask
    missing = [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("tau")]
    assert missing == []


def test_examples_do_not_interact_without_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for norm in ("group", "frn"):
        model = build_model("resnet8", width=4, norm=norm).double()
        torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.parametrize("size", [1, 2, 5, 32])
@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_no_image_is_too_small(name, size):
    model = build_model(name, num_classes=3, width=4, in_channels=2).eval()
    assert torch.isfinite(model(torch.randn(2, 2, size, size))).all()


def test_parameter_counts_of_the_paper():
    """He et al. 2016: ResNet-20 0.27 million (table 6); the others are the well-known counts of option B networks."""
    with torch.device("meta"):
        assert parameter_count(resnet20()) == 269_722
        assert parameter_count(resnet18()) == 11_689_512
        assert parameter_count(resnet34()) == 21_797_672
        assert parameter_count(resnet50()) == 25_557_032
    assert parameter_count(lenet5()) == 61_706
    assert parameter_count(mlp([3, 4, 2])) == 3 * 4 + 4 + 4 * 2 + 2


def test_resnet20_count_by_hand():
    blocks = 3 * (2 * 9 * 16 * 16) + 3 * 2 * 9 * 32 * 32 - 9 * 16 * 32 + 3 * 2 * 9 * 64 * 64 - 9 * 32 * 64
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert 9 * 3 * 16 + blocks + norms + 64 * 10 + 10 == 269_722


def test_shortcut_a_subsamples_and_pads_with_zeros():
    block = resnet20(width=2).stages[1][0]
    x = torch.randn(2, 2, 5, 5)
    y = block.shortcut(x)
    assert y.shape == (2, 4, 3, 3)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()


@pytest.mark.parametrize("channels", [1, 4, 6, 16, 18, 64, 512, 2048])
def test_group_count_divides_the_channels(channels):
    groups = group_count(channels)
    assert channels % groups == 0 and 1 <= groups <= 32
    assert groups == 1 or channels // groups >= 4
    assert channels < 128 or groups == 32


@pytest.mark.parametrize("image_size", [4, 8, 11, 12, 28, 32])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_lenet_fits_the_image(image_size, activation):
    assert lenet5(3, 2, image_size, activation)(torch.randn(2, 2, image_size, image_size)).shape == (2, 3)


def test_build_model_imports_a_constructor_of_the_user():
    layer = build_model("torch.nn:Linear", in_features=3, out_features=2)
    assert isinstance(layer, nn.Linear) and layer.weight.shape == (2, 3)


ILLEGAL = [
    ("resnet21", {}, ValueError, "unknown model 'resnet21'; known models: lenet5, mlp, resnet8"),
    ("torch.nn:", {}, ValueError, "does not have the form 'package.module:callable'"),
    ("no_such_package.models:net", {}, ValueError, "importing 'no_such_package.models' failed"),
    ("torch.nn:Linaer", {}, ValueError, "module 'torch.nn' has no name 'Linaer'"),
    ("torch:float32", {}, TypeError, "is a dtype; a callable is needed"),
    ("math:sqrt", {}, TypeError, "missing a required argument: 'x'"),
    ("builtins:dict", {}, TypeError, "returned dict; a torch.nn.Module is needed"),
    ("resnet20", {"widht": 3}, TypeError, "unexpected keyword argument 'widht'; its signature is"),
    ("resnet20", {"width": 0}, ValueError, "width=0; it must be at least 1"),
    ("resnet20", {"norm": "layer"}, ValueError, "norm='layer'; known norms: batch, group, frn"),
    ("mlp", {"sizes": [3]}, ValueError, r"sizes=\[3\]; give two or more"),
    ("mlp", {"activation": "gelu"}, ValueError, "activation='gelu'; known activations: relu, tanh"),
    ("lenet5", {"image_size": 3}, ValueError, "image_size=3; it must be at least 4"),
    ("lenet5", {"num_classes": 0}, ValueError, "both must be at least 1"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), ILLEGAL)
def test_illegal_model_raises(name, arguments, error, message):
    with pytest.raises(error, match=message):
        build_model(name, **arguments)

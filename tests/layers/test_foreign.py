"""Rows of other packages' layers, found by qualified name: stand-ins with their mathematics, and the real ones."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn.layers import FOREIGN, RULES, find_rule, register_foreign
from vogn.layers.foreign import GemmaRMSNormRule, LlamaRMSNormRule, T5LayerNormRule, TransposedLinearRule

LLAMA = "transformers.models.llama.modeling_llama.LlamaRMSNorm"
GEMMA = "transformers.models.gemma.modeling_gemma.GemmaRMSNorm"
T5 = "transformers.models.t5.modeling_t5.T5LayerNorm"
CONV1D = "transformers.pytorch_utils.Conv1D"
CONVNEXT = "transformers.models.convnext.modeling_convnext.ConvNextLayerNorm"


def named(name, cls):
    """The class as if it came from the package: its name, and the module of its ``forward``."""
    cls.__module__, cls.__qualname__ = name.rsplit(".", 1)
    cls.forward.__module__ = cls.__module__
    return cls


def transposed_linear():
    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.empty(nf))

        def forward(self, x):
            return x @ self.weight + self.bias

    return named(CONV1D, Conv1D)


def llama_norm():
    class LlamaRMSNorm(nn.Module):
        def __init__(self, size, eps=1e-2):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), eps

        def forward(self, hidden_states):
            x = hidden_states.float()
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * x.to(hidden_states.dtype)

    return named(LLAMA, LlamaRMSNorm)


def gemma_norm():
    class GemmaRMSNorm(nn.Module):
        def __init__(self, size, eps=1e-2):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.zeros(size)), eps

        def forward(self, x):
            h = x.float()
            # float64 factor: a float32 one would round the gradient that it is compared with
            return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * (1.0 + self.weight)

    return named(GEMMA, GemmaRMSNorm)


def t5_norm():
    class T5LayerNorm(nn.Module):
        def __init__(self, size, eps=1e-2):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), eps

        def forward(self, x):
            variance = x.float().pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))

    return named(T5, T5LayerNorm)


@pytest.mark.parametrize("middle", [(), (2,), (2, 3)])
def test_transposed_linear(check_rule, normal, middle):
    rows, layout = check_rule(transposed_linear()(3, 4), normal(5, *middle, 4))
    assert layout.block_shape == (3, 5)
    assert torch.equal(rows.a[..., -1], torch.ones(rows.a.shape[:-1], dtype=torch.float64))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_transposed_linear_with_a_single_tracked_parameter(check_rule, normal, frozen):
    layer = transposed_linear()(3, 4)
    getattr(layer, frozen).requires_grad_(False)
    _, layout = check_rule(layer, normal(5, 2, 4))
    assert layout.block_shape == ((3, 1) if frozen == "weight" else (3, 4))


@pytest.mark.parametrize(
    ("build", "rule"),
    [(llama_norm, LlamaRMSNormRule), (gemma_norm, GemmaRMSNormRule), (t5_norm, T5LayerNormRule)],
    ids=["llama", "gemma", "t5"],
)
@pytest.mark.parametrize("middle", [(), (2,), (2, 3)])
def test_rms_norms(check_rule, normal, build, rule, middle):
    layer = build()(4)
    assert type(find_rule(layer)) is rule and rule.NORMALISES
    _, layout = check_rule(layer, normal(3, *middle, 4))
    assert layout.block_shape == (4, 1, 1)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_layer_norm_over_the_channels_of_an_image(check_rule, normal, data_format):
    class ConvNextLayerNorm(nn.LayerNorm):
        def forward(self, x):
            if self.data_format == "channels_last":
                return super().forward(x)
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    layer = named(CONVNEXT, ConvNextLayerNorm)(4)
    layer.data_format = data_format
    _, layout = check_rule(layer, normal(3, 4, 2, 3) if data_format == "channels_first" else normal(3, 2, 3, 4))
    assert layout.block_shape == (4, 2, 1)


@pytest.mark.parametrize("name", ["timm.layers.norm.LayerNorm2d", "torchvision.models.convnext.LayerNorm2d"])
def test_layer_norm_of_two_dimensional_images(check_rule, normal, name):
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, x):
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
            return x.permute(0, 3, 1, 2)

    check_rule(named(name, LayerNorm2d)(4, bias=False), normal(3, 4, 2, 3))


def test_a_foreign_name_beats_the_base_class_and_serves_subclasses_that_keep_forward(normal):
    class LayerNorm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    foreign = named("timm.layers.norm.LayerNorm", LayerNorm)

    class Mine(foreign):
        pass

    assert find_rule(foreign(4)) is find_rule(Mine(4)) is FOREIGN["timm.layers.norm.LayerNorm"]
    assert find_rule(nn.LayerNorm(4)) is RULES[nn.LayerNorm]


def test_another_forward_under_a_known_name_has_no_rule():
    llama = llama_norm()

    class Scaled(llama):
        def forward(self, x):
            return 2 * super().forward(x)

    assert find_rule(Scaled(4)) is None
    patched = llama_norm()
    patched.forward = lambda self, x: 2 * self.weight * x
    assert find_rule(patched(4)) is None
    module = llama(4)
    module.forward = lambda x: x
    assert find_rule(module) is None


def test_a_class_of_another_module_with_the_same_name_has_no_rule():
    assert find_rule(named("my.package.LlamaRMSNorm", llama_norm())(4)) is None


def test_users_register_their_own_foreign_classes(monkeypatch):
    monkeypatch.setitem(FOREIGN, "their.package.Projection", None)  # restored afterwards
    register_foreign("their.package.Projection")(TransposedLinearRule)
    projection = named("their.package.Projection", transposed_linear())
    assert type(find_rule(projection(3, 4))) is TransposedLinearRule


FAST = (LLAMA, GEMMA, T5, CONVNEXT)
LISTED = [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
    for name in FOREIGN
    if name.startswith("transformers.models.")
]


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_class_of_transformers_has_the_mathematics_of_its_rule(name):
    """The real class against its rule, in float32; a class that this version lacks is skipped by name."""
    pytest.importorskip("transformers")
    module_name, class_name = name.rsplit(".", 1)
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError):
        pytest.skip(f"this version of transformers has no {name}")
    image = class_name.endswith("LayerNorm") and issubclass(kind, nn.LayerNorm)
    layer = kind(2, data_format="channels_first") if image else kind(4)
    x = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    rule = find_rule(layer)
    assert rule is FOREIGN[name]
    output = layer(x)
    g = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    attributes = tuple(name for name, _ in layer.named_parameters())
    rows = rule.rows(layer, attributes, rule.saved(layer, (x,), output), g.unsqueeze(0)).dense()[0].squeeze(-1)
    for n in range(len(x)):
        gradients = torch.autograd.grad(layer(x[n : n + 1]), list(layer.parameters()), g[n : n + 1])
        torch.testing.assert_close(rows[n], torch.stack([grad.flatten() for grad in gradients], -1))


def test_the_real_transposed_linear(check_rule, normal):
    utilities = pytest.importorskip("transformers.pytorch_utils")
    layer = utilities.Conv1D(3, 4)
    assert type(find_rule(layer)) is TransposedLinearRule
    check_rule(layer, normal(5, 2, 4))


class Decoder(nn.Module):
    """The layers of GPT-2 and Llama: a transposed linear map and a root-mean-square normalisation."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.head = transposed_linear()(4, 3), llama_norm()(4), transposed_linear()(3, 8)

    def forward(self, x):
        return self.head(self.norm(hidden_states=torch.tanh(self.up(x=x))).flatten(1))


def test_the_curvature_of_a_network_of_foreign_layers_is_exact(check_network, normal):
    # the normalisation computes in float32, and so does the gradient that passes through it
    check_network(Decoder(), normal(4, 2, 3), rtol=1e-4, atol=1e-7)

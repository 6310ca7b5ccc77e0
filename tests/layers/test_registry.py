"""Which rule serves which module."""

import pytest
from torch import nn

import vogn.layers
from vogn.layers import RULES, LayerRule, find_rule

SUPPORTED = [
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
]


@pytest.mark.parametrize("module_type", SUPPORTED)
def test_importing_the_package_registers_the_rule(module_type):
    assert isinstance(RULES[module_type], LayerRule)


def test_a_subclass_that_keeps_forward_shares_the_rule():
    class Named(nn.Linear):
        pass

    assert find_rule(Named(2, 2)) is RULES[nn.Linear]


def test_a_subclass_that_overrides_forward_has_no_rule():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert find_rule(Scaled(2, 2)) is None


def test_an_unknown_module_has_no_rule():
    class Unknown(nn.Module):
        pass

    assert find_rule(Unknown()) is None


def test_public_names_exist():
    assert all(getattr(vogn.layers, name) is not None for name in vogn.layers.__all__)

"""Floor 2: from a layer's input and output gradient to rows. One layer family per file.

Importing this package fills :data:`RULES`.
"""

from vogn.layers.bare import PReLURule, parameter_layout, parameter_rows
from vogn.layers.base import RULES, LayerRule, find_rule, register_layer
from vogn.layers.convolution import ConvolutionRule
from vogn.layers.embedding import EmbeddingRule
from vogn.layers.linear import LinearRule
from vogn.layers.norm import BatchNormRule, GroupNormRule, InstanceNormRule, LayerNormRule, RMSNormRule

__all__ = [
    "RULES",
    "BatchNormRule",
    "ConvolutionRule",
    "EmbeddingRule",
    "GroupNormRule",
    "InstanceNormRule",
    "LayerNormRule",
    "LayerRule",
    "LinearRule",
    "PReLURule",
    "RMSNormRule",
    "find_rule",
    "parameter_layout",
    "parameter_rows",
    "register_layer",
]

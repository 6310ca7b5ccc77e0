"""Floor 2: from a layer's input and output gradient to rows. One layer family per file.

Importing this package fills :data:`RULES`, :data:`FOREIGN` and :data:`EXPLICIT`.
"""

from vogn.layers.attention import AttentionRule
from vogn.layers.bare import PReLURule, parameter_layout, parameter_rows
from vogn.layers.base import (
    EXPLICIT,
    FOREIGN,
    RULES,
    ExplicitRule,
    LayerRule,
    SiteRule,
    child_axes,
    find_explicit,
    find_rule,
    register_explicit,
    register_foreign,
    register_layer,
)
from vogn.layers.bilinear import BilinearRule
from vogn.layers.convolution import ConvolutionRule
from vogn.layers.embedding import EmbeddingRule
from vogn.layers.embedding_bag import EmbeddingBagRule
from vogn.layers.foreign import (
    ChannelLayerNormRule,
    DataFormatLayerNormRule,
    GemmaRMSNormRule,
    LlamaRMSNormRule,
    T5LayerNormRule,
    TransposedLinearRule,
)
from vogn.layers.linear import LinearRule
from vogn.layers.norm import (
    BatchNormRule,
    GroupNormRule,
    InstanceNormRule,
    LayerNormRule,
    RMSNormRule,
    SyncBatchNormRule,
)
from vogn.layers.recurrent import RecurrentCellRule, RecurrentRule
from vogn.layers.transposed_convolution import TransposedConvolutionRule

__all__ = [
    "EXPLICIT",
    "FOREIGN",
    "RULES",
    "AttentionRule",
    "BatchNormRule",
    "BilinearRule",
    "ChannelLayerNormRule",
    "ConvolutionRule",
    "DataFormatLayerNormRule",
    "EmbeddingBagRule",
    "EmbeddingRule",
    "ExplicitRule",
    "GemmaRMSNormRule",
    "GroupNormRule",
    "InstanceNormRule",
    "LayerNormRule",
    "LayerRule",
    "LinearRule",
    "LlamaRMSNormRule",
    "PReLURule",
    "RMSNormRule",
    "RecurrentCellRule",
    "RecurrentRule",
    "SiteRule",
    "SyncBatchNormRule",
    "T5LayerNormRule",
    "TransposedConvolutionRule",
    "TransposedLinearRule",
    "child_axes",
    "find_explicit",
    "find_rule",
    "parameter_layout",
    "parameter_rows",
    "register_explicit",
    "register_foreign",
    "register_layer",
]

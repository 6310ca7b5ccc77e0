"""Layers of other packages, known by qualified name: nothing is imported for them.

Each class is listed because its own ``forward`` is the mathematics of the rule. A class that is missing is measured as
bare parameters; :func:`~vogn.layers.base.register_foreign` adds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vogn.layers.base import register_foreign
from vogn.layers.linear import LinearRule
from vogn.layers.norm import LayerNormRule, NormRule, standardise, trailing_positions
from vogn.layers.pairs import matrix_layout
from vogn.linalg.layout import Layout
from vogn.types import Shape


def _transformers(**classes: str) -> tuple[str, ...]:
    """Qualified names of ``family=class`` in the modeling files of transformers."""
    return tuple(
        f"transformers.models.{family}.modeling_{family}.{name}"
        for family, names in classes.items()
        for name in names.split()
    )


@register_foreign("transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D")
class TransposedLinearRule(LinearRule):
    """GPT-2's ``Conv1D``, ``y = x W + b`` with ``W (d_in, d_out)``: a linear layer whose weight is transposed."""

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        d_in, d_out = module.get_parameter("weight").shape
        return matrix_layout(names, shapes, (d_out, d_in), permute=(1, 0))


class SinglePrecisionRMSRule(NormRule):
    """``weight * x / rms(x)`` over the last dimension, normalised in float32 whatever the input's type."""

    EPS: ClassVar[str] = "variance_epsilon"

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        single = x.to(torch.float32)
        return (single * self.inverse_rms(module, single)).to(x.dtype)

    def inverse_rms(self, module: nn.Module, single: Tensor) -> Tensor:
        """``1 / sqrt(mean(x^2) + eps)`` of the float32 input."""
        return (single.square().mean(-1, keepdim=True) + getattr(module, self.EPS)).rsqrt()

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        return trailing_positions(x, tuple(x.shape[-1:]))


@register_foreign(
    *_transformers(
        apertus="ApertusRMSNorm",
        arcee="ArceeRMSNorm",
        cwm="CwmRMSNorm",
        deepseek_v2="DeepseekV2RMSNorm",
        deepseek_v3="DeepseekV3RMSNorm",
        ernie4_5="Ernie4_5RMSNorm",
        exaone4="Exaone4RMSNorm",
        glm="GlmRMSNorm",
        glm4="Glm4RMSNorm",
        glm4_moe="Glm4MoeRMSNorm",
        gpt_oss="GptOssRMSNorm",
        granite="GraniteRMSNorm",
        granitemoe="GraniteMoeRMSNorm",
        internvl="InternVLVisionRMSNorm",
        jamba="JambaRMSNorm",
        lfm2="Lfm2RMSNorm",
        llama="LlamaRMSNorm",
        minimax="MiniMaxRMSNorm",
        ministral="MinistralRMSNorm",
        mistral="MistralRMSNorm",
        mixtral="MixtralRMSNorm",
        mllama="MllamaTextRMSNorm",
        olmo2="Olmo2RMSNorm",
        olmo3="Olmo3RMSNorm",
        phi3="Phi3RMSNorm",
        pixtral="PixtralRMSNorm",
        qwen2="Qwen2RMSNorm",
        qwen2_5_vl="Qwen2_5_VLRMSNorm",
        qwen2_moe="Qwen2MoeRMSNorm",
        qwen2_vl="Qwen2VLRMSNorm",
        qwen3="Qwen3RMSNorm",
        qwen3_moe="Qwen3MoeRMSNorm",
        qwen3_vl="Qwen3VLTextRMSNorm",
        seed_oss="SeedOssRMSNorm",
        smollm3="SmolLM3RMSNorm",
    )
)
class LlamaRMSNormRule(SinglePrecisionRMSRule):
    """Llama's normalisation and its copies in other families of transformers."""


@register_foreign(
    *_transformers(
        gemma="GemmaRMSNorm",
        gemma2="Gemma2RMSNorm",
        gemma3="Gemma3RMSNorm",
        gemma3n="Gemma3nRMSNorm",
        qwen3_next="Qwen3NextRMSNorm",
        recurrent_gemma="RecurrentGemmaRMSNorm",
        t5gemma="T5GemmaRMSNorm",
        vaultgemma="VaultGemmaRMSNorm",
    )
)
class GemmaRMSNormRule(SinglePrecisionRMSRule):
    """Gemma's normalisation. Its factor is ``1 + weight``, whose gradient is that of ``weight``."""

    EPS = "eps"


@register_foreign(
    *_transformers(
        longt5="LongT5LayerNorm",
        mt5="MT5LayerNorm",
        pix2struct="Pix2StructLayerNorm",
        switch_transformers="SwitchTransformersLayerNorm",
        t5="T5LayerNorm",
        umt5="UMT5LayerNorm",
    )
)
class T5LayerNormRule(SinglePrecisionRMSRule):
    """T5's normalisation: only the root mean square is float32, the division keeps the input's type."""

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        return x * self.inverse_rms(module, x.to(torch.float32))


register_foreign("timm.layers.norm.LayerNorm")(LayerNormRule)


@register_foreign("timm.layers.norm.LayerNorm2d", "torchvision.models.convnext.LayerNorm2d")
class ChannelLayerNormRule(NormRule):
    """Layer normalisation over the channels of ``(N, C, H, W)``."""

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        assert isinstance(module.eps, float)
        return standardise(x, (self.channel(module),), module.eps)

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        channel = self.channel(module)
        return trailing_positions(x.movedim(channel, -1), (x.shape[channel],))

    def channel(self, module: nn.Module) -> int:
        """Where the channels are in ``(K, N, ...)``."""
        return 2


@register_foreign(
    *_transformers(
        convnext="ConvNextLayerNorm", convnextv2="ConvNextV2LayerNorm", sam="SamLayerNorm", sam2="Sam2LayerNorm"
    )
)
class DataFormatLayerNormRule(ChannelLayerNormRule):
    """ConvNeXt's layer normalisation, whose ``data_format`` says where the channels are."""

    def channel(self, module: nn.Module) -> int:
        """Second or last."""
        return 2 if module.data_format == "channels_first" else -1

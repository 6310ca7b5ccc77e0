"""Small random models of other packages, built from their configurations: nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vogn.likelihoods import Categorical  # noqa: E402

WORDS, LENGTH, CLASSES = 13, 6, 3


def bert(**options: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt2(**options: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(**options: Any) -> nn.Module:
    """Rotary positions, RMS normalisation, two query heads per key head."""
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def vit(**options: Any) -> nn.Module:
    """A class token and learnt positions are bare parameters."""
    config = transformers.ViTConfig(
        image_size=4, patch_size=2, num_channels=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet(**options: Any) -> nn.Module:
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES,
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def convnext(**options: Any) -> nn.Module:
    """Depthwise convolutions; the layer scale is a bare parameter."""
    config = transformers.ConvNextConfig(
        num_channels=1, patch_size=2, hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.ConvNextForImageClassification(config)


@dataclass(frozen=True)
class Zoo:
    """A family of models with a task for it.

    Args:
        build: makes the model from a configuration.
        task: ``"text"`` (a class per sequence), ``"tokens"`` (the next token) or ``"images"``.
        size: height and width of the images.
        positions: whether learnt positions are given for every example; left out, the model looks them up once for all.
    """

    build: Callable[..., nn.Module]
    task: str
    size: int = 4
    positions: bool = False

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
        """A model away from its initial point, where norm layers are the identity and the layer scale is tiny."""
        torch.manual_seed(seed)
        model = self.build(**options).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def batch(self, n: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
        """Keyword arguments of the model and labels."""
        source = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (n,), generator=source)
        if self.task == "images":
            pixels = torch.randn(n, 1, self.size, self.size, generator=source, dtype=torch.float64)
            return {"pixel_values": pixels.to(dtype)}, labels
        words = torch.randint(1, WORDS, (n, LENGTH), generator=source)
        present = torch.ones_like(words)
        present[0, -2:] = 0
        present[1, -1:] = 0
        inputs = {"input_ids": words, "attention_mask": present}
        if self.positions:
            inputs["position_ids"] = torch.arange(LENGTH).expand(n, -1)
        return inputs, labels if self.task == "text" else words

    def terms(
        self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Outputs, targets and mask of the loss terms."""
        logits = model(**inputs).logits
        if self.task == "tokens":
            return logits[:, :-1], labels[:, 1:], inputs["attention_mask"][:, 1:].bool()
        return logits, labels, None

    def loss(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The mean over the loss terms."""
        outputs, targets, mask = self.terms(model, inputs, labels)
        return Categorical()(outputs, targets, mask=mask)


ZOO = {
    "bert": Zoo(bert, "text", positions=True),
    "gpt2": Zoo(gpt2, "tokens", positions=True),
    "llama": Zoo(llama, "tokens"),
    "vit": Zoo(vit, "images"),
    "resnet": Zoo(resnet, "images", 8),
    "convnext": Zoo(convnext, "images", 8),
}


@pytest.fixture(params=ZOO)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def zoo(family: str) -> Zoo:
    return ZOO[family]


@pytest.fixture
def zoo_of() -> Callable[[str], Zoo]:
    return ZOO.__getitem__

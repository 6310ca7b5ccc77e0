"""The three tasks: data, model, loss and what is measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from benchmarks.classification.images import load, parts
from benchmarks.classification.sizes import Study
from benchmarks.sample_space import text
from benchmarks.sample_space.sizes import Size, size_of
from benchmarks.sample_space.translator import Translator
from vogn.likelihoods import Categorical
from vogn.models import build_model

Part = Literal["validation", "test"]


class Task(Protocol):
    """One task."""

    metric: str
    examples: int

    def model(self) -> nn.Module:
        """A network with initial weights of the global generator."""
        ...

    def loss(self, model: nn.Module, indices: Tensor) -> Tensor:
        """Mean loss of the training examples at these places."""
        ...

    def measure(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Mean ``loss`` and the metric on a part that is not trained on."""
        ...


class Images:
    """A classifier of images: a perceptron with two hidden layers on MNIST, a ResNet-8 on CIFAR-10."""

    metric = "accuracy"

    def __init__(self, name: str, size: Size, directory: Path | None) -> None:
        study = Study(size.train, size.test, size.epochs, 0, 0, 0, validation=size.validation)
        (self.x, self.y), validation, test = parts(name, directory, study, 0, tuning=False)
        self.others = {"validation": validation, "test": test}
        self.name, self.width, self.examples = name, size.width, len(self.x)
        self.likelihood = Categorical()

    def model(self) -> nn.Module:
        if self.name == "mnist":
            return build_model("mlp", sizes=(784, self.width, self.width, 10))
        return build_model("resnet8", num_classes=10, in_channels=3, width=self.width)

    def loss(self, model: nn.Module, indices: Tensor) -> Tensor:
        return self.likelihood(model(self.x[indices]), self.y[indices])

    @torch.no_grad()
    def measure(self, model: nn.Module, part: Part) -> dict[str, float]:
        x, y = self.others[part]
        logits = torch.cat([model(images) for images in x.split(500)])
        return {
            "loss": float(nn.functional.cross_entropy(logits, y)),
            "accuracy": float((logits.argmax(-1) == y).float().mean()),
        }


class Translation:
    """English to German sentences with a Transformer; the loss is the mean over words, the metric BLEU.

    The vocabulary is made of the training pairs alone. Hypotheses are words with blanks between them, compared with the
    untouched references by sacrebleu without regard to case.
    """

    metric = "bleu"

    def __init__(self, size: Size, directory: Path | None) -> None:
        pairs = {
            part: text.load(directory, part, count, size.tokens)
            for part, count in (("train", size.train), ("validation", size.validation), ("test", size.test))
        }
        train = pairs.pop("train")
        self.words = text.Vocabulary.of([*train.source, *train.target], size.vocabulary)
        self.source, self.target = self._numbers(train)
        self.others = {part: (*self._numbers(found), found.reference) for part, found in pairs.items()}
        self.width, self.tokens, self.examples = size.width, size.tokens, len(self.source)
        self.likelihood = Categorical()

    def _numbers(self, pairs: text.Pairs) -> tuple[Tensor, Tensor]:
        return self.words.numbers(pairs.source, target=False), self.words.numbers(pairs.target, target=True)

    def model(self) -> nn.Module:
        return Translator(len(self.words.words), self.width, self.tokens + 2)

    def loss(self, model: nn.Module, indices: Tensor) -> Tensor:
        source, target = (_trimmed(side[indices]) for side in (self.source, self.target))
        wanted = target[:, 1:]
        return self.likelihood(model(source, target[:, :-1]), wanted, mask=wanted != text.PAD)

    @torch.no_grad()
    def measure(self, model: nn.Module, part: Part) -> dict[str, float]:
        source, target, references = self.others[part]
        total, count, hypotheses = 0.0, 0, []
        for chunk, wanted in zip(source.split(250), target.split(250), strict=True):
            logits = model(chunk, wanted[:, :-1])
            following = wanted[:, 1:]
            total += float(
                nn.functional.cross_entropy(
                    logits.flatten(0, 1), following.flatten(), ignore_index=text.PAD, reduction="sum"
                )
            )
            count += int((following != text.PAD).sum())
            found = model.translate(chunk, self.tokens)
            hypotheses += [self.words.sentence(row) for row in found.tolist()]
        return {"loss": total / count, "bleu": bleu(hypotheses, references)}


def _trimmed(tokens: Tensor) -> Tensor:
    """Without columns that are padding throughout."""
    return tokens[:, : int((tokens != text.PAD).any(0).sum())]


def bleu(hypotheses: list[str], references: list[str]) -> float:
    """Corpus BLEU, 0 to 100, lower-cased."""
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        sys.exit("the multi30k task needs the bench extra: pip install 'vogn[bench]'")
    return float(corpus_bleu(hypotheses, [references], lowercase=True).score)


def make_task(arguments: argparse.Namespace, name: str) -> Task:
    """The task of that name in the form that is asked for."""
    size = size_of(arguments, name)
    if name == "multi30k":
        return Translation(size, arguments.data_dir)
    return Images(name, size, arguments.data_dir)


def check_data(name: str, directory: Path | None) -> None:
    """Stop with a clear message if a file is missing."""
    if name == "multi30k":
        for part in text.FILES:
            text.load(directory, part, 1, 10**6)
    else:
        load(name, directory, limit=1)

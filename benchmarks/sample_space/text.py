"""Sentence pairs as numbers."""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
WORD = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")
FILES = {"train": "multi30k_train", "validation": "multi30k_val", "test": "multi30k_test2016"}


def words(sentence: str) -> list[str]:
    """Lower-cased words (with inner hyphens and apostrophes) and punctuation marks."""
    return WORD.findall(sentence.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Words of both languages by their number.

    Args:
        words: the special ones first.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], size: int) -> Vocabulary:
        """The ``size`` most frequent words that occur at least twice, ties in alphabetical order."""
        counts = Counter(word for sentence in sentences for word in sentence)
        ranked = sorted((-count, word) for word, count in counts.items() if count >= 2)
        return cls((*SPECIAL, *(word for _, word in ranked[:size])))

    def numbers(self, sentences: Sequence[Sequence[str]], *, target: bool) -> Tensor:
        """``(N, T)``, padded at the end; targets stand between a begin and an end mark."""
        places = {word: place for place, word in enumerate(self.words)}
        rows = [[places.get(word, UNKNOWN) for word in sentence] for sentence in sentences]
        rows = [[BEGIN, *row, END] for row in rows] if target else rows
        out = torch.full((len(rows), max(map(len, rows))), PAD)
        for place, row in enumerate(rows):
            out[place, : len(row)] = torch.tensor(row)
        return out

    def sentence(self, numbers: Iterable[int]) -> str:
        """The words up to the end mark."""
        found = []
        for number in numbers:
            if number == END:
                break
            found.append(self.words[number])
        return " ".join(found)


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs of one part.

    Args:
        source, target: words.
        reference: the target as it stands in the file.
    """

    source: list[list[str]]
    target: list[list[str]]
    reference: list[str]


def load(directory: Path | None, part: str, count: int, longest: int) -> Pairs:
    """The first ``count`` pairs of a part with 1 to ``longest`` words on either side, English to German."""
    paths = [f"{FILES[part]}.{language}.txt.gz" for language in ("en", "de")]
    for name in paths:
        if directory is None or not (directory / name).exists():
            sys.exit(f"multi30k needs --data-dir with the file {name} (see benchmarks/README.md); it is missing")
    assert directory is not None
    english, german = (gzip.decompress((directory / name).read_bytes()).decode().splitlines() for name in paths)
    found = Pairs([], [], [])
    for source, target in zip(english, german, strict=True):
        pair = words(source), words(target)
        if len(found.source) < count and all(1 <= len(side) <= longest for side in pair):
            found.source.append(pair[0])
            found.target.append(pair[1])
            found.reference.append(target)
    return found

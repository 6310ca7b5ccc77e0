"""A random generator of numpy whose state goes into checkpoints that no code is unpickled from."""

from __future__ import annotations

import json

import numpy as np
from numpy.random import Generator

from vogn.errors import CheckpointError


def generator_state(generator: Generator) -> str:
    """The state of a PCG64 generator as text."""
    return json.dumps(generator.bit_generator.state)


def generator_from_state(text: str) -> Generator:
    """Undoes :func:`generator_state`.

    Raises:
        CheckpointError: if the text is no such state.
    """
    generator = np.random.default_rng(0)
    try:
        generator.bit_generator.state = json.loads(text)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"this is no state of a random generator: {error}") from error
    return generator


def derived_seed(*numbers: int) -> int:
    """A seed of 32 bits that is a function of all numbers (each >= 0)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

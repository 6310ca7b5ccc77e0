"""What everything that is fitted to held-out predictions has in common: options, fitted numbers, a plain form."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from vogn.errors import RecalibrationError

F = TypeVar("F", bound="Fitted")


class Fitted(ABC):
    """Options from the constructor, and ``numbers`` from ``fit``.

    Attributes:
        kind: name in files.
        OPTIONS: names of the constructor's arguments, which are attributes too.
    """

    kind: ClassVar[str]
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    _numbers: dict[str, Tensor] | None = None

    @property
    def numbers(self) -> dict[str, Tensor]:
        """What was fitted, by name, float64 on the CPU.

        Raises:
            RecalibrationError: before ``fit``.
        """
        if self._numbers is None:
            raise RecalibrationError(
                f"{type(self).__name__} has not been fitted; call fit with held-out examples first"
            )
        return self._numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; see :func:`vogn.calibration.from_dict`.

        Raises:
            RecalibrationError: before ``fit``.
        """
        options = {name: getattr(self, name) for name in self.OPTIONS}
        numbers = {name: _plain(value.tolist()) for name, value in self.numbers.items()}
        return {"kind": self.kind, "options": options, "numbers": numbers}

    @classmethod
    def from_dict(cls: type[F], data: Mapping[str, Any]) -> F:
        """Rebuild from :meth:`to_dict`, bit for bit."""
        made = cls(**data["options"])
        made._numbers = {
            name: torch.tensor(_floats(value), dtype=torch.float64) for name, value in data["numbers"].items()
        }
        return made

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.OPTIONS)
        return f"{type(self).__name__}({options}){'' if self._numbers is not None else ', not fitted'}"


def _plain(values: Any) -> Any:
    """Infinities as text, which JSON has no number for."""
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return values if abs(values) != float("inf") else str(values)


def _floats(values: Any) -> Any:
    return [_floats(value) for value in values] if isinstance(values, list) else float(values)

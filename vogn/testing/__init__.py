"""Conformance suites: inherit one in a test file and it checks an implementation against its interface."""

from __future__ import annotations

from vogn.testing.structures import StructureConformance

__all__ = ["StructureConformance"]

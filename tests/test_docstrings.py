"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import vogn

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(vogn.__path__, "vogn.") if not module.name.endswith("__main__")
)


def examples(name: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(importlib.import_module(name)) if test.examples]


@pytest.mark.parametrize("name", [name for name in MODULES if examples(name)])
def test_docstring_examples_run(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in examples(name):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_the_central_entries_have_examples() -> None:
    found = {test.name for name in MODULES for test in examples(name)}
    wanted = {
        "vogn.optim.vogn.VOGN",
        "vogn.optim.base.NaturalGradient",
        "vogn.predict.prediction.predict",
        "vogn.linalg.rows.Rows",
    }
    assert wanted <= found, f"no example in {sorted(wanted - found)}"

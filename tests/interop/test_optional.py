"""The integrations stand on packages that need not be there."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import vogn
from vogn.interop import natural_gradient, require


@pytest.mark.parametrize(("package", "extra"), [("lightning.pytorch", "lightning"), ("transformers", "transformers")])
def test_a_missing_package_is_named_with_its_extra(package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"vogn.interop.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf"{extra} is not installed; pip install 'vogn\[{extra}\]'"):
        importlib.import_module(f"vogn.interop.{extra}")


def test_an_error_inside_a_package_is_not_taken_for_its_absence(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        require("halfway", extra="none")


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_the_optimizer_is_found_inside_its_wrappers():
    model = torch.nn.Linear(2, 2)
    opt = vogn.VOGN(model, ess=10)
    assert natural_gradient(Wrapper(Wrapper(opt))) is opt
    assert natural_gradient(opt) is opt
    with pytest.raises(TypeError, match="Adam is none of vogn's optimizers"):
        natural_gradient(Wrapper(torch.optim.Adam(model.parameters())))

"""The pool of ranks, and comparisons of what they return."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"distributed_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scenarios = sys.modules["scenarios"] = load("scenarios")  # the other files import it by this name


@pytest.fixture(scope="session")
def pool():
    ranks = load("pool").Pool()
    yield ranks
    ranks.stop()


class Ranks:
    """Runs a function of ``scenarios.py`` alone or on several ranks."""

    def __init__(self, pool):
        self.pool = pool

    def run(self, function, size=2, file="scenarios.py", **arguments):
        return self.pool.run(str(HERE / file), function, size=size, **arguments)

    def alone(self, function, file="scenarios.py", **arguments):
        module = scenarios if file == "scenarios.py" else load(Path(file).stem)
        return getattr(module, function)(0, None, **arguments)

    @staticmethod
    def assert_identical(results):
        """Bit by bit the same on all ranks."""
        assert len(results) > 1 and results[0]
        for other in results[1:]:
            assert other.keys() == results[0].keys()
            for name, tensor in results[0].items():
                assert torch.equal(tensor, other[name]), name

    @staticmethod
    def assert_equal(result, reference, tolerance):
        """Relative to the largest entry of each tensor."""
        assert reference and result.keys() == reference.keys()
        for name, tensor in reference.items():
            scale = max(1.0, float(tensor.abs().max())) if tensor.numel() else 1.0
            torch.testing.assert_close(
                result[name], tensor, rtol=0.0, atol=tolerance * scale, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.fixture
def ranks(pool):
    return Ranks(pool)

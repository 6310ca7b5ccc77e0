"""``import vogn`` loads torch and no other heavy library."""

import subprocess
import sys

import pytest

HEAVY = ("pyro", "gpytorch", "linear_operator", "matplotlib", "sklearn", "scipy", "pandas", "datasets", "PIL",
         "typer", "rich", "gymnasium", "transformers", "peft", "accelerate", "lightning", "tensorboard",
         "torch._dynamo", "torch.distributed.fsdp", "sympy", "vogn.cli", "vogn.interop", "vogn.sklearn",
         "vogn.report")  # fmt: skip


@pytest.mark.parametrize("statement", ["import vogn", "import vogn.cli", "import vogn.data", "import vogn.models"])
def test_import_loads_no_heavy_library(statement):
    heavy = [name for name in HEAVY if name != statement.split()[1]]
    code = f"import sys; {statement}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []

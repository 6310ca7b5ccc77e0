"""Does our IVON take the same steps as ivon-opt 0.1.3 under the same noise?

Both train the same small network in float64; ivon-opt's draws are replaced by ours. Prints the largest difference of
the means over all steps for several settings, relative to the size of the means, and fails above 1e-12.

    pip install 'vogn[bench]'
    python -m benchmarks.ivon_parity
"""

from __future__ import annotations

import copy
import itertools
import sys
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import vogn
from vogn.linalg.noise import normal

STEPS, TOLERANCE = 50, 1e-12


def our_noise(optimizer: vogn.NaturalGradient, step: int, sample: int) -> Tensor:
    """The draws of our optimizer, one parameter after the other."""
    group = optimizer.param_groups[0]
    return torch.cat(
        [
            normal(
                (parameter.numel(),),
                seed=optimizer.seed,
                stream="weights",
                step=step,
                sample=sample,
                name=name,
                dtype=parameter.dtype,
            )
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]
    )


def largest_difference(ivon: Any, *, rescale_lr: bool, clip_radius: float, mc_samples: int, beta: float) -> float:
    """Largest difference of the means over all steps, relative to their size."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    theirs = copy.deepcopy(ours)
    shared = {"lr": 0.1, "ess": 100.0, "weight_decay": 1e-3, "clip_radius": clip_radius, "rescale_lr": rescale_lr}
    a = vogn.IVON(ours, curvature_decay=beta, initial_curvature=0.3, mc_samples=mc_samples, **shared)
    b = ivon.IVON(theirs.parameters(), beta2=beta, hess_init=0.3, mc_samples=mc_samples, **shared)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    loss, worst = nn.CrossEntropyLoss(), 0.0
    for step in range(STEPS):
        a.zero_grad()
        for sample in range(mc_samples):
            with a.sampled_params():
                loss(ours(x), y).backward()
            noise = our_noise(a, step, sample)
            with mock.patch("torch.randn", lambda *_, noise=noise, **__: noise.clone()), b.sampled_params(train=True):
                b.zero_grad()
                loss(theirs(x), y).backward()
        a.step()
        b.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            difference = (p.detach() - q.detach()).abs().max() / q.detach().abs().max()
            worst = max(worst, float(difference))
    return worst


def main() -> int:
    """Run all settings."""
    try:
        import ivon
    except ImportError:
        print("this comparison needs the bench extra: pip install 'vogn[bench]'")
        return 2
    torch.set_default_dtype(torch.float64)  # ivon-opt keeps part of its state in the default type
    failed = False
    settings = itertools.product((True, False), (float("inf"), 0.05), (1, 3), (0.9, 0.99999))
    for rescale, radius, samples, beta in settings:
        worst = largest_difference(ivon, rescale_lr=rescale, clip_radius=radius, mc_samples=samples, beta=beta)
        failed |= not worst <= TOLERANCE
        print(
            f"rescale_lr={rescale!s:5} clip_radius={radius:<5} mc_samples={samples} beta2={beta:<8} "
            f"largest relative difference over {STEPS} steps: {worst:.1e}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

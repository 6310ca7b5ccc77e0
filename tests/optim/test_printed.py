"""What people read: the coverage table and a printed optimizer, word for word.

``EXPECTTEST_ACCEPT=1 pytest tests/optim/test_printed.py`` accepts a new wording.
"""

from __future__ import annotations

import expecttest
from torch import nn

import vogn


class TestPrinted(expecttest.TestCase):
    def test_coverage_of_a_small_model(self) -> None:
        model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2), nn.LayerNorm(2))
        model[0].requires_grad_(False)
        table = str(vogn.coverage(model, {"1": "dense"}, method="kfac"))
        self.assertExpectedInline(
            table,
            """\
parameter  block     layer      shape  structure  statistic  refresh  bytes  observe  step  note
---------  --------  ---------  -----  ---------  ---------  -------  -----  -------  ----  ---------------------------
0.weight             Embedding         frozen                             0                 frozen: requires_grad=False
1.weight   1.weight  Linear     2x5    Dense      mc              10    464    +400%   267
1.bias     1.weight  Linear     2x5    Dense      mc              10      8
2.weight   2.weight  LayerNorm  2x2x1  Kronecker  mc              10    144        ?  32.1
2.bias     2.weight  LayerNorm  2x2x1  Kronecker  mc              10      8
5 parameters, 4 tracked, 1 frozen; 624 bytes of optimizer state
statistic: mc: one more backward per draw of labels
observe: multiply-adds of observing (own pass included), relative to the layer's forward and backward, at any
         batch size (Dense: with one position per example); ? where shapes do not tell
step: multiply-adds of solving and refreshing per step, whatever the batch""",
        )

    def test_a_named_method(self) -> None:
        opt = vogn.KFAC(nn.Linear(4, 2), lr=0.1, ess=100.0, weight_decay=0.01)
        text = "\n".join(line.rstrip() for line in repr(opt).splitlines())
        self.assertExpectedInline(
            text,
            """\
KFAC (
Parameter Group 0
    anneal_power: None
    curvature_decay: 0.95
    damping: 0.001
    ess: 100.0
    examples_done: 0
    examples_measured: 0
    initial_curvature: first_batch
    likelihood:
    lr: 0.1
    mc_samples: 1
    momentum: 0.9
    observe_every: 1
    overhead: None
    overhead_met: False
    param_names: ['weight', 'bias']
    refresh_every: 10
    sampled: True
    step_divisor: None
    steps_done: 0
    variational: True
    weight_decay: 0.01
)""",
        )

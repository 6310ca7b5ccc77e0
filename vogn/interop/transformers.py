"""The Trainer of transformers: sampling, a loss that counts its terms, diagnostics, posteriors; models that return
dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vogn.interop import natural_gradient, require
from vogn.likelihoods import Categorical, Likelihood
from vogn.optim.base import NaturalGradient

TrainerCallback: Any = require("transformers", extra="transformers").TrainerCallback

IGNORED = -100
"""The label of positions without a loss term."""


class NaturalGradientCallback(TrainerCallback):
    """Everything that a :class:`vogn.NaturalGradient` needs in a ``Trainer``::

        opt = vogn.VOGN(model, ess=len(train_set))
        Trainer(model, args, optimizers=(opt, None), callbacks=[NaturalGradientCallback()],
                compute_loss_func=LikelihoodLoss(), train_dataset=train_set).train()

    The weights are a sample from the beginning of a step until all of its batches have gone backward: accumulated
    batches share it. After ``trainer.train()`` has raised, ``opt.restore_(completed=False)`` puts the mean back.

    Args:
        max_grad_norm: norm to which the gradient is clipped, after the mean is back; ``None`` for no clipping. The
            ``Trainer`` itself would clip while the sample is in the model, so ``TrainingArguments(max_grad_norm=0)``.
        diagnostics: add ``opt.diagnostics()`` to every entry of the log, as ``vogn/...``. Callbacks that come later get
            them too; ``trainer.pop_callback`` and ``add_callback`` move one (``TensorBoardCallback``) behind this.
        posterior: name of the file in every checkpoint's folder, and at the end in ``output_dir``; ``None`` for none.

    Raises:
        ImportError: when the module is imported, if transformers is not installed.
    """

    def __init__(
        self,
        *,
        max_grad_norm: float | None = None,
        diagnostics: bool = True,
        posterior: str | None = "posterior.safetensors",
    ) -> None:
        self.max_grad_norm = max_grad_norm
        self.diagnostics = diagnostics
        self.posterior = posterior
        self._optimizer: NaturalGradient | None = None

    @property
    def optimizer(self) -> NaturalGradient:
        """The optimizer inside the Trainer's wrapper."""
        assert self._optimizer is not None
        return self._optimizer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that arguments and optimizer fit.

        Raises:
            TypeError: if the optimizer is none of ours.
            ValueError: for ``max_grad_norm > 0``, ``fp16`` or ``mc_samples > 1``.
        """
        opt = self._optimizer = natural_gradient(kwargs["optimizer"])
        samples = max(int(group["mc_samples"]) for group in opt.param_groups)
        if args.max_grad_norm:
            raise ValueError(
                f"TrainingArguments(max_grad_norm={args.max_grad_norm}) clips while a weight sample is in the model; "
                f"set max_grad_norm=0 there and, to clip, NaturalGradientCallback(max_grad_norm={args.max_grad_norm})"
            )
        if args.fp16:
            raise ValueError("fp16=True unscales the gradients while they are being measured; use bf16=True")
        if samples > 1:
            raise ValueError(f"a Trainer makes one pass per batch, so mc_samples={samples} cannot be; use mc_samples=1")
        opt.restore_(completed=False)  # of a run that was interrupted

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a weight sample into the model."""
        self.optimizer.zero_grad()
        self.optimizer.sample_()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the mean back and clip."""
        self.optimizer.restore_()
        if self.max_grad_norm is not None:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the diagnostics to an entry of the training log."""
        if self.diagnostics and self._optimizer is not None and logs is not None and "loss" in logs:
            numbers = {f"vogn/{name}": value for name, value in self.optimizer.diagnostics().items()}
            logs.update(numbers)
            state.log_history[-1].update(numbers)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the posterior beside the checkpoint."""
        self._save(args, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the posterior beside the final model."""
        self.optimizer.restore_(completed=False)  # of a step that was stopped between two batches
        self._save(args, Path(args.output_dir))

    def _save(self, args: Any, folder: Path) -> None:
        if self.posterior is not None and args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            self.optimizer.posterior().save(folder / self.posterior)


class LikelihoodLoss:
    """``compute_loss_func`` of a ``Trainer``: a likelihood of the model's logits, which counts its loss terms.

    Needed by the methods that draw labels or need Hessians (K-FAC, VON), and by all methods that measure per-example
    gradients where a loss is a mean over tokens. The ``ess`` is then the number of loss terms: tokens, not sequences.

    Args:
        likelihood: default :class:`vogn.likelihoods.Categorical`.
        shift: whether position ``t`` predicts label ``t + 1``: causal language models.
        ignore_index: label of positions that are not predicted; their loss terms do not count.
    """

    def __init__(
        self, likelihood: Likelihood | None = None, *, shift: bool = False, ignore_index: int = IGNORED
    ) -> None:
        self.likelihood = likelihood or Categorical()
        self.shift = shift
        self.ignore_index = ignore_index

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The mean over the loss terms.

        Args:
            outputs: of the model, with ``logits`` ``(N, C)`` or ``(N, T, C)``.
            labels: ``(N,)`` or ``(N, T)``.
            num_items_in_batch: number of loss terms of the whole step; the losses of its batches then add up to the
                step's mean, whatever their sizes. ``None`` for the mean of this batch.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        mask = None if labels.is_floating_point() else labels != self.ignore_index
        weight = 1.0
        if num_items_in_batch is not None:
            weight = (labels.numel() if mask is None else int(mask.sum())) / int(num_items_in_batch)
        return self.likelihood(logits, labels, weight=weight, mask=mask)


@contextmanager
def logits_only(model: nn.Module) -> Iterator[nn.Module]:
    """A model that returns its logits instead of a dictionary, as :func:`vogn.predict` needs it; names stay the same::

        with logits_only(model):
            predictive = vogn.predict(model, posterior, {"input_ids": ids, "attention_mask": mask})

    Args:
        model: returns an object with ``logits``.
    """
    handle = model.register_forward_hook(lambda module, args, output: output.logits)
    try:
        yield model
    finally:
        handle.remove()

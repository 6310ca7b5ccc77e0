"""Lightning: sampling around forward and backward, diagnostics in the logger, the posterior beside the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from vogn.interop import natural_gradient, require
from vogn.optim.base import NaturalGradient

Callback: Any = require("lightning.pytorch", extra="lightning").Callback


class NaturalGradientCallback(Callback):
    """Everything that a :class:`vogn.NaturalGradient` needs in Lightning's automatic optimisation.

    ``configure_optimizers`` returns the optimizer, built on the network (``vogn.VOGN(self.network, ...)``: the names in
    the posterior are then the network's own). Without this callback Lightning's ``step(closure)`` works too, as long
    as it neither accumulates nor clips gradients nor scales losses.

    - The weights are a sample from the beginning of a training batch to the end of its backward; everywhere else
      (clipping, validation, checkpoints, other callbacks) they are the mean. Batches that are accumulated have samples
      of their own. Lightning divides the loss by ``accumulate_grad_batches`` also where the last step of an epoch has
      fewer batches: gradient and curvature are then too small, so choose a number that divides.
    - ``mc_samples > 1`` runs ``training_step`` that many times per batch, neither accumulated nor in ``16-mixed``.
    - With manual optimisation, write ``with self.optimizers().optimizer.sampled_params():`` around forward and
      ``manual_backward``; the callback then only logs and saves. (``self.optimizers()`` alone is Lightning's wrapper.)

    Args:
        log_every: steps between two entries of ``opt.diagnostics()`` in the loggers, as ``vogn/...``; 0 for none,
            ``None`` for the trainer's ``log_every_n_steps``.
        posterior: file that the posterior is written to at the end of the training. A relative path begins at the
            folder of the checkpoints, or else at the logger's or the trainer's. ``None`` writes none.

    Raises:
        ImportError: when the module is imported, if Lightning is not installed.
    """

    def __init__(self, *, log_every: int | None = None, posterior: str | Path | None = "posterior.safetensors") -> None:
        self.log_every = log_every
        self.posterior = posterior
        self.posterior_path: Path | None = None
        """Where the posterior has been written."""
        self._open = False
        self._hook: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that trainer and optimizer fit.

        Raises:
            TypeError: if the optimizer is none of ours.
            ValueError: if there are several, or if Lightning cannot make the passes that ``mc_samples`` asks for.
        """
        opt = self._optimizer(trainer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        samples = max(int(group["mc_samples"]) for group in opt.param_groups)
        one_pass = pl_module.automatic_optimization and (scaler is not None or trainer.accumulate_grad_batches > 1)
        if samples > 1 and one_pass:
            raise ValueError(
                f"mc_samples={samples} needs several passes per batch, which Lightning cannot make with "
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} and precision={trainer.precision!r}: use "
                "mc_samples=1 (accumulated batches have samples of their own)"
            )
        opt.grad_scaler = scaler
        if not pl_module.automatic_optimization:
            self._hook = opt.register_step_pre_hook(_finish_closure)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Write a weight sample into the network."""
        opt = self._optimizer(trainer)
        if not pl_module.automatic_optimization or opt.param_groups[0]["mc_samples"] > 1:
            return
        self._close(opt, completed=False)  # of a batch that another callback has skipped
        if batch_idx % trainer.accumulate_grad_batches == 0:
            opt.zero_grad()
        opt.sample_()
        self._open = True

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Put the mean back: before clipping, and while gradients and rows have the same loss scale."""
        if pl_module.automatic_optimization:
            opt = self._optimizer(trainer)
            opt.restore_()
            self._open = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the diagnostics where they are due."""
        opt = self._optimizer(trainer)
        self._close(opt, completed=False)  # training_step returned None: there was no backward
        every = trainer.log_every_n_steps if self.log_every is None else self.log_every
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if every and stepped and trainer.global_step % every == 0 and trainer.loggers:
            numbers = {f"vogn/{name}": value for name, value in opt.diagnostics().items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put the mean back."""
        if self._open:
            self._close(self._optimizer(trainer), completed=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the posterior."""
        if self.posterior is not None and trainer.is_global_zero:
            path = self._folder(trainer) / self.posterior
            path.parent.mkdir(parents=True, exist_ok=True)
            self._optimizer(trainer).posterior().save(path)
            self.posterior_path = path

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the optimizer alone."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _optimizer(self, trainer: Any) -> NaturalGradient:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"NaturalGradientCallback serves one optimizer, configure_optimizers returned {len(trainer.optimizers)}"
            )
        return natural_gradient(trainer.optimizers[0])

    def _close(self, opt: NaturalGradient, *, completed: bool) -> None:
        if self._open:
            opt.restore_(completed=completed)
            self._open = False

    @staticmethod
    def _folder(trainer: Any) -> Path:
        checkpoints = trainer.checkpoint_callback
        beside = None if checkpoints is None else checkpoints.dirpath
        return Path(beside or trainer.log_dir or trainer.default_root_dir)


def _finish_closure(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Manual optimisation: the closure holds no passes of the user's, so ``step`` must not open a context for it."""
    _, *positional = args
    closure = positional[0] if positional else kwargs.get("closure")
    if closure is not None:
        closure()
    return (optimizer,), {}

"""What both estimators share: options, standardised data, training runs and predictions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from vogn.data.order import epoch_batches
from vogn.models import mlp
from vogn.optim.laplace import laplace
from vogn.posterior import GaussianPosterior, tune_prior_precision
from vogn.predict import Predictive, predict
from vogn.sklearn.progress import shown
from vogn.sklearn.recipes import check_method
from vogn.sklearn.training import Training, make_likelihood

Factory = Callable[[int, int], nn.Module]
"""From the numbers of features and outputs to a network."""


class NaturalGradientEstimator(BaseEstimator):
    """Base of :class:`VOGNClassifier` and :class:`VOGNRegressor`, where the options are described."""

    def __init__(
        self,
        method: str = "kfac",
        *,
        variational: bool = True,
        module: nn.Module | Factory | None = None,
        hidden_layer_sizes: Sequence[int] = (50,),
        activation: str = "relu",
        steps: int = 2000,
        batch_size: int = 100,
        lr: float | str | None = None,
        prior_precision: float | str = "evidence",
        temperature: float = 1.0,
        samples: int = 100,
        method_options: Mapping[str, Any] | None = None,
        device: str = "cpu",
        random_state: Any = None,
        verbose: bool | int = False,
    ) -> None:
        self.method = method
        self.variational = variational
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.prior_precision = prior_precision
        self.temperature = temperature
        self.samples = samples
        self.method_options = method_options
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _check_options(self) -> None:
        check_method(self.method, self.variational)
        for name in ("steps", "batch_size", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature!r} must be a positive finite number")
        _check_number("prior_precision", self.prior_precision, ("evidence",))
        _check_number("lr", self.lr, ("range_test", None))

    def _start(self, x: np.ndarray, outputs: int, *, labels: bool) -> None:
        """A new network, with a new optimizer and a new scale of the inputs."""
        self._check_options()
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._scaler = StandardScaler().fit(x.reshape(len(x), -1))
        self.network_ = self._network(math.prod(x.shape[1:]), outputs)
        self.n_steps_ = 0
        self.loss_curve_: list[float] = []
        like = next(self.network_.parameters())
        self._training = Training(
            self.network_,
            make_likelihood(labels, like.detach()),
            method=self.method,
            variational=self.variational,
            examples=len(x),
            temperature=self.temperature,
            prior_precision=self.prior_precision,
            options=({} if self.lr in (None, "range_test") else {"lr": self.lr}) | dict(self.method_options or {}),
            seed=self._seed,
        )
        self._examples = 0

    def _network(self, features: int, outputs: int) -> nn.Module:
        """The network, with weights that only the seed decides."""
        device = torch.device(self.device)
        if isinstance(self.module, nn.Module):
            network = copy.deepcopy(self.module)
        else:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(self._seed)
                if self.module is None:
                    network = mlp((features, *self.hidden_layer_sizes, outputs), self.activation).double()
                else:
                    network = self.module(features, outputs)
        if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
            raise ValueError("module must be a torch.nn.Module with parameters, or a function that returns one")
        return network.to(device)

    def _train(self, x: Tensor, y: Tensor) -> None:
        """A whole run; the posterior at its end."""
        size = min(self.batch_size, len(x))
        if self.lr == "range_test":
            self._training.choose_rate(x, y, size)
        with self._global_seed(), shown(self.steps, bool(self.verbose)) as watch:
            self._training.fit(x, y, steps=self.steps, batch_size=size, watch=self._note(watch))
        self._examples = len(x)
        self._finish(self._training.optimizer.posterior() if self.variational else self._laplace(x, y))

    def _train_more(self, x: Tensor, y: Tensor) -> None:
        """One epoch of new examples."""
        self._examples += len(x)
        with self._global_seed():
            self._training.fit_once(
                x, y, batch_size=min(self.batch_size, len(x)), examples=self._examples, watch=self._note(None)
            )
        self._finish(self._training.optimizer.posterior())

    def _global_seed(self) -> Any:
        """Dropout and the like follow from the seed, and the global generators come back."""
        device = torch.device(self.device)
        context = torch.random.fork_rng([device] if device.type == "cuda" else [])
        return _seeded(context, self._seed + self.n_steps_)

    def _note(self, watch: Callable[[int, float], None] | None) -> Callable[[int, float], None]:
        def note(step: int, loss: float) -> None:
            self.loss_curve_.append(loss)
            self.n_steps_ += 1
            if watch is not None:
                watch(step, loss)

        return note

    def _laplace(self, x: Tensor, y: Tensor) -> GaussianPosterior:
        """The posterior of a network that was trained without one."""
        batches = [(x[rows], y[rows]) for rows in epoch_batches(len(x), 256, self._seed, 0)]
        options = {"seed": self._seed} if self._training.tuned else {
            "seed": self._seed, "prior_precision": self._training.precision, "temperature": self.temperature
        }
        found = laplace(self.network_, self._training.likelihood, batches, **options)
        return tune_prior_precision(found).tempered(self.temperature) if self._training.tuned else found

    def _finish(self, posterior: GaussianPosterior) -> None:
        posterior.likelihood = self._training.likelihood.to_dict()
        self.posterior_ = posterior
        self.likelihood_ = self._training.likelihood
        self.lr_ = max(self._training.rates)
        self.prior_precision_ = {b.name: b.ess * b.shift for b in posterior.sampled_blocks}
        self.network_.eval()

    def _predict(
        self, x: np.ndarray, *, samples: int | None = None, seed: int | None = None, **options: Any
    ) -> Predictive:
        """The predictive distribution at raw inputs, in standardised targets."""
        check_is_fitted(self, "posterior_")
        return predict(
            self.network_,
            self.posterior_,
            self._inputs(x),
            method="mc" if self.variational else "linearized",
            likelihood=self.likelihood_,
            samples=self.samples if samples is None else samples,
            seed=self._seed if seed is None else seed,
            **options,
        )

    def _inputs(self, x: np.ndarray) -> Tensor:
        """Standardised inputs where the network lives, in its dtype."""
        scaled = self._scaler.transform(x.reshape(len(x), -1)).reshape(x.shape)
        like = next(p for p in self.network_.parameters() if p.is_floating_point())
        return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float64)).to(like)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "posterior_")


class _seeded:
    """A context of torch's generators that begins with a seed."""

    def __init__(self, fork: Any, seed: int) -> None:
        self.fork, self.seed = fork, seed

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _check_number(name: str, value: Any, words: tuple[Any, ...]) -> None:
    if value is None or isinstance(value, str):
        if value not in words:
            raise ValueError(f"{name}={value!r}: give a positive number or one of {', '.join(map(repr, words))}")
    elif not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive finite number or one of {', '.join(map(repr, words))}")

"""The Gaussian process of a linearised network, as gpytorch's distributions."""

from __future__ import annotations

from typing import Any

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import nn

from vogn.likelihoods import Gaussian, Likelihood
from vogn.posterior import Posterior
from vogn.predict import jacobian


def to_gp(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
    *,
    likelihood: Likelihood | None = None,
    batch_size: int = 256,
) -> MultivariateNormal:
    """The joint distribution of the outputs at all inputs under the network's linearisation at the mean weights.

    Its mean is ``f(x)`` at the mean weights and its covariance ``J Sigma J^T``, between inputs and between outputs: a
    Gaussian process whose kernel is the posterior's. It goes wherever a gpytorch distribution does: draws of whole
    functions, conditioning, gpytorch's likelihoods and metrics.

    Memory and time grow with the inputs: Jacobians of ``N K D`` numbers for ``N`` inputs, ``K`` outputs and ``D``
    weights that vary, and a dense covariance of ``(N K)^2``. For many inputs use
    ``vogn.predict(method="linearized")``. Batch norm has the model's running statistics.

    Args:
        model: returns outputs ``(N,)`` or ``(N, K)``; in evaluation mode meanwhile.
        posterior: any :class:`vogn.Posterior` with a covariance.
        x: as in :func:`vogn.predict`.
        likelihood: ``None`` for the distribution of the outputs; a :class:`vogn.likelihoods.Gaussian` for that of
            observations, which adds its noise.
        batch_size: examples per call of the model when ``x`` holds tensors, >= 1.

    Returns:
        ``MultivariateNormal`` over ``N`` for one output, ``MultitaskMultivariateNormal`` over ``(N, K)`` for several.

    Raises:
        ValueError: for a posterior without a covariance, or outputs of another shape.
        TypeError: for a likelihood that does not add Gaussian noise.

    Example:
        >>> import torch, vogn
        >>> from vogn.interop.gpytorch import to_gp
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(-1)
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> noise = vogn.likelihoods.Gaussian(0.1)
        >>> posterior = vogn.laplace(model, noise, [(x, x.sin())])
        >>> functions = to_gp(model, posterior, x)
        >>> tuple(functions.rsample(torch.Size([5])).shape), tuple(functions.covariance_matrix.shape)
        ((5, 20), (20, 20))

    Source: Khan, Immer, Abedi, Korzepa (2019), "Approximate Inference Turns Deep Networks into Gaussian Processes";
    Immer, Korzepa, Bauer (2021), "Improving predictions of Bayesian neural nets via local linearization".
    """
    if hasattr(posterior, "drawing"):
        raise ValueError(f"{type(posterior).__name__} has no covariance over weights, so no Gaussian process")
    if likelihood is not None and not isinstance(likelihood, Gaussian):
        raise TypeError(
            f"observations under {likelihood!r} are not Gaussian: leave likelihood out for the outputs' process, and "
            "give it to a likelihood of gpytorch"
        )
    shapes, varying = {}, []
    for name, variance in posterior.variance().items():
        shapes[name] = variance.shape
        if bool(variance.any()):
            varying.append(name)
    if not varying:
        raise ValueError("this posterior is a point mass: its process would have no variance; predict with its mean")
    outputs, slopes = jacobian(model, posterior.mean(), x, names=varying, batch_size=batch_size)
    if outputs.ndim > 2:
        raise ValueError(f"a process needs outputs (N,) or (N, K), this model gives {tuple(outputs.shape)}")
    size, none = outputs.numel(), outputs.new_zeros(())
    joint = {  # all outputs of all inputs, as if they were those of one input; what does not vary adds nothing
        name: slopes[name].reshape(1, size, *shape) if name in slopes else none.expand(1, size, *shape)
        for name, shape in shapes.items()
    }
    covariance = posterior.functional_variance(joint).squeeze(0)
    if likelihood is not None:
        noise = torch.as_tensor(likelihood.noise).detach().to(covariance)
        covariance.diagonal().add_(noise.square())
    mean, operator = outputs.to(covariance), to_linear_operator(covariance)  # a plain matrix would be factorised now
    if mean.ndim == 1 or mean.shape[-1] == 1:
        return MultivariateNormal(mean.flatten(), operator)
    return MultitaskMultivariateNormal(mean, operator, interleaved=True)

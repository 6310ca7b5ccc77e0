"""The Gaussian posterior ``N(m, Sigma)``: independent blocks with precision ``ess (C + shift I)``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.posterior.block import PosteriorBlock
from vogn.posterior.files import Content, SavedPosterior
from vogn.posterior.noise import NOISES
from vogn.posterior.prior import Prior

_DTYPES = (torch.float32, torch.float64)


class GaussianPosterior(SavedPosterior):
    """A Gaussian over named parameters that needs neither the optimizer nor the model any more.

    Blocks with ``sampled=False``, and parameters without a block, are point masses: their samples equal the mean, their
    variance is zero, and :meth:`log_prob`, :meth:`entropy`, :meth:`kl` and :meth:`functional_variance` leave them out.
    The entry of an embedding's ``padding_idx`` equals its mean in every sample, too; densities count it with its prior.
    All tensors are copied; half precision becomes float32.

    Args:
        blocks: the blocks; no two share a parameter.
        means: ``{name: mean of the parameter's shape}``.
        likelihood: plain description of the likelihood, so that prediction needs nothing else; ``None`` if unknown.
        method: name of the method that made it, for reports.

    Raises:
        ValueError: if a block names a parameter without a mean or of another shape, or two blocks share a parameter.
    """

    FORMAT: ClassVar[str] = "vogn.posterior.gaussian"
    noises: ClassVar[tuple[str, ...]] = tuple(NOISES)
    """What :meth:`sample` takes as ``noise``."""

    def __init__(
        self,
        blocks: Sequence[PosteriorBlock],
        means: Mapping[str, Tensor],
        *,
        likelihood: Mapping[str, Any] | None = None,
        method: str = "",
    ) -> None:
        _check(blocks, means)
        self.likelihood = None if likelihood is None else dict(likelihood)
        self.method = method
        self._means = {name: _copy(mean, _working_dtype(mean.dtype)) for name, mean in means.items()}
        self._blocks = []
        for block in blocks:
            dtype = _block_dtype(block, means)
            self._blocks.append(block.cast(dtype, None))
            for name in block.layout.names:
                self._means[name] = self._means[name].to(dtype)

    @property
    def blocks(self) -> tuple[PosteriorBlock, ...]:
        """All blocks, point masses included."""
        return tuple(self._blocks)

    @property
    def sampled_blocks(self) -> tuple[PosteriorBlock, ...]:
        """The blocks that have a covariance, in the order of :meth:`flatten`."""
        return tuple(block for block in self._blocks if block.sampled)

    @property
    def names(self) -> tuple[str, ...]:
        """All parameter names."""
        return tuple(self._means)

    @property
    def numel(self) -> int:
        """Number of sampled parameters ``D``."""
        return sum(block.numel for block in self.sampled_blocks)

    def mean(self) -> dict[str, Tensor]:
        """A copy of the mean, ``{name: shape}``."""
        return {name: mean.clone() for name, mean in self._means.items()}

    def sample(self, n: int, *, seed: int = 0, start: int = 0, noise: str = "independent") -> dict[str, Tensor]:
        """Draw weights; the global random state is neither read nor changed.

        Args:
            n: number of draws, >= 1.
            seed: seed of the draws. Draw ``k`` of a seed does not depend on ``n`` (to rounding).
            start: index of the first draw, >= 0.
            noise: ``"independent"``; ``"antithetic"``: draws ``2 j`` and ``2 j + 1`` are mirror images about the mean;
                ``"sobol"``: a scrambled Sobol sequence, best in powers of two, of at most 21201 sampled parameters.

        Returns:
            ``{name: (n, *shape)}``, float32 for parameters in half precision.

        Raises:
            ValueError: if ``n < 1`` or ``start < 0``, for an unknown noise, or too many parameters for it.
        """
        if n < 1 or start < 0:
            raise ValueError(f"sample needs n >= 1 and start >= 0, got n={n} and start={start}")
        if noise not in NOISES:
            raise ValueError(f"unknown noise {noise!r}; known: {', '.join(NOISES)}")
        drawn: dict[str, Tensor] = {}
        others = []
        for block in self.sampled_blocks:
            found = block.drawn(self._means, n, seed=seed, start=start) if noise == "independent" else None
            if found is None:
                others.append(block)
            else:
                drawn.update(found)
        like = [self._means[block.layout.names[0]] for block in others]
        return self._from_noise(NOISES[noise](others, like, n, seed, start), n, drawn)

    def _from_noise(
        self, noise: Mapping[str, Tensor], n: int, drawn: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``m + S noise`` for noise ``{block name: (n, *block_shape)}``; parameters in ``drawn`` are those there."""
        there = drawn or {}
        out = {
            name: there[name] if name in there else mean.expand(n, *mean.shape).clone()
            for name, mean in self._means.items()
        }
        for block in self.sampled_blocks:
            if block.name in noise:
                for name, displacement in block.layout.unpack(block.root(noise[block.name])).items():
                    out[name] += displacement
            for name, place in block.layout.constants:
                out[name][:, place] = self._means[name][place]
        return out

    def variance(self) -> dict[str, Tensor]:
        """Marginal variances, ``{name: shape}``; zero for point masses."""
        out = {name: torch.zeros_like(mean) for name, mean in self._means.items()}
        for block in self.sampled_blocks:
            out.update(block.layout.without_constants(block.layout.unpack(block.variance())))
        return out

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T``, the variance of the outputs of the linearised network.

        Args:
            jacobian: ``{name: (B, K, *shape)}`` for every sampled parameter; other parameters are ignored.

        Returns:
            ``(B, K, K)``.

        Raises:
            ValueError: if a sampled parameter is missing, a Jacobian has other dimensions, or nothing is sampled.
        """
        if not self.sampled_blocks:
            raise ValueError("functional_variance needs at least one sampled block; this posterior is a point mass")
        total: Tensor | None = None
        for block in self.sampled_blocks:
            rows = self._pack(block, block.layout.without_constants(jacobian))
            if rows.ndim != 2 + len(block.layout.block_shape):
                raise ValueError(f"the Jacobian of block {block.name!r} must have shape (B, K, *shape)")
            solved = block.covariance_product(rows)
            term = rows.flatten(2) @ solved.flatten(2).transpose(-1, -2)
            total = term if total is None else total + term
        assert total is not None
        return 0.5 * (total + total.transpose(-1, -2))

    def log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """Log density of the sampled parameters; differentiable in ``params``.

        Args:
            params: ``{name: (*batch, *shape)}`` for every sampled parameter; other parameters are ignored.

        Returns:
            ``batch``; a scalar without batch dimensions.

        Raises:
            ValueError: if a sampled parameter is missing.
        """
        total = -0.5 * self.numel * math.log(2 * math.pi) + 0.5 * self._logdet()
        for block in self.sampled_blocks:
            difference = self._pack(block, params) - block.layout.pack(self._means)
            total = total - 0.5 * block.quadratic(difference)
        return total

    def entropy(self) -> Tensor:
        """``0.5 (D (1 + log 2 pi) - log det Lambda)`` in nats, a scalar."""
        return 0.5 * (self.numel * (1 + math.log(2 * math.pi)) - self._logdet())

    def kl(self, prior: Prior) -> Tensor:
        """``KL(q || p)`` to an isotropic prior ``p`` over the sampled parameters, exact, in nats.

        Args:
            prior: ``N(m0, I / precision)``.

        Returns:
            ``0.5 (precision (tr Sigma + |m - m0|^2) - D + log det Lambda - D log precision)``, a scalar.
        """
        names = [name for block in self.sampled_blocks for name in block.layout.names]
        centre = prior.mean_like({name: self._means[name] for name in names})
        spread = self._logdet().new_zeros(())
        for block in self.sampled_blocks:
            spread = spread + block.variance().sum()
        for name in names:
            spread = spread + (self._means[name] - centre[name]).square().sum()
        constant = self.numel * (1 + math.log(prior.precision))
        return 0.5 * (prior.precision * spread - constant + self._logdet())

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """Sampled parameters ``{name: (*batch, *shape)}`` as ``(*batch, D)``, in the order of :meth:`to_dense`."""
        if not self.sampled_blocks:
            raise ValueError("this posterior is a point mass: it has no sampled parameters to flatten")
        parts = []
        for block in self.sampled_blocks:
            packed = self._pack(block, params)
            parts.append(packed.flatten(packed.ndim - len(block.layout.block_shape)))
        return torch.cat(parts, -1)

    def precision_matrices(self) -> dict[str, Tensor]:
        """``{block name: Lambda (D, D)}``. For tests and small models."""
        return {block.name: block.precision_matrix() for block in self.sampled_blocks}

    def to_dense(self) -> Tensor:
        """The covariance ``(D, D)``, block after block. For tests and small models."""
        matrices = [torch.linalg.inv(matrix) for matrix in self.precision_matrices().values()]
        dense: Tensor = torch.block_diag(*matrices)
        return dense

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GaussianPosterior:
        """A copy on another device or in another precision.

        Args:
            device: target device; ``None`` keeps it.
            dtype: ``torch.float32`` or ``torch.float64``; ``None`` keeps it.

        Raises:
            ValueError: if the dtype is another one.
        """
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"a posterior works in torch.float32 or torch.float64, not in {dtype}")
        means = {name: mean.to(device=device, dtype=dtype or mean.dtype) for name, mean in self._means.items()}
        blocks = [block.cast(dtype or self._means[block.layout.names[0]].dtype, device) for block in self._blocks]
        return GaussianPosterior(blocks, means, likelihood=self.likelihood, method=self.method)

    def tempered(self, temperature: float) -> GaussianPosterior:
        """The same mean with ``temperature`` times the covariance.

        Training wants noise that regularises, averaging wants noise that stays near the mean: the temperature of
        prediction may be another one than that of training, and is chosen on validation data.

        Args:
            temperature: factor on the covariance, > 0; below 1 the predictions come closer to those of the mean.

        Raises:
            ValueError: if it is out of range.
        """
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature={temperature} must be a finite number > 0; predict with the mean for 0")
        blocks = [replace(block, ess=block.ess / float(temperature)) for block in self._blocks]
        return GaussianPosterior(blocks, self._means, likelihood=self.likelihood, method=self.method)

    def content(self) -> Content:
        """See :meth:`SavedPosterior.content`."""
        tensors = {f"mean/{name}": mean for name, mean in self._means.items()}
        for i, block in enumerate(self._blocks):
            tensors.update({f"state/{i}/{key}": tensor for key, tensor in block.state.items()})
        description = {
            "method": self.method,
            "likelihood": self.likelihood,
            "means": list(self._means),
            "blocks": [block.to_dict() for block in self._blocks],
        }
        return description, tensors

    @classmethod
    def from_content(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianPosterior:
        """See :meth:`SavedPosterior.from_content`."""
        blocks = [
            PosteriorBlock.from_dict(entry, {key: tensors[f"state/{i}/{key}"] for key in entry["state"]})
            for i, entry in enumerate(description["blocks"])
        ]
        means = {name: tensors[f"mean/{name}"] for name in description["means"]}
        return cls(blocks, means, likelihood=description["likelihood"], method=description["method"])

    def _logdet(self) -> Tensor:
        """``log det Lambda`` of all sampled blocks; zero for a point mass."""
        parts = [block.logdet() for block in self.sampled_blocks]
        return torch.stack([part.to(parts[0]) for part in parts]).sum() if parts else torch.zeros(())

    def _pack(self, block: PosteriorBlock, tensors: Mapping[str, Tensor]) -> Tensor:
        """The block vector of ``tensors``, in the block's dtype and device."""
        ready = {}
        for name, shape in zip(block.layout.names, block.layout.shapes, strict=True):
            if name not in tensors:
                raise ValueError(f"parameter {name!r} of block {block.name!r} is missing; got {sorted(tensors)}")
            tensor = tensors[name]
            if tensor.shape[tensor.ndim - len(shape) :] != torch.Size(shape):
                raise ValueError(
                    f"parameter {name!r} of block {block.name!r} must end in shape {tuple(shape)}, "
                    f"got {tuple(tensor.shape)}"
                )
            ready[name] = tensor.to(self._means[name])
        return block.layout.pack(ready)


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _block_dtype(block: PosteriorBlock, means: Mapping[str, Tensor]) -> torch.dtype:
    """The widest floating point dtype of the block's means and state, at least float32."""
    dtype = torch.float32
    for tensor in (*(means[name] for name in block.layout.names), *block.state.values()):
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype=dtype, copy=True).contiguous()


def _check(blocks: Sequence[PosteriorBlock], means: Mapping[str, Tensor]) -> None:
    """Blocks and means agree, and nothing is named twice."""
    owner: dict[str, str] = {}
    seen: set[str] = set()
    for block in blocks:
        if block.name in seen:
            raise ValueError(f"two blocks are called {block.name!r}; they would share their noise")
        seen.add(block.name)
        for name, shape in zip(block.layout.names, block.layout.shapes, strict=True):
            if name in owner:
                raise ValueError(f"parameter {name!r} is in block {owner[name]!r} and in block {block.name!r}")
            owner[name] = block.name
            if name not in means:
                raise ValueError(f"parameter {name!r} of block {block.name!r} has no mean; means: {sorted(means)}")
            if tuple(means[name].shape) != tuple(shape):
                raise ValueError(
                    f"the mean of {name!r} has shape {tuple(means[name].shape)}, block {block.name!r} expects {shape}"
                )

"""Modules without what only training needs: weights that are computed anew from others in every step, and BN's relatives."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

RECOMPUTED = (WeightNorm, SpectralNorm)
"""Hooks that compute a weight before each forward(); parametrizations do the same since PyTorch 1.9."""

FROZEN = "FrozenBatchNorm2d"
"""BN whose tensors are all buffers, as detectors copy it from one another."""


class Attention(nn.MultiheadAttention):
    """PyTorch's attention of positions to one another, of layers and functions whose channels can be followed. With masks, or
    of other positions, it is PyTorch's."""

    in_proj: nn.Linear
    scale: float

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        return self.in_proj.bias

    def forward(self, query: Any, key: Any, value: Any, *given: Any, **named: Any) -> Any:
        names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
        options = dict(zip(names, given, strict=False)) | named
        wants_weights, averaged = options.pop("need_weights", True), options.pop("average_attn_weights", True)
        if not query is key is value or any(one is not None and one is not False for one in options.values()):
            return super().forward(query, key, value, *given, **named)
        tokens = query if self.batch_first else query.transpose(0, 1)
        apart = self.in_proj(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = apart.unbind(0)
        weights: Any = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) if wants_weights else None
        mixed = weights @ v if wants_weights else F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        mixed = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights = weights.mean(1) if wants_weights and averaged else weights
        return mixed if self.batch_first else mixed.transpose(0, 1), weights


def plain(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode that computes the same: weight and spectral norm are gone, their weights stay, BN that is
    synchronised or frozen is BN, and PyTorch's attention is our own."""
    for layer in module.modules():
        for hook in _recomputing(layer).values():
            vars(layer)[hook.name] = getattr(layer, hook.name).detach()  # PyTorch does not copy what was computed
    module = copy.deepcopy(module).eval()
    for name, layer in list(module.named_modules()):
        for key, hook in _recomputing(layer).items():
            hook.remove(layer)
            del layer._forward_pre_hooks[key]
        if parametrize.is_parametrized(layer):
            _unparametrize(layer)
        relative = isinstance(layer, nn.SyncBatchNorm) or type(layer).__name__ == FROZEN
        if relative and "running_mean" in layer.state_dict():
            module.set_submodule(name, _batchnorm(layer))
        if (
            type(layer) is nn.MultiheadAttention
            and layer._qkv_same_embed_dim
            and layer.bias_k is None
            and not layer.add_zero_attn
        ):
            _write_out(layer)
    return module


def _recomputing(layer: nn.Module) -> dict[int, WeightNorm | SpectralNorm]:
    return {key: hook for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, RECOMPUTED)}


def _unparametrize(layer: nn.Module) -> None:
    """By hand, since PyTorch does it in the class, which the copy shares with the layer that was copied."""
    names = list(layer.parametrizations)  # type: ignore[arg-type]
    weights = {name: nn.Parameter(getattr(layer, name).detach().clone()) for name in names}
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    for name, weight in weights.items():
        layer.register_parameter(name, weight)


def _write_out(layer: nn.MultiheadAttention) -> None:
    tensors: Any = {name: layer._parameters.pop(f"in_proj_{name}") for name in ("weight", "bias")}
    layer.__class__ = Attention
    layer.scale = layer.head_dim**-0.5
    layer.in_proj = nn.Linear(layer.embed_dim, 3 * layer.embed_dim, device="meta")
    layer.in_proj.weight, layer.in_proj.bias = tensors.values()


def _batchnorm(layer: nn.Module) -> nn.BatchNorm2d:
    known = layer.state_dict()
    norm = nn.BatchNorm2d(
        len(known["running_mean"]), getattr(layer, "eps", 1e-5), getattr(layer, "momentum", 0.1), affine="weight" in known
    )
    norm.load_state_dict(known, strict=False)
    return norm.eval()

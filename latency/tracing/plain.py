"""Modules without what only training needs: weights that are computed anew from others in every step, and BN's relatives."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

RECOMPUTED = (WeightNorm, SpectralNorm)
"""Hooks that compute a weight before each forward(); parametrizations do the same since PyTorch 1.9."""

FROZEN = "FrozenBatchNorm2d"
"""BN whose tensors are all buffers, as detectors copy it from one another."""


def plain(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode that computes the same: weight and spectral norm are gone, their weights stay, and BN
    that is synchronised or frozen is BN."""
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


def _batchnorm(layer: nn.Module) -> nn.BatchNorm2d:
    known = layer.state_dict()
    norm = nn.BatchNorm2d(
        len(known["running_mean"]), getattr(layer, "eps", 1e-5), getattr(layer, "momentum", 0.1), affine="weight" in known
    )
    norm.load_state_dict(known, strict=False)
    return norm.eval()

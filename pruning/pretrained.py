"""Trained weights to start from: torchvision's by name, or a state dict of the user's."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from latency.errors import MillipruneError
from pruning.checkpoint import uninterrupted
from pruning.networks import UnknownNetwork, load


class WeightsError(MillipruneError):
    """Weights that cannot be read or that do not fit the network."""


def load_weights(module: nn.Module, name: str, weights: str) -> tuple[str, ...]:
    """Load `weights` into `module`, the network called `name`.

    Args:
        weights: a file (.safetensors, or what torch.save wrote of a state dict), or the name of torchvision's, such as
            DEFAULT or IMAGENET1K_V1.

    Returns:
        names of the tensors that were left as they are, because they differ in shape: the classifier of other classes.

    Raises:
        WeightsError: nothing of that name, no state dict, or no tensor that fits.
    """
    state = _from_file(Path(weights)) if Path(weights).exists() else _from_torchvision(name, weights)
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    if missing:
        raise WeightsError(f"weights '{weights}' lack '{missing[0]}' and {len(missing) - 1} more tensors of {name}.")
    others = tuple(key for key, tensor in own.items() if tensor.shape != state[key].shape)
    if len(others) > 2:
        raise WeightsError(
            f"{len(others)} tensors of '{weights}' differ in shape from those of {name}, '{others[0]}' first: "
            f"{tuple(state[others[0]].shape)} given, {tuple(own[others[0]].shape)} expected."
        )
    module.load_state_dict(own | {key: state[key] for key in own if key not in others})
    return others


def digest(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits that differ when any weight does."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(name.encode())
        sha.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


def _from_file(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with uninterrupted():
                return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"weights '{path}' cannot be read: {str(error).splitlines()[0]}; expected a state dict.") from error
    state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else state
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"weights '{path}' hold no state dict; expected tensors by name.")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _from_torchvision(name: str, weights: str) -> Mapping[str, Tensor]:
    if ":" in name:
        raise WeightsError(f"weights '{weights}' are neither a file nor torchvision's: {name} is not of torchvision.")
    try:
        return load(name, 1000, weights).state_dict()
    except (KeyError, ValueError, TypeError, UnknownNetwork) as error:
        raise WeightsError(f"weights '{weights}' are neither a file nor torchvision's of {name}: {error}.") from error
    except OSError as error:
        raise WeightsError(f"weights '{weights}' of {name} could not be downloaded: {error}.") from error

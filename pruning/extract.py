"""Widths → an ordinary module of exactly that structure."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from latency.graph.axis import mesh
from latency.graph.network import Network
from latency.tracing.plain import plain

SIZES = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_parameters",
    "normalized_shape", "num_groups", "num_channels",
)  # fmt: skip
"""What layers say of their widths."""


def extract(network: Network, widths: Any, state: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """The structure `widths` (int[L]) as a module of its own, in eval mode.

    Args:
        state: tensors by the names of `network.tensors`, at full width or already cropped; those not given keep
            PyTorch's default initialisation, LayerNorms and bare parameters the network's own.
            `network.module.state_dict()` slices the unpruned network.
    """
    widths = network.check_widths(widths)
    graph = network.module.graph
    parts: dict[str, Any] = {
        str(node.target): _resized(network, str(node.target), widths) for node in graph.nodes if node.op == "call_module"
    }
    parts |= {name: _bare(network, name, widths) for name in bare_names(network.module)}
    structure = fx.GraphModule(parts, copy.deepcopy(graph), type(network.module).__name__)
    if state is not None:
        own = structure.state_dict()
        own |= {name: _cropped(network, name, state[name], widths) for name in network.tensors if name in state}
        structure.load_state_dict(own)
    return structure.eval()._apply(lambda one: one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one)


@torch.no_grad()
def in_own_class(module: nn.Module, structure: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """`structure` as a module of the class it was traced from: a copy of `module` with the structure's layers in place.

    Where that class relies on widths that have changed, so that the copy fails or computes something else, it is `structure`
    itself.
    """
    own = plain(module)
    for name, layer in structure.named_modules():
        if name and type(layer) is type(own.get_submodule(name)):
            own.set_submodule(name, copy.deepcopy(layer))
        elif name:  # of a class derived from the layer's; or one that only holds others
            vars(own.get_submodule(name)).update({size: getattr(layer, size) for size in SIZES if hasattr(layer, size)})
    for name, tensor in [*structure.named_parameters(), *structure.named_buffers()]:
        owner, _, attribute = name.rpartition(".")
        holder = own.get_submodule(owner)
        setattr(holder, attribute, copy.deepcopy(tensor))
        if isinstance(holder, nn.RMSNorm):  # written out in the structure
            holder.normalized_shape = tuple(tensor.shape)
    own.to(memory_format=torch.contiguous_format)  # a class may use view where the trace knows to reshape
    images = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
    try:
        scores = structure(images)
        return own if alike(own(images), scores) else structure
    except (RuntimeError, ValueError, IndexError, AttributeError):
        return structure


def alike(scores: Tensor, expected: Tensor) -> bool:
    """Whether they differ by no more than rounding."""
    return torch.allclose(scores, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def _cropped(network: Network, name: str, tensor: Tensor, widths: Any) -> Tensor:
    full = tuple(axis.size for axis in network.tensors[name])
    return tensor[mesh(network.kept(name, widths))] if tuple(tensor.shape) == full else tensor


def bare_names(module: fx.GraphModule) -> list[str]:
    """Parameters and buffers that are used without a layer around them."""
    return [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]


def narrowed(layer: nn.Module, **sizes: Any) -> nn.Module:
    """`layer` with other values of these attributes, still with its own parameters."""
    other = copy.copy(layer)
    for name, size in sizes.items():
        setattr(other, name, size)
    return other


def _resized(network: Network, name: str, widths: Any) -> nn.Module:
    module = network.module.get_submodule(name)
    if isinstance(module, nn.Conv2d):
        outputs, per_group = network.kept_shape(f"{name}.weight", widths)[:2]
        groups = max(1, module.groups * outputs // module.out_channels)
        shape: Any = (module.kernel_size, module.stride, module.padding, module.dilation)
        rest: Any = (groups, module.bias is not None, module.padding_mode)
        return nn.Conv2d(per_group * groups, outputs, *shape, *rest)
    if isinstance(module, nn.ConvTranspose2d) and module.groups == 1:
        inputs, outputs = network.kept_shape(f"{name}.weight", widths)[:2]
        shape = (module.kernel_size, module.stride, module.padding, module.output_padding)
        rest = (1, module.bias is not None, module.dilation)
        return nn.ConvTranspose2d(inputs, outputs, *shape, *rest)
    if isinstance(module, nn.Linear):
        outputs, inputs = network.kept_shape(f"{name}.weight", widths)
        return nn.Linear(inputs, outputs, module.bias is not None)
    if isinstance(module, nn.PReLU):
        return nn.PReLU(*network.kept_shape(f"{name}.weight", widths))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
        kept = (network.kept_shape(tensor, widths)[0] for tensor in network.tensors if tensor.rpartition(".")[0] == name)
        channels = next(kept, module.num_features)
        norm: Any = type(module)
        return norm(channels, module.eps, module.momentum, module.affine, module.track_running_stats)
    if isinstance(module, nn.GroupNorm) and f"{name}.weight" in network.tensors:
        (channels,) = network.kept_shape(f"{name}.weight", widths)
        return nn.GroupNorm(max(1, module.num_groups * channels // module.num_channels), channels, module.eps)
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        norm = copy.deepcopy(narrowed(module, normalized_shape=network.kept_shape(f"{name}.weight", widths)))
        for tensor, parameter in module.named_parameters(recurse=False):
            setattr(norm, tensor, _sliced(network, f"{name}.{tensor}", parameter, widths))
        return norm
    return copy.deepcopy(module)


def _bare(network: Network, name: str, widths: Any) -> Tensor:
    full = operator.attrgetter(name)(network.module)
    return _sliced(network, name, full, widths) if name in network.tensors else full.clone()


def _sliced(network: Network, name: str, parameter: Tensor, widths: Any) -> nn.Parameter:
    return nn.Parameter(_cropped(network, name, parameter.detach(), widths).clone())

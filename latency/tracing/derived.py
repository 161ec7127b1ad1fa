"""Layers that derive from torch's or imitate them: where a class calls a function of torch with parameters of its own (timm's
BN with an activation does, and its convolution padded as TensorFlow pads), the graph gets torch's own layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from latency.tracing.nodes import shape_of

Tensors = Mapping[str, Tensor]


class _Function(NamedTuple):
    """What it is called with after the input, which of that are tensors, and the layer that does the same with such tensors."""

    arguments: tuple[str, ...]
    tensors: frozenset[str]
    layer: Callable[..., nn.Module | None]


def lift(module: fx.GraphModule) -> None:
    """Put layers in place of functions whose tensors one submodule holds by the names of the layer's, and nothing else reads.

    They take the submodule's name, so state dicts still fit. Biases that are computed from parameters become parameters.
    """
    reads = [node for node in module.graph.nodes if node.op == "get_attr"]
    readers = Counter(str(node.target) for node in reads for user in node.users if shape_of(user) is not None)
    for node in module.graph.nodes:
        function = _FUNCTIONS.get(node.target) if node.op == "call_function" and node.args else None
        if function is None:
            continue
        given: dict[str, Any] = dict(zip(function.arguments, node.args[1:], strict=False)) | node.kwargs
        given = {name: value for name, value in given.items() if value is not None}
        sources = {name: given.pop(name) for name in function.tensors & given.keys()}
        made = {"bias": _constant(module, sources.pop("bias"))} if _is_made(sources.get("bias")) else {}
        given.pop("normalized_shape", None)  # the weight's
        owner = _owner(sources)
        if not owner or _computed(given) or any(readers[f"{owner}.{name}"] > 1 for name in sources):
            continue
        holder = module.get_submodule(owner)
        tensors = {name: getattr(holder, name) for name in sources} | made
        layer = function.layer(tensors, len(shape_of(node)), **given) if _trained(tensors) else None
        if layer is not None:
            module.set_submodule(owner, _filled(layer, holder, made))
            node.op, node.target, node.args, node.kwargs = "call_module", owner, node.args[:1], {}
            node.meta["nn_module_stack"] = {**node.meta.get("nn_module_stack", {}), owner: (owner, type(layer))}
    module.graph.eliminate_dead_code()
    module.recompile()


def _owner(sources: Mapping[str, Any]) -> str:
    """The submodule that holds tensors of just these names; "" where there is none."""
    owners = {str(node.target).removesuffix(f".{name}") for name, node in sources.items() if node.op == "get_attr"}
    owner = owners.pop() if len(owners) == 1 else ""
    return owner if all(node.target == f"{owner}.{name}" for name, node in sources.items()) else ""


def _computed(settings: Mapping[str, Any]) -> bool:
    """Whether any of them is not known beforehand."""
    nodes: list[fx.Node] = []
    fx.node.map_arg(list(settings.values()), nodes.append)
    return bool(nodes)


def _is_made(source: Any) -> bool:
    """Whether it is computed from parameters and buffers alone, as BEiT's biases are put together from two and zeros."""
    if not isinstance(source, fx.Node) or source.op not in ("call_function", "call_method"):
        return False
    return all(one.op == "get_attr" or _is_made(one) for one in source.all_input_nodes) and bool(source.all_input_nodes)


def _constant(module: fx.GraphModule, node: fx.Node) -> nn.Parameter:
    """What it is now, to be trained as a parameter of its own."""

    interpreter = fx.Interpreter(module)

    def value(one: fx.Node) -> Any:
        interpreter.env.update({source: value(source) for source in one.all_input_nodes})
        return interpreter.run_node(one)

    with torch.no_grad():
        return nn.Parameter(value(node).clone())


def _filled(layer: nn.Module, holder: nn.Module, made: Tensors) -> nn.Module:
    """`layer` with all that `holder` holds, and what was made besides."""
    for name, tensor in [*holder.named_parameters(recurse=False), *holder.named_buffers(recurse=False), *made.items()]:
        setattr(layer, name, tensor)
    for name, child in holder.named_children():
        layer.add_module(name, child)
    return layer.eval()


def _trained(tensors: Tensors) -> bool:
    """Whether all but statistics are parameters: what is frozen stays a function."""
    return all(isinstance(tensor, nn.Parameter) != name.startswith("running") for name, tensor in tensors.items())


def _conv(tensors: Tensors, rank: int, groups: int = 1, **settings: Any) -> nn.Module | None:
    outputs, inputs, *window = tensors["weight"].shape
    return nn.Conv2d(inputs * groups, outputs, (window[0], window[1]), groups=groups, bias="bias" in tensors, **settings)


def _linear(tensors: Tensors, rank: int) -> nn.Module | None:
    outputs, inputs = tensors["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in tensors)


def _batchnorm(tensors: Tensors, rank: int, training: bool = False, **settings: Any) -> nn.Module | None:
    if training or "running_mean" not in tensors:
        return None
    layer = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    return layer(len(tensors["running_mean"]), affine="weight" in tensors, **settings)


def _layernorm(tensors: Tensors, rank: int, **settings: Any) -> nn.Module | None:
    return nn.LayerNorm(tensors["weight"].shape, bias="bias" in tensors, **settings)


def _groupnorm(tensors: Tensors, rank: int, num_groups: int, **settings: Any) -> nn.Module | None:
    both = tensors.keys() == {"weight", "bias"}
    return nn.GroupNorm(num_groups, len(tensors["weight"]), **settings) if both else None


def _instancenorm(tensors: Tensors, rank: int, use_input_stats: bool = True, **settings: Any) -> nn.Module | None:
    both = tensors.keys() == {"weight", "bias"} and use_input_stats and rank == 4
    return nn.InstanceNorm2d(len(tensors["weight"]), affine=True, **settings) if both else None


def _prelu(tensors: Tensors, rank: int) -> nn.Module | None:
    return nn.PReLU(len(tensors["weight"]))


_AFFINE = frozenset({"weight", "bias"})
_FUNCTIONS: dict[Any, _Function] = {
    F.conv2d: _Function(("weight", "bias", "stride", "padding", "dilation", "groups"), _AFFINE, _conv),
    F.linear: _Function(("weight", "bias"), _AFFINE, _linear),
    F.batch_norm: _Function(
        ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        _AFFINE | {"running_mean", "running_var"}, _batchnorm,
    ),
    F.layer_norm: _Function(("normalized_shape", "weight", "bias", "eps"), _AFFINE, _layernorm),
    F.group_norm: _Function(("num_groups", "weight", "bias", "eps"), _AFFINE, _groupnorm),
    F.instance_norm: _Function(
        ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
        _AFFINE | {"running_mean", "running_var"}, _instancenorm,
    ),
    F.prelu: _Function(("weight",), _AFFINE, _prelu),
}  # fmt: skip

"""What torch's operations do with channels, as lists of modules, functions and names of methods; `rules` has their rules."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

POINTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink,
    nn.Tanhshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
POOLING_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool1d, nn.AvgPool1d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip
POINTWISE_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.celu, F.celu_, F.selu, F.selu_, F.gelu, F.silu,
        F.mish, F.sigmoid, F.tanh, F.softplus, F.hardswish, F.hardsigmoid, F.hardtanh, F.hardtanh_, F.softsign, F.hardshrink,
        F.softshrink, F.tanhshrink, F.logsigmoid, F.threshold, F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout,
        F.feature_alpha_dropout, torch.relu, torch.relu_, torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.clamp,
        torch.clamp_, torch.clip, torch.clamp_min, torch.clamp_max, torch.neg, torch.exp, torch.log, torch.log1p, torch.sqrt,
        torch.rsqrt, torch.square, torch.reciprocal, torch.abs, torch.sign, torch.sin, torch.cos, torch.erf, operator.neg,
        torch.zeros_like, torch.ones_like, torch.full_like, "relu", "relu_", "sigmoid", "sigmoid_", "tanh",
        "tanh_", "clamp", "clamp_", "clip", "clamp_min", "clamp_max", "exp", "log", "log1p", "sqrt", "rsqrt", "square",
        "reciprocal", "abs", "sign", "sin", "cos", "erf", "neg", "contiguous", "clone", "detach", "float", "to", "type_as",
    }
)  # fmt: skip
POOLING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool1d, F.avg_pool1d,
        F.adaptive_avg_pool1d, F.adaptive_max_pool1d, F.interpolate,
    }
)  # fmt: skip
PADDING_FUNCTIONS: frozenset[Any] = frozenset({F.pad})
JOINING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, operator.pow,
        operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne, torch.eq, torch.ne, torch.add, torch.sub,
        torch.mul, torch.div, torch.pow, torch.maximum, torch.minimum, torch.where, torch.addcmul, torch.addcdiv, torch.lerp,
        "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow", "maximum", "minimum",
    }
)  # fmt: skip
REDUCING_FUNCTIONS: frozenset[Any] = frozenset({torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"})
SPREAD_FUNCTIONS: frozenset[Any] = frozenset({torch.std, torch.var, torch.norm, "std", "var", "norm"})
SOFTMAX_FUNCTIONS: frozenset[Any] = frozenset(
    {torch.softmax, F.softmax, "softmax", torch.log_softmax, F.log_softmax, "log_softmax"}
)
TURNING_FUNCTIONS: frozenset[Any] = frozenset({torch.flip, torch.roll, "flip", "roll"})
EXTREME_FUNCTIONS: frozenset[Any] = frozenset({torch.max, torch.min, "max", "min"})
SHAPING_FUNCTIONS: frozenset[Any] = frozenset({torch.reshape, "view", "reshape"})
RESHAPING_FUNCTIONS: frozenset[Any] = SHAPING_FUNCTIONS | {
    torch.flatten, torch.unflatten, "flatten", "unflatten", "view_as", "reshape_as",
}  # fmt: skip
MULTIPLYING_FUNCTIONS: frozenset[Any] = frozenset({operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"})
CONCATENATING_FUNCTIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})
CHUNKING_FUNCTIONS: frozenset[Any] = frozenset({torch.chunk, torch.tensor_split, "chunk", "tensor_split"})
SPLITTING_FUNCTIONS: frozenset[Any] = frozenset({torch.split, "split"})
UNBINDING_FUNCTIONS: frozenset[Any] = frozenset({torch.unbind, "unbind"})
NARROWING_FUNCTIONS: frozenset[Any] = frozenset({torch.narrow, "narrow"})
PERMUTING_FUNCTIONS: frozenset[Any] = frozenset({torch.permute, "permute"})
TRANSPOSING_FUNCTIONS: frozenset[Any] = frozenset(
    {torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims"}
)
MOVING_FUNCTIONS: frozenset[Any] = frozenset({torch.movedim, torch.moveaxis, "movedim", "moveaxis"})
SQUEEZING_FUNCTIONS: frozenset[Any] = frozenset({torch.squeeze, "squeeze"})
REPEATING_FUNCTIONS: frozenset[Any] = frozenset({"repeat"})
EXPANDING_FUNCTIONS: frozenset[Any] = frozenset({"expand", "expand_as"})
UNSQUEEZING_FUNCTIONS: frozenset[Any] = frozenset({torch.unsqueeze, "unsqueeze"})
MAKING_FUNCTIONS: frozenset[Any] = frozenset(
    {
        torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye,
        "new_zeros", "new_ones", "new_full", "new_empty",
    }
)  # fmt: skip
INDEXING_FUNCTIONS: frozenset[Any] = frozenset({operator.getitem})
VIEWS = (
    RESHAPING_FUNCTIONS | CHUNKING_FUNCTIONS | SPLITTING_FUNCTIONS | UNBINDING_FUNCTIONS | NARROWING_FUNCTIONS
    | PERMUTING_FUNCTIONS | TRANSPOSING_FUNCTIONS | MOVING_FUNCTIONS | SQUEEZING_FUNCTIONS | UNSQUEEZING_FUNCTIONS
    | EXPANDING_FUNCTIONS | INDEXING_FUNCTIONS
)  # fmt: skip
"""What gives a part of a tensor, or the same in another shape: whoever changes it changes the tensor."""

SPELLINGS = {"iadd": "add", "isub": "sub", "imul": "mul", "truediv": "div"}
"""Other names of the same, among Python's operators."""

NOT_COMPUTED = ("batchnorm", "dropout", "identity", "contiguous", "clone", "detach")
"""Beginnings of the names of what runtimes fold or leave out."""


def computed(module: fx.GraphModule) -> Iterator[tuple[str, Any]]:
    """What a traced module computes in this order, but BN: the name of each operation, one for torch's modules, functions and
    methods alike, and the window of those that have one."""
    for node in module.graph.nodes:
        if node.op.startswith("call") and "tensor_meta" in node.meta:
            layer = module.get_submodule(node.target) if node.op == "call_module" else None
            name = _name(type(layer) if layer else node.target)
            if not name.startswith(NOT_COMPUTED):
                yield name, _window(node, layer)


def _name(operation: Any) -> str:
    name = operation if isinstance(operation, str) else operation.__name__
    name = name.lower().replace("_", "")
    return SPELLINGS.get(name, name)


def _window(node: fx.Node, layer: nn.Module | None) -> Any:
    if node.target in POOLING_FUNCTIONS | PADDING_FUNCTIONS:
        return node.args[1:], node.kwargs
    return getattr(layer, "kernel_size", None)

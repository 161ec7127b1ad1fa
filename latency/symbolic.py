"""Modules as graphs of torch.fx, with the shape of everything in them."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from latency import operations
from latency.errors import TraceError


def graph_of(module: nn.Module, shape: tuple[int, ...], name: str) -> fx.GraphModule:
    """`module` as a graph, after a run on an image batch of this shape [N, C, H, W]: every node knows its own.

    Raises:
        TraceError: it cannot be followed symbolically, or does not run.
    """
    graph_module = _symbolic(module, name)
    _run_for_shapes(graph_module, shape, name)
    return graph_module


def argument(node: fx.Node, place: int, name: str) -> Any:
    """What a call gives at that place, or by name; None where it gives neither."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def shape_of(node: fx.Node) -> Any:
    """The node's tensor shape; () for several tensors at once; None for a plain number or size."""
    meta = node.meta.get("tensor_meta")
    if meta is None:
        return None
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


class _SymbolicTracer(fx.Tracer):
    """torch.fx's, for what CNNs do besides."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """LayerNorms stay whole, those that others derive too (torchvision's LayerNorm2d): their code states widths."""
        return isinstance(module, nn.LayerNorm) or super().is_leaf_module(module, name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **rest: Any) -> Any:
        """Parts of a tensor become a tuple where their number is stated: a forward() may list and count them."""
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *more, **rest)
        stated = args[1] if len(args) > 1 else kwargs.get("chunks")
        if kind not in ("call_function", "call_method"):
            return proxy
        if target in operations.CHUNKING_FUNCTIONS and isinstance(stated, int):
            return tuple(proxy[place] for place in range(stated))
        if target in operations.SPLITTING_FUNCTIONS and isinstance(stated, list | tuple):
            return tuple(proxy[place] for place in range(len(stated)))
        return proxy


def _symbolic(module: nn.Module, name: str) -> fx.GraphModule:
    try:
        traced = fx.GraphModule(module, _SymbolicTracer().trace(module), type(module).__name__)
    except Exception as error:  # torch.fx runs user code: anything may come out
        raise TraceError(
            f"{name} cannot be traced by torch.fx: {error} "
            "Move data-dependent control flow out of forward(), or wrap that part in a module of its own."
        ) from error
    traced.graph.eliminate_dead_code()
    return traced


def _run_for_shapes(module: fx.GraphModule, shape: tuple[int, ...], name: str) -> None:
    parameter = next(module.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # where torch prints tracebacks of its own
            ShapeProp(module).propagate(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device))
    except Exception as error:  # the user's forward() runs here
        cause = str(error.__cause__ or error).splitlines()[0]
        raise TraceError(f"{name} does not run on an input of shape {shape}: {cause}") from error

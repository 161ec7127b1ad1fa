"""Modules as graphs of torch.fx, with the shape of everything in them."""

from __future__ import annotations

import io
import operator
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from functools import partial
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves, tree_map_only

from latency.errors import TraceError
from latency.graph import operations
from latency.tracing.einsum import write_out
from latency.tracing.nodes import of_batch

DRAWING = (torch.rand, torch.randn)


def graph_of(module: nn.Module, shape: tuple[int, ...], name: str) -> fx.GraphModule:
    """`module` as a graph, after a run on an image batch of this shape [N, C, H, W]: every node knows its own, or which whole
    number it is.

    Where forward() asks for sizes, and decides by them, they are those of this batch.

    Raises:
        TraceError: it cannot be followed symbolically, or does not run.
    """
    graph_module = _symbolic(module, shape, name)
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # where torch prints tracebacks of its own
        try:
            _Shapes(graph_module).propagate(_image(module, shape))
        except Exception as error:  # the user's forward() runs here
            raise _does_not_run(name, shape, error.__cause__ or error) from error
    return graph_module


class _Shapes(ShapeProp):
    def run_node(self, n: fx.Node) -> Any:
        return _noted(n, super().run_node(n))


def _noted(node: fx.Node, result: Any) -> Any:
    if isinstance(result, int | float):
        node.meta["number"] = result
    if isinstance(result, Tensor):
        node.meta.setdefault("tensor_meta", result)
    return result


class _Value(fx.Proxy):
    """A value in forward(). It is what the example gives where Python asks for a number, a truth, or a list."""

    tracer: _SymbolicTracer

    def __getattr__(self, name: str) -> Any:
        if name in operations.MAKING_FUNCTIONS:
            return partial(self.tracer.make, name, self)
        if name in ("shape", "device"):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name == "mT":
            return self.transpose(-2, -1)
        if name == "ndim":
            return len(self.tracer.plain(self.shape))
        if name == "type" and self.node.target is getattr:  # a device's, for autocast
            return self.tracer.plain(self).type
        if name in ("requires_grad", "is_cuda"):
            return False
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.tracer.plain(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.plain(self))

    def __int__(self) -> int:
        return int(self.tracer.plain(self))

    def __float__(self) -> float:
        return float(self.tracer.plain(self))


class _SymbolicTracer(fx.Tracer):
    """torch.fx's, for what CNNs do besides: everything but tensors is known from an example, run without data."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._name, self._shape = name, shape
        self._values: dict[fx.Node, Any] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._running = False  # the example, not the symbols

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **rest: Any) -> Any:
        """Inputs but the first are what they are by default; functions that torch.fx.wrap hides from it are looked into."""
        if kind == "placeholder" and args and any(node.op == kind for node in self.graph.nodes):
            return args[0]
        if isinstance(target, FunctionType) and not target.__module__.startswith("torch."):
            looked_into = self._looked_into(target, args, kwargs)
            if looked_into is not None:
                return looked_into
        return super().create_proxy(kind, target, args, kwargs, *more, **rest)

    def _looked_into(self, function: FunctionType, args: Any, kwargs: Any) -> fx.Proxy | None:
        """What it gives; None where that cannot be followed: the call stays one operation, as its author meant it."""
        before = set(self.graph.nodes)
        with suppress(Exception):
            if isinstance(result := function(*args, **kwargs), fx.Proxy):
                return result
        for node in [one for one in reversed(self.graph.nodes) if one not in before]:
            self.graph.erase_node(node)
            self._values.pop(node, None)
        return None

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.plain(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        """One after another; of a tensor that has as many entries as there are images, these may be the images."""
        value = self._known(obj)
        count = len(self.plain(obj) if isinstance(value, Tensor) and len(value) == self._shape[0] else value)
        return iter([obj[place] for place in range(count)])

    def plain(self, proxy: fx.Proxy) -> Any:
        """What the proxy's node gives for the example: a number, or a list of something.

        Raises:
            ValueError: it gives a tensor.
        """
        value = self._known(proxy)
        if isinstance(value, Tensor):
            raise ValueError(f"control flow depends on the data in '{proxy.node.name}'.")
        return value

    def _known(self, proxy: fx.Proxy) -> Any:
        """The same; of tensors, one without data."""
        wanted = proxy.node  # of an attribute, made when it is asked for
        for node in self.graph.nodes:
            if node not in self._values:
                self._values[node] = _noted(node, self._run(node))
        return self._values[wanted]

    def _run(self, node: fx.Node) -> Any:
        self._running = True
        try:
            with torch.no_grad(), self._fake:
                return self._result(node)
        except Exception as error:
            raise _does_not_run(self._name, self._shape, error) from error
        finally:
            self._running = False

    def _result(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _image(self.root, self._shape)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def make(self, maker: Any, *args: Any, **kwargs: Any) -> Any:
        """What a function of torch, or a tensor's method of that name, makes, of sizes that may be symbols: torch asks tensors
        alone whether they are. It is a constant, which may be filled in, unless it is drawn, or the number of images tells a
        size."""
        symbols = [one for one in tree_leaves((args[isinstance(maker, str) :], kwargs)) if isinstance(one, fx.Proxy)]
        if symbols and (maker in DRAWING or not all(map(self._stays, symbols))):
            return self.create_proxy("call_method" if isinstance(maker, str) else "call_function", maker, args, kwargs)
        args, kwargs = tree_map_only(fx.Proxy, self._alike, (args, kwargs))
        return getattr(args[0], maker)(*args[1:], **kwargs) if isinstance(maker, str) else maker(*args, **kwargs)

    def _stays(self, proxy: fx.Proxy) -> bool:
        """Whether it is known, and something else than a tensor or a list, whatever the number of images."""
        with suppress(TraceError):
            return not isinstance(self._known(proxy), Tensor | list | tuple) and not of_batch(proxy.node)
        return False

    def _alike(self, proxy: fx.Proxy) -> Any:
        """What it is; of a tensor, one of its type, on its device."""
        value = self._known(proxy)
        return torch.empty(0, dtype=value.dtype, device=value.device) if isinstance(value, Tensor) else value

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """What forward() makes and calls at once, `nn.ReLU()(x)`, is what that computes."""
        if self._running or module not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        return super().call_module(module, forward, args, kwargs)

    def getattr(self, attr: str, value: Any, parameters: dict[str, fx.Proxy]) -> Any:
        return value if self._running else super().getattr(attr, value, parameters)


def _symbolic(module: nn.Module, shape: tuple[int, ...], name: str) -> fx.GraphModule:
    tracer = _SymbolicTracer(name, shape)
    _introduce_to_einops()
    makers: Any = {one.__name__: partial(tracer.make, one) for one in operations.MAKING_FUNCTIONS if callable(one)}
    try:
        with patch.multiple(torch, **makers):
            graph = tracer.trace(module)
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # torch would wrap what a function that was looked into calls last
        traced = fx.GraphModule(module, graph, type(module).__name__)
    except TraceError:
        raise
    except Exception as error:  # torch.fx runs user code: anything may come out
        raise TraceError(
            f"{name} cannot be traced by torch.fx: {error} "
            "Move data-dependent control flow out of forward(), or wrap that part in a module of its own."
        ) from error
    write_out(traced.graph)
    _take_results(traced, name)
    traced.graph.eliminate_dead_code()
    return traced


def _introduce_to_einops() -> None:
    """Where it is in use, einops is to treat values in forward() as the tensors that they stand for; it goes by their type."""
    backends = sys.modules.get("einops._backends")
    if backends is not None:
        with suppress(AttributeError):  # of some version that keeps its types elsewhere
            backends._type2backend[_Value] = backends.get_backend(torch.empty(0))


def _take_results(traced: fx.GraphModule, name: str) -> None:
    """Where forward() changes a tensor in place and takes no result, what follows reads the result."""
    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if node.users or not _in_place(traced, node) or node.all_input_nodes[0].op == "get_attr":
            continue
        changed, result = node.all_input_nodes[0], node
        if changed.target is operator.getitem and isinstance(changed.args[1], slice) and changed.args[1].step is None:
            part, changed = changed.args[1], changed.all_input_nodes[0]
            with traced.graph.inserting_after(node):
                result = traced.graph.call_function(torch.slice_scatter, (changed, node, 0, part.start, part.stop))
        if changed.target in operations.VIEWS:
            raise TraceError(
                f"{name} changes a part of a tensor in place (operation '{node.name}'), which cannot be followed. "
                "Write that part of forward() so that it uses the result."
            )
        changed.replace_all_uses_with(result, lambda user, after=place[node]: place.get(user, 0) > after)


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    called = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return (called.endswith("_") and not called.endswith("__")) or bool(node.kwargs.get("inplace"))


def _image(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    parameter = next(module.parameters(), torch.empty(0))
    return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


def _does_not_run(name: str, shape: tuple[int, ...], error: BaseException) -> TraceError:
    return TraceError(f"{name} does not run on an input of shape {shape}: {str(error).splitlines()[0]}")

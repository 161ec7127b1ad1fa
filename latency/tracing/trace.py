"""Tracing: an ordinary module becomes a `Network`.

The module is traced with torch.fx and run once for its shapes, and layers of derived classes become torch's own. Then every
node's channels are followed by the rules of `latency.tracing.rules`; any layer or operation that cannot be followed has all of
its channels left to it, and what is free in the end are the genes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from latency.errors import TraceError
from latency.graph.axis import AnyAxis, Axis, concatenated
from latency.graph.network import Gene, Layer, Network, width_choices
from latency.tracing.channels import Flows, Variables
from latency.tracing.derived import lift
from latency.tracing.folding import unfold
from latency.tracing.follow import follow
from latency.tracing.plain import plain
from latency.tracing.symbolic import graph_of
from latency.tracing.walk import Walk

DEFAULT_ALIGN = 8
"""Widths are multiples of this unless asked otherwise: odd widths are slow on every device we know."""


def trace(
    module: nn.Module,
    input_shape: Sequence[int] = (1, 3, 224, 224),
    *,
    align: int = DEFAULT_ALIGN,
    name: str | None = None,
) -> Network:
    """Trace `module` for one image batch of `input_shape` [N, C, H, W].

    Args:
        module: any CNN that torch.fx can trace; it is copied, not changed, and traced in eval mode.
        input_shape: shape of its only input, batch first.
        align: genes may take multiples of this; 1 gives the paper's own grid of 31 widths.
        name: how tables and reports call it; default: the class name.

    Raises:
        TraceError: naming the layer, the operation and what to do.

    Example:
        >>> net = trace(torchvision.models.mobilenet_v2(), (1, 3, 224, 224))
        >>> net.genes[0]
        Gene(name='features.0.0', max_width=32, choices=(8, 16, 24, 32))
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise TraceError(f"input_shape={tuple(input_shape)} given; expected four positive sizes (N, C, H, W).")
    if align < 1:
        raise TraceError(f"align={align} given; expected a positive whole number.")
    name = name or type(module).__name__
    module = plain(module)
    graph_module = graph_of(module, shape, name)
    unfold(graph_module.graph)
    lift(graph_module)
    walk = Walk(graph_module, name)
    for node in graph_module.graph.nodes:
        follow(walk, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    genes, gene_of = _genes(walk.variables, align)
    blocks, axis = _blocks(module), partial(_axis, walk.variables, gene_of)
    layers = tuple(
        Layer(layer, kind, axis(inputs), axis(outputs), taps, blocks[layer])
        for layer, (kind, inputs, outputs, taps) in walk.layers.items()
    )
    tensors = {tensor: tuple(map(axis, flows)) for tensor, flows in walk.tensors.items()}
    over_channels = {node: (one.axis, axis(one.flows)) for node, one in walk.over_channels.items()}
    parameters = tuple(parameter for parameter in walk.parameters if parameter in tensors)
    unfollowed = tuple(dict.fromkeys(walk.unfollowed))
    return Network(name, graph_module, shape, genes, layers, tensors, parameters, over_channels, align, unfollowed)


def _genes(variables: Variables, align: int) -> tuple[tuple[Gene, ...], dict[int, int]]:
    """What is free, and the gene of each free variable."""
    free = variables.free()
    genes = [
        Gene(one.maker, one.size, width_choices(one.size, math.lcm(align, one.multiple)), one.multiple) for one in free.values()
    ]
    return tuple(genes), {variable: gene for gene, variable in enumerate(free)}


def _axis(variables: Variables, gene_of: Mapping[int, int], flows: Flows | int) -> AnyAxis:
    """What genes make of flows; a whole number is a size that no gene changes."""
    if isinstance(flows, int):
        return Axis(flows)
    roots = variables.roots(flows)
    return concatenated([Axis(variables.entries(flow), gene_of.get(flow.variable), flow.per_channel) for flow in roots])


def _blocks(module: nn.Module) -> dict[str, str]:
    """For each submodule the outermost enclosing module that is more than a sequence; itself where there is none."""
    sequences = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    blocks: dict[str, str] = {}
    for name, submodule in module.named_modules():
        parent = name.rpartition(".")[0]
        inherited = blocks.get(parent, "")
        blocks[name] = inherited or ("" if isinstance(submodule, sequences) or not name else name)
    return blocks

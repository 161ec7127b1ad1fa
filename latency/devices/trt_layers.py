"""Which nodes of the ONNX graph are behind a layer of a TensorRT engine.

An engine's layers are fused nodes. Engines built with detailed verbosity say in each layer's metadata which nodes it was
made of; without that the layer's name tells it: nodes joined by " + ", pointwise ones inside PWN(…), a span of nodes
compiled together as {ForeignNode[first...last]}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

CONVERSION = ("Reformatting CopyNode", "reshape_before_", "reshape_after_", "squeeze_after_", "copied_squeeze_after_")
"""How the names of layers begin that TensorRT adds to convert layouts and types."""

FOREIGN = r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}"
"""First and last node of a span compiled together."""


def nodes_by_layer(information: str, order: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Node names behind every layer of an engine; none for conversions.

    Args:
        information: the engine inspector's JSON, detailed or names only.
        order: names of the ONNX graph's nodes, in the graph's order.
    """
    layers = [one if isinstance(one, dict) else {"Name": one} for one in json.loads(information)["Layers"]]
    return {layer["Name"]: nodes_behind(layer["Name"], order, layer.get("Metadata", "")) for layer in layers}


def nodes_behind(name: str, order: Sequence[str], metadata: str = "") -> tuple[str, ...]:
    """Names of the ONNX nodes behind the layer `name`, in the graph's order; none for conversions and unknown layers."""
    if name.startswith(CONVERSION):
        return ()
    position = {node: index for index, node in enumerate(order)}
    stated = re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)
    members = {position[part] for part in stated or _parts(re.sub(FOREIGN, "", name)) if part in position}
    for first, last in re.findall(FOREIGN, "" if stated else name):
        ends = [position[part] for part in _parts(first) + _parts(last) if part in position]
        members.update(range(min(ends, default=0), max(ends, default=-1) + 1))
    return tuple(order[index] for index in sorted(members))


def _parts(name: str) -> list[str]:
    """The names joined in a layer's name: without wrappers, and without the suffix of compiled fragments."""
    parts = re.split(r" \+ |, ", name.replace("PWN(", ""))
    return [re.sub(r"_myl\d+_\d+$", "", part.strip("() ")) for part in parts]

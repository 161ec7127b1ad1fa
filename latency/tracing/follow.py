"""Node after node: its channels by its rule, or, where there is none, left as they are."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import fx

from latency.errors import TraceError
from latency.graph import operations
from latency.tracing.channels import Channels, Flows
from latency.tracing.joins import extreme
from latency.tracing.nodes import number, shape_of, state_sizes
from latency.tracing.parts import picks, split, unbind
from latency.tracing.rules import rule_of
from latency.tracing.walk import Unfollowed, Walk, lies_along_one_axis, repeats_for_images

COMBINING = operations.JOINING_FUNCTIONS | operations.CONCATENATING_FUNCTIONS | {F.rms_norm}
"""What bare parameters are combined by with what has channels."""

OF_SEVERAL = (split, unbind, extreme)
"""Rules of what gives several tensors at once."""


def follow(walk: Walk, node: fx.Node) -> None:
    """Enter what is known of a node, all before it having been followed.

    Raises:
        TraceError: it is a second input.
    """
    if node.op == "placeholder":
        _image(walk, node)
    elif node.op == "output":
        _pin_inputs(walk, node)
    elif shape_of(node) is None:
        return  # sizes and other plain numbers carry no channels
    elif node.op == "get_attr":
        if not all(_joins(walk, node, user) for user in node.users):
            walk.channels[node] = walk.kept_bare(node)
            if not _ends_in_numbers(node):
                walk.constants[node].append(f"parameter or buffer '{node.target}' is no summand or factor")
    elif node.target in operations.MAKING_FUNCTIONS:
        walk.channels[node] = _made(walk, node)
    elif not walk.carriers(node) and math.prod(shape_of(node)) == 1:
        _parameters_kept(walk, node)  # a number made of others, as the inverse of a learnt power
    elif walk.bare(node) is None:
        free = [flows for flows in _flows_into(walk, node) if not walk.variables.all_fixed(flows)]
        try:
            walk.channels[node] = _part(walk, node) or _followed(walk, node)
        except Unfollowed as reason:
            walk.channels[node] = _left_alone(walk, node, str(reason))
        if any(map(walk.variables.all_fixed, free)):
            walk.unfollowed += _reasons(walk, node)


def _image(walk: Walk, node: fx.Node) -> None:
    if walk.channels:
        raise TraceError(f"{walk.name}: {walk.owner(node)} is a second input. Trace a module with one image input.")
    walk.channels[node] = walk.fixed(node)


def _made(walk: Walk, node: fx.Node) -> Channels:
    """A tensor that forward() makes, of zeros, say, has the sizes that it has now, but for the batch's; where it has those of
    another one, that keeps its channels."""
    state_sizes(node)
    for shape in node.all_input_nodes:
        if number(shape) is shape and (shape.target == "size" or (shape.target is getattr and shape.args[1] == "shape")):
            if not all(map(walk.variables.all_fixed, _flows_into(walk, shape))):
                walk.unfollowed.append(f"{walk.owner(node)} has another tensor's sizes")
            _pin_inputs(walk, shape)
    walk.constants[node] = []
    return walk.fixed(node)


def _joins(walk: Walk, node: fx.Node, user: fx.Node) -> bool:
    """Whether what uses a bare parameter adds it to something, or multiplies by it, or takes the larger, maybe in
    another shape, or asks for its size; or filters with it, a buffer."""
    if lies_along_one_axis(user) or repeats_for_images(user):
        return all(_joins(walk, node, other) for other in user.users)
    if user.target is F.conv2d:
        return str(node.target) not in walk.parameters
    compares = user.target in operations.EXTREME_FUNCTIONS and len(user.all_input_nodes) > 1
    return shape_of(user) is None or user.target in COMBINING or compares


def _ends_in_numbers(node: fx.Node) -> bool:
    """Whether what is computed from it alone comes out as single numbers."""
    users = [user for user in node.users if shape_of(user) is not None]
    return all(math.prod(shape_of(user)) == 1 or (_computes_with(user, node) and _ends_in_numbers(user)) for user in users)


def _computes_with(user: fx.Node, node: fx.Node) -> bool:
    """Whether it works on nothing else but numbers."""
    sources = [source for source in user.all_input_nodes if shape_of(source) is not None]
    return all(source is node or math.prod(shape_of(source)) == 1 for source in sources)


def _part(walk: Walk, node: fx.Node) -> Channels | None:
    """Of one of several equal tensors."""
    return walk.parts.get(node.all_input_nodes[0]) if picks(node) else None


def _followed(walk: Walk, node: fx.Node) -> Channels:
    module = walk.modules[str(node.target)] if node.op == "call_module" else None
    rule = rule_of(node, module)
    carriers = walk.carriers(node)
    if walk.constants.keys() >= set(carriers):
        raise Unfollowed("computes with bare parameters alone")
    if not all(walk.channels[source].flows for source in carriers):
        raise Unfollowed("works on something without channels")
    if len(shape_of(node)) < 2 and rule not in OF_SEVERAL:
        raise Unfollowed("leaves nothing that has channels")
    return rule(walk, node, module)


def _left_alone(walk: Walk, node: fx.Node, what: str) -> Channels:
    """What goes in keeps all of its channels, and so does what comes out, and all parameters keep their shapes."""
    lost = not all(map(walk.variables.all_fixed, _flows_into(walk, node)))
    _pin_inputs(walk, node)
    state_sizes(node)
    why = _reasons(walk, node)
    why += [f"{walk.owner(node)} {what}"] if _parameters_kept(walk, node) or lost else []
    if walk.constants.keys() >= set(walk.carriers(node)):
        walk.constants[node] = why
    else:
        walk.unfollowed += why
    axes = {walk.channels[source].axis for source in walk.carriers(node)}
    return walk.scores(node) if axes == {0} and shape_of(node) else walk.fixed(node)


def _reasons(walk: Walk, node: fx.Node) -> list[str]:
    """Why those inputs that do not depend on the image have no channels to follow."""
    return [why for source in node.all_input_nodes for why in walk.constants.get(source, ())]


def _parameters_kept(walk: Walk, node: fx.Node) -> bool:
    """Whether the node has or reads any; they keep their shapes."""
    bare = [source for source in map(walk.bare, node.all_input_nodes) if source]
    for source in bare:
        walk.kept_bare(source)
    if node.op != "call_module":
        return bool(bare)
    layer, prefix = walk.modules[str(node.target)], str(node.target)
    own = [*layer.named_parameters(prefix), *layer.named_buffers(prefix)]
    walk.tensors.update({name: tuple(tensor.shape) for name, tensor in own})
    return bool(own)


def _pin_inputs(walk: Walk, node: fx.Node) -> None:
    for flows in _flows_into(walk, node):
        walk.variables.pin(flows)


def _flows_into(walk: Walk, node: fx.Node) -> list[Flows]:
    carried = [carriers.get(source) for source in node.all_input_nodes for carriers in (walk.channels, walk.parts)]
    return [channels.flows for channels in carried if channels]

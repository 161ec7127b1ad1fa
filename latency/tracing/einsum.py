"""Products that are written as sums over indices, as matrix products."""

from __future__ import annotations

import torch
from torch import fx


def write_out(graph: fx.Graph) -> None:
    """Make each `einsum` of two tensors that is a matrix product one: "bhid,bhjd->bhij", say. Others stay."""
    for node in list(graph.nodes):
        if node.target is torch.einsum and len(node.args) == 3 and isinstance(node.args[0], str):
            inputs, _, made = node.args[0].replace(" ", "").partition("->")
            first, _, second = inputs.partition(",")
            orders = _orders(first, second, made)
            if orders:
                _multiply(graph, node, orders)


def _orders(first: str, second: str, made: str) -> tuple[list[int], list[int], list[int]] | None:
    """How to permute both factors, and then their product; None where each has another number of rows or columns than one."""
    both = [index for index in made if index in first and index in second]
    rows = [index for index in made if index not in second]
    columns = [index for index in made if index not in first]
    summed = [index for index in first if index in second and index not in made]
    whole = {*both, *rows, *columns, *summed}
    plain = all(len(set(one)) == len(one) and set(one) <= whole for one in (first, second, made))
    if not plain or "." in first + second or not len(rows) == len(columns) == len(summed) == 1:
        return None
    left, right, product = [*both, *rows, *summed], [*both, *summed, *columns], [*both, *rows, *columns]
    return [*map(first.index, left)], [*map(second.index, right)], [*map(product.index, made)]


def _multiply(graph: fx.Graph, node: fx.Node, orders: tuple[list[int], list[int], list[int]]) -> None:
    _, *factors = node.args
    *turns, turn = orders
    with graph.inserting_before(node):
        turned = [graph.call_function(torch.permute, (one, order)) for one, order in zip(factors, turns, strict=True)]
        product = graph.call_function(torch.matmul, tuple(turned))
    node.target, node.args = torch.permute, (product, turn)

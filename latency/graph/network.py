"""A traced network: its layers, its genes, and what any widths cost. Everything else in the project is a view of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.errors import WidthsError
from latency.graph.axis import AnyAxis, Kept, kept
from latency.graph.pairwise import PairwiseCost, Term, split_terms

if TYPE_CHECKING:
    from torch import fx

    from latency.graph.template import Template

SCALES = tuple(round(0.10 + 0.03 * step, 2) for step in range(31))
"""Width scales a gene may take, 0.10 … 1.00 (MetaPruning, section 4.1)."""


@dataclass(frozen=True)
class Gene:
    """One free channel count: `choices` are ascending widths, the last of them `max_width`.

    Widths must be multiples of `multiple`: more than 1 where a grouped convolution can only lose whole groups.
    """

    name: str
    max_width: int
    choices: tuple[int, ...]
    multiple: int = 1


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    `inputs` are the channels that one output reads: those of one group where there are groups. `taps` is kernel area ×
    output positions: multiply-adds for each pair of an input and an output. `block` is the path of the outermost
    enclosing module that is more than a sequence of others.
    """

    name: str
    kind: str  # "conv" | "linear"
    inputs: AnyAxis
    outputs: AnyAxis
    taps: int
    block: str

    def macs(self, inputs: Any, outputs: Any) -> Any:
        """Multiply-adds of one image, given the kept inputs and outputs."""
        return self.taps * inputs * outputs

    @property
    def genes(self) -> frozenset[int]:
        """Indices of the genes that change its shape."""
        return self.inputs.genes | self.outputs.genes


def width_choices(max_width: int, align: int) -> tuple[int, ...]:
    """The paper's 31 scales of `max_width`, rounded to multiples of `align`; `align=1` is the paper's own grid."""
    if align == 1:
        widths = {int(max_width * scale + 1e-9) for scale in SCALES}
    else:
        widths = {align * round(max_width * scale / align) for scale in SCALES}
    return tuple(sorted({max_width} | {width for width in widths if 0 < width < max_width}))


@dataclass(frozen=True, eq=False)
class Network:
    """A traced module (see `latency.trace`).

    Attributes:
        tensors: the axes of each parameter and buffer.
        over_channels: nodes of the graph that compute over channels without weights for each (norms, means), or cut what was
            shuffled: where among their input's axes these lie, and how long they are.
        unfollowed: operations whose channels tracing cannot follow, so that what touches them is not pruned.
    """

    name: str
    module: fx.GraphModule
    input_shape: tuple[int, ...]
    genes: tuple[Gene, ...]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, tuple[AnyAxis, ...]]
    parameter_names: tuple[str, ...]
    over_channels: Mapping[str, tuple[int, AnyAxis]]
    align: int
    unfollowed: tuple[str, ...] = ()

    @cached_property
    def max_widths(self) -> tuple[int, ...]:
        """Widths of the unpruned network."""
        return tuple(gene.max_width for gene in self.genes)

    @cached_property
    def min_widths(self) -> tuple[int, ...]:
        """Every gene's smallest choice."""
        return tuple(gene.choices[0] for gene in self.genes)

    @cached_property
    def signature(self) -> str:
        """Twelve hex digits that differ whenever layers, other operations, parameters, groups of norms, genes or input differ,
        whatever the name. BN counts for nothing: it is folded."""
        from torch import nn

        from latency.graph.operations import computed

        facts = repr((self.input_shape, self.layers, [(gene.name, gene.max_width) for gene in self.genes]))
        facts += repr(list(computed(self.module)))
        layers = {layer.name for layer in self.layers}
        for name in self.parameter_names:
            owner, axes = name.rpartition(".")[0], self.tensors[name]
            kind = type(self.module.get_submodule(owner)).__name__
            if owner not in layers and "BatchNorm" not in kind:
                facts += repr((kind, name, [axis.size for axis in axes]))
        groups = [(name, one.num_groups) for name, one in self.module.named_modules() if isinstance(one, nn.GroupNorm)]
        facts += repr(groups) * bool(groups)
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"Network({self.name}, {len(self.genes)} genes, {len(self.layers)} layers, input {self.input_shape})"

    def check_widths(self, widths: Any) -> np.ndarray:
        """`widths` as int64[L] or int64[P, L]; raises WidthsError unless 1 ≤ width ≤ max_width everywhere."""
        array = np.asarray(widths)
        expected = f"{len(self.genes)} integers a structure, one for each gene of {self.name}"
        if array.ndim not in (1, 2) or array.shape[-1] != len(self.genes):
            raise WidthsError(f"widths of shape {array.shape} given; expected {expected}.")
        whole = np.issubdtype(array.dtype, np.integer)
        if not whole and not (np.issubdtype(array.dtype, np.number) and np.array_equal(array, np.round(array))):
            raise WidthsError(f"widths are not whole numbers; expected {expected}.")
        array = array.astype(np.int64, copy=False)
        if not array.size:
            return array
        lowest, highest = (np.atleast_2d(array).min(axis=0), np.atleast_2d(array).max(axis=0))
        for column, gene in enumerate(self.genes):
            if lowest[column] < 1 or highest[column] > gene.max_width:
                wrong = lowest[column] if lowest[column] < 1 else highest[column]
                raise WidthsError(f"width {wrong} given for gene '{gene.name}'; expected 1 … {gene.max_width}.")
            if gene.multiple > 1 and (array[..., column] % gene.multiple).any():
                raise WidthsError(
                    f"a width given for gene '{gene.name}' is no multiple of {gene.multiple}, the size of its groups."
                )
        return array

    def nearest_widths(self, scale: float) -> np.ndarray:
        """int64[L]: every gene at its choice nearest to `scale` × max_width (uniform scaling)."""
        return np.array([min(gene.choices, key=lambda c: abs(c - scale * gene.max_width)) for gene in self.genes])

    def macs(self, widths: Any) -> Any:
        """Multiply-adds of conv and linear layers for one image: int for one structure, int64[P] for [P, L].

        Products of two computed tensors, as in attention, are not counted, nor what layers of other kinds do inside.
        """
        array = self.check_widths(widths)
        total = sum(layer.macs(layer.inputs.length(array), layer.outputs.length(array)) for layer in self.layers)
        return int(total) if array.ndim == 1 else np.broadcast_to(total, array.shape[:1]).astype(np.int64)

    def params(self, widths: Any) -> Any:
        """All learnable parameters, biases and BN included: int for one structure, int64[P] for [P, L]."""
        array = self.check_widths(widths)
        total = sum(math.prod(axis.length(array) for axis in self.tensors[name]) for name in self.parameter_names)
        return int(total) if array.ndim == 1 else np.broadcast_to(total, array.shape[:1]).astype(np.int64)

    @cached_property
    def macs_cost(self) -> PairwiseCost:
        """`macs` as a sum over gene pairs."""
        return self.pairwise([t for layer in self.layers for t in split_terms((layer.inputs, layer.outputs), layer.macs)])

    @cached_property
    def params_cost(self) -> PairwiseCost:
        """`params` as a sum over gene pairs."""
        return self.pairwise([t for name in self.parameter_names for t in split_terms(self.tensors[name], _product)])

    def pairwise(self, terms: Sequence[Term]) -> PairwiseCost:
        """Tabulate `terms` over the genes' choices."""
        return PairwiseCost.tabulate(terms, [gene.choices for gene in self.genes])

    def kept(self, name: str, widths: np.ndarray) -> Kept:
        """Which entries along each axis of tensor `name` a structure `widths` (int64[L]) keeps."""
        return kept(self.tensors[name], widths)

    def kept_shape(self, name: str, widths: np.ndarray) -> tuple[int, ...]:
        """Shape of what `kept` leaves of tensor `name`."""
        return tuple(int(axis.length(widths)) for axis in self.tensors[name])

    @cached_property
    def template(self) -> Template:
        """The network exported to ONNX once, at full width (takes seconds the first time)."""
        from latency.graph.template import Template

        return Template(self.name, self.signature, self.module, self.input_shape, self.tensors)

    def onnx(self, widths: Any) -> bytes:
        """A self-contained ONNX model of the structure `widths` (int[L])."""
        return self.template.build(self.check_widths(widths))


def _product(*lengths: Any) -> Any:
    return math.prod(lengths)

"""PruningNet: the traced network with its convolution weights generated from the widths (MetaPruning, section 3.1).

Every convolution has a generator of its own (see `pruning.generators`). Everything else (norms, biases, the classifier) is an
ordinary parameter, cropped the same way. A structure's weights are a dict by the traced network's own names, so the structure
that is trained, the one that is evaluated and the one that is shipped are the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from latency.graph.network import Network
from pruning import over_channels
from pruning.bank import Kept
from pruning.extract import extract, narrowed
from pruning.generators import GENERATORS, HIDDEN, FullGenerator, LowRankGenerator, crop


class PruningNet(nn.Module):
    """Any structure of `network`, with generated weights.

    Args:
        start: weights by the traced network's names, at full width, that training starts from.
        generator: a name in `GENERATORS`. Any optimiser trains "low-rank" and "shared"; "full" holds banks with an SGD of their
            own, which `pruning.fit` steps.
        hidden: width of the generators' hidden layer.

    Example:
        >>> net = latency.trace(module, (1, 3, 32, 32))
        >>> supernet = PruningNet(net, dict(module.named_parameters()))
        >>> scores = supernet(images, widths)            # training: BN uses the batch's statistics
        >>> structure = supernet.structure(widths)       # the same structure as a module of its own
    """

    def __init__(self, network: Network, start: Mapping[str, Tensor], generator: str = "full", hidden: int = HIDDEN) -> None:
        super().__init__()
        self.network = network
        self._over_channels = {name: axis for name, (_, axis) in network.over_channels.items() if axis.genes}
        axes = (*itertools.chain(*network.tensors.values()), *self._over_channels.values())
        self._axes = tuple(dict.fromkeys(axis for axis in axes if axis.genes))
        blocks = block_genes(network)
        make = GENERATORS[generator]
        self.generators = nn.ModuleDict(
            {
                layer.name.replace(".", "/"): make(blocks[layer.name], start[f"{layer.name}.weight"], hidden)
                for layer in network.layers
                if make is not None and layer.kind != "linear" and blocks[layer.name]
            }
        )
        generated = {f"{name.replace('/', '.')}.weight" for name in self.generators}
        self.plain = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(start[name].detach().clone())
                for name in network.parameter_names
                if name not in generated
            }
        )
        self.fixed = nn.Module()
        for name, buffer in network.module.named_buffers():
            self.fixed.register_buffer(name.replace(".", "/"), buffer.clone(), persistent=False)

    def forget_widths(self) -> None:
        """Give all structures the starting weights, until trained."""
        for generator in self.generators.values():
            assert isinstance(generator, FullGenerator | LowRankGenerator)
            generator.forget_widths()

    @property
    def device(self) -> torch.device:
        """What it computes on."""
        return next(self.parameters()).device

    def weights(self, widths: np.ndarray, *, whole: bool | None = None) -> dict[str, Tensor]:
        """All parameters of the structure `widths` (int64[L]) by the traced network's names, in full precision.

        Args:
            whole: at full size, zero for what is pruned, which computes the same (what computes over channels is told by
                NODE.kept which of them count); otherwise cropped. By default whole on a GPU: there convolutions of a shape not
                seen before must be planned first, which takes longer than what is spared.
        """
        return self.decoded(self.encoded(widths, whole=whole))

    def encoded(self, widths: np.ndarray, *, whole: bool | None = None) -> Tensor:
        """`widths` (int64[L]) as the one tensor that `decoded` makes weights of: themselves; or where weights are whole, on
        the device, the scales of all genes and the masks of all axes that genes prune, 1 for what is kept and 0 for the rest.
        """
        if not (self.device.type == "cuda" if whole is None else whole):
            return torch.from_numpy(np.array(widths, dtype=np.int64))
        masks = [np.zeros(axis.size, dtype=np.float32) for axis in self._axes]
        for axis, mask in zip(self._axes, masks, strict=True):
            mask[axis.index(widths)] = 1
        return self._moved(np.concatenate([self._shares(widths), *masks]))

    def decoded(self, encoded: Tensor) -> dict[str, Tensor]:
        """The weights of what `encoded` gave."""
        with torch.autocast(self.device.type, enabled=False):
            if encoded.is_floating_point():
                return self._among_zeros(encoded)
            widths = encoded.numpy()
            return self._made(self._moved(self._shares(widths)), lambda name: self.network.kept(name, widths))

    def _shares(self, widths: np.ndarray) -> np.ndarray:
        return np.asarray(widths, dtype=np.float32) / np.asarray(self.network.max_widths, dtype=np.float32)

    def _moved(self, values: np.ndarray) -> Tensor:
        """Beside the parameters, in their type."""
        return torch.from_numpy(values).to(next(self.parameters()), non_blocking=True)

    def _made(self, scales: Tensor, kept: Callable[[str], Kept]) -> dict[str, Tensor]:
        """Generated and plain parameters from the scales of all genes, of each what is `kept` by its name."""
        weights = {}
        for key, generator in self.generators.items():
            name = f"{key.replace('/', '.')}.weight"
            weights[name] = generator(scales, kept(name))
        for key, parameter in self.plain.items():
            name = key.replace("/", ".")
            weights[name] = crop(parameter, kept(name))
        return weights

    def _among_zeros(self, encoded: Tensor) -> dict[str, Tensor]:
        scales, *parts = encoded.split([len(self.network.genes), *(axis.size for axis in self._axes)])
        masks, weights = dict(zip(self._axes, parts, strict=True)), self._made(scales, lambda name: None)
        for name in weights:
            axes = self.network.tensors[name]
            for place, axis in enumerate(axes):
                if axis.genes:
                    weights[name] = weights[name] * masks[axis].view(-1, *[1] * (len(axes) - place - 1))
        return weights | {f"{name}.kept": masks[axis] for name, axis in self._over_channels.items()}

    def forward(self, images: Tensor, widths: np.ndarray) -> Tensor:
        """Scores [N, classes] of the structure `widths` (int64[L]) for images [N, C, H, W]; BN over this batch."""
        return self.scores(images, self.weights(widths))

    def scores(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The same for a structure whose `weights` are known."""
        fixed = {name.replace("/", "."): buffer for name, buffer in self.fixed.named_buffers()}
        result: Tensor = _Structure(self.network, {**fixed, **weights}).run(images)
        return result

    @torch.no_grad()
    def structure(self, widths: np.ndarray) -> fx.GraphModule:
        """The structure as a module of its own. Its BN statistics are blank: recalibrate them before use."""
        return extract(self.network, widths, self.weights(widths))


class _Structure(fx.Interpreter):
    """Runs the traced graph with given weights and buffers in place of its modules' own."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self.network, self.weights = network, weights

    def run_node(self, node: fx.Node) -> Any:
        kept = self.weights.get(f"{node.name}.kept")
        if kept is None:
            return super().run_node(node)
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(node)
        module = self.submodules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            weight, bias = (self.weights.get(f"{node.target}.{name}") for name in ("weight", "bias"))
            return over_channels.normalised(module, x, kept, weight, bias)
        place, _ = self.network.over_channels[node.name]
        x = over_channels.prepared(node, x, kept, place)
        return getattr(self, node.op)(node.target, (x, *rest), kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.submodules[target]
        weight, bias = self.weights.get(f"{target}.weight"), self.weights.get(f"{target}.bias")
        if isinstance(module, nn.Conv2d):
            assert weight is not None
            if _is_pointwise(module):  # a plain product: oneDNN and cuDNN would plan it anew for widths not seen before
                return F.linear(args[0].movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
            groups = max(1, module.groups * len(weight) // module.out_channels)
            if module.padding_mode == "zeros":
                return F.conv2d(args[0], weight, bias, module.stride, module.padding, module.dilation, groups)
            module = narrowed(module, groups=groups)
        if isinstance(module, nn.ConvTranspose2d) and module.groups == len(args) == 1 and not kwargs:
            assert weight is not None
            rest: Any = (module.stride, module.padding, module.output_padding, 1, module.dilation)
            return F.conv_transpose2d(args[0], weight, bias, *rest)
        if isinstance(module, nn.Linear):
            assert weight is not None
            return F.linear(args[0], weight, bias)
        if isinstance(module, nn.PReLU):
            assert weight is not None
            return F.prelu(args[0], weight)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return F.batch_norm(args[0], None, None, weight, bias, training=True, eps=module.eps)
        if isinstance(module, nn.InstanceNorm2d) and weight is not None:
            return F.instance_norm(args[0], weight=weight, bias=bias, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            groups = max(1, module.num_groups * args[0].shape[1] // module.num_channels)
            return F.group_norm(args[0], groups, weight, bias, module.eps)
        if isinstance(module, nn.LayerNorm) and weight is not None:
            module = narrowed(module, normalized_shape=tuple(weight.shape))
        own = {name: self.weights[f"{target}.{name}"] for name, _ in (*module.named_parameters(), *module.named_buffers())}
        return functional_call(module, own, args, kwargs) if own else super().call_module(target, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.weights[target]


def _is_pointwise(module: nn.Conv2d) -> bool:
    return module.kernel_size == module.stride == (1, 1) and module.padding in (0, (0, 0)) and module.groups == 1


def block_genes(network: Network) -> dict[str, tuple[int, ...]]:
    """For each layer, the genes its generator is fed with: all that the layers of its block touch.

    This gives the official encodings: [in, out] for MobileNetV1's pairs, [mid, in, out] for MobileNetV2's and ResNet's
    blocks, the shortcut's convolution included.
    """
    genes: dict[str, set[int]] = {}
    for layer in network.layers:
        genes.setdefault(layer.block, set()).update(layer.genes)
    return {layer.name: tuple(sorted(genes[layer.block])) for layer in network.layers}

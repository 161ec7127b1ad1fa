"""PruningNet: the traced network with its convolution weights generated from the widths (MetaPruning, section 3.1).

Every convolution has a small network of its own: block scales → Linear → ReLU → Linear → all its weights. Only the rows
and columns that the widths keep are ever computed. Everything else (BN, biases, the classifier) is an ordinary
parameter, cropped the same way. A structure's weights are a dict by the traced network's own names, so the structure
that is trained, the one that is evaluated and the one that is shipped are the same code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from latency.network import Network
from pruning.extract import extract

HIDDEN = 32
"""Width of the generators' hidden layer (official code: 32 for MobileNetV1 and ResNet-50, 64 for MobileNetV2's blocks)."""


class Generator(nn.Module):
    """Weights of one convolution from the scales of its block's genes.

    Args:
        genes: indices of the genes that the convolution's block touches.
        shape: full shape [out, in, kh, kw].
        hidden: width of the hidden layer.
    """

    def __init__(self, genes: tuple[int, ...], shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.genes = list(genes)
        self.encoder = nn.Linear(len(genes), hidden)
        self.bank = nn.Parameter(torch.empty(*shape[:2], shape[2] * shape[3], hidden))
        self.offset = nn.Parameter(torch.empty(shape))
        deviation = math.sqrt(2 / (shape[0] * shape[2] * shape[3]))  # He et al. 2015, fan out
        nn.init.normal_(self.offset, std=deviation)
        nn.init.normal_(self.bank, std=deviation / math.sqrt(hidden))

    def forward(self, scales: Tensor, kept: tuple[slice | np.ndarray, ...]) -> Tensor:
        """Weights cropped to `kept`, from the scales float32[L] of all genes."""
        code = F.relu(self.encoder(scales[self.genes]))
        offset = self.offset[kept]
        return _CroppedProduct.apply(self.bank, code, kept[:2]).view(offset.shape) + offset


class _CroppedProduct(torch.autograd.Function):
    """bank[kept] @ code. Its gradient goes straight into that crop of `bank.grad`.

    A gradient of full size for every step would cost more than the network itself: banks hold hundreds of megabytes.
    """

    @staticmethod
    def forward(ctx: Any, bank: Tensor, code: Tensor, kept: tuple[slice | np.ndarray, ...]) -> Tensor:
        ctx.save_for_backward(code)
        ctx.bank, ctx.kept = bank, kept
        return bank[kept].reshape(-1, len(code)) @ code

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (code,) = ctx.saved_tensors
        bank, kept = ctx.bank, ctx.kept
        crop = bank.detach()[kept]
        if bank.grad is None:
            bank.grad = torch.zeros_like(bank)
        gradient = bank.grad[kept]
        gradient.addcmul_(gradients[0].view(*crop.shape[:3], 1), code)
        if not all(isinstance(index, slice) for index in kept):  # then it is a copy, not a view
            bank.grad[kept] = gradient
        return None, gradients[0] @ crop.reshape(-1, len(code)), None


class PruningNet(nn.Module):
    """Any structure of `network`, with generated weights.

    Example:
        >>> supernet = PruningNet(latency.trace(module, (1, 3, 32, 32)))
        >>> scores = supernet(images, widths)            # training: BN uses the batch's statistics
        >>> structure = supernet.structure(widths)       # the same structure as a module of its own
    """

    def __init__(self, network: Network, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.network = network
        blocks = block_genes(network)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.module.named_parameters()}
        self.generators = nn.ModuleDict(
            {
                layer.name.replace(".", "/"): Generator(blocks[layer.name], shapes[f"{layer.name}.weight"], hidden)
                for layer in network.layers
                if layer.kind != "linear" and blocks[layer.name]
            }
        )
        generated = {f"{name.replace('/', '.')}.weight" for name in self.generators}
        self.plain = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(parameter.detach().clone())
                for name, parameter in network.module.named_parameters()
                if name in network.tensors and name not in generated
            }
        )

    def weights(self, widths: np.ndarray) -> dict[str, Tensor]:
        """All parameters of the structure `widths` (int64[L]), cropped, by the traced network's names."""
        shares = np.asarray(widths, dtype=np.float32) / np.asarray(self.network.max_widths, dtype=np.float32)
        scales = torch.from_numpy(shares).to(next(self.parameters()))  # its device and type
        weights = {}
        for key, generator in self.generators.items():
            name = f"{key.replace('/', '.')}.weight"
            weights[name] = generator(scales, self.network.kept(name, widths))
        for key, parameter in self.plain.items():
            name = key.replace("/", ".")
            weights[name] = parameter[self.network.kept(name, widths)]
        return weights

    def forward(self, images: Tensor, widths: np.ndarray) -> Tensor:
        """Scores [N, classes] of the structure `widths` (int64[L]) for images [N, C, H, W]; BN over this batch."""
        result: Tensor = _Structure(self.network.module, self.weights(widths)).run(images)
        return result

    @torch.no_grad()
    def structure(self, widths: np.ndarray) -> fx.GraphModule:
        """The structure as a module of its own. Its BN statistics are blank: recalibrate them before use."""
        return extract(self.network, widths, self.weights(widths))


class _Structure(fx.Interpreter):
    """Runs the traced graph with given weights in place of its modules' own."""

    def __init__(self, module: fx.GraphModule, weights: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.weights = weights

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.submodules[target]
        weight, bias = self.weights.get(f"{target}.weight"), self.weights.get(f"{target}.bias")
        if isinstance(module, nn.Conv2d):
            assert weight is not None
            groups = max(1, module.groups * len(weight) // module.out_channels)
            return F.conv2d(args[0], weight, bias, module.stride, module.padding, module.dilation, groups)
        if isinstance(module, nn.Linear):
            assert weight is not None
            return F.linear(args[0], weight, bias)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return F.batch_norm(args[0], None, None, weight, bias, training=True, eps=module.eps)
        return super().call_module(target, args, kwargs)


def block_genes(network: Network) -> dict[str, tuple[int, ...]]:
    """For each layer, the genes its generator is fed with: all that the layers of its block touch.

    This gives the official encodings: [in, out] for MobileNetV1's pairs, [mid, in, out] for MobileNetV2's and ResNet's
    blocks, the shortcut's convolution included.
    """
    genes: dict[str, set[int]] = {}
    for layer in network.layers:
        genes.setdefault(layer.block, set()).update(layer.genes)
    return {layer.name: tuple(sorted(genes[layer.block])) for layer in network.layers}

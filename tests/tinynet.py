"""A network small enough to measure, train and search in seconds, with everything in it that joins widths."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import EncoderBlock


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Block(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project, add."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.expand = conv_bn(channels, middle)
        self.depthwise = conv_bn(middle, middle, 3, groups=middle)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, 8, 1), nn.ReLU(), nn.Conv2d(8, middle, 1), nn.Sigmoid()
        )
        self.project = conv_bn(middle, channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depthwise(self.act(self.expand(x))))
        return x + self.project(y * self.squeeze(y))


class TinyNet(nn.Module):
    """Genes: stem/stage (16), middle (32), squeeze (8), feature (48), hidden (24), all times `wider`."""

    def __init__(self, num_classes: int = 10, wider: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16 * wider, 3, 2), nn.ReLU())
        self.block = Block(16 * wider, 32 * wider)
        self.feature = nn.Sequential(*conv_bn(16 * wider, 48 * wider, 3, 2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(48 * 4 * wider, 24 * wider)
        self.classifier = nn.Linear(24 * wider, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.feature(self.block(self.stem(x))))
        return self.classifier(self.hidden(x.view(-1, self.hidden.in_features)).relu())


def wide(num_classes: int = 10) -> nn.Module:
    """Four times as wide: long enough a run for its latency to depend on its widths."""
    return TinyNet(num_classes, 4)


def tiny(num_classes: int = 10) -> nn.Module:
    return TinyNet(num_classes)


class Mixed(nn.Module):
    """Concatenations, grouped convolutions of every kind, a gate that reshapes, slopes of PReLU, a shuffle, 1-d pooling."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.doubled = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.left = nn.Conv2d(16, 12, 1)
        self.right = nn.Conv2d(16, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.slopes = nn.PReLU(20)
        self.head = nn.Conv2d(20, 10, 1)
        self.squeeze = nn.Linear(10, 6)
        self.excite = nn.Linear(6, 10)
        self.fixed = nn.Conv2d(10, 8, 1)
        self.shuffle = nn.ChannelShuffle(2)
        self.fewer = nn.Conv2d(8, 4, 1, groups=2)
        self.whole = nn.Conv2d(10, 12, 1)
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.doubled(self.grouped(self.stem(x)).relu())
        x = self.head(self.slopes(self.norm(cat([self.left(x), self.right(x)], 1))))
        batch, channels, _, _ = x.size()
        gate = self.squeeze(F.adaptive_avg_pool2d(x, 1).view(batch, channels)).relu()
        x = x * self.excite(gate).sigmoid().view(batch, channels, 1, 1)
        fixed = self.shuffle(self.fixed(x))
        x = cat([fixed, self.fewer(fixed)], 1) + self.whole(x)
        return self.classifier(F.adaptive_avg_pool1d(x.flatten(2), 1).flatten(1))


def mixed(num_classes: int = 10) -> nn.Module:
    return Mixed(num_classes)


class Plain(nn.Sequential):
    """No BN; convolutions with and without biases."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(128, 128, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes),
        )  # fmt: skip


def plain(num_classes: int = 10) -> nn.Module:
    return Plain(num_classes)


def tiny_convnext(num_classes: int = 10) -> nn.Module:
    """LayerNorms over channels on the second and on the last axis, linear layers at every position, bare parameters."""
    module = ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 1)], num_classes=num_classes)
    for name, parameter in module.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def small_densenet(num_classes: int = 10) -> nn.Module:
    """Concatenations of all that went before, and two transitions."""
    return DenseNet(growth_rate=8, block_config=(3, 3, 2), num_init_features=16, bn_size=2, num_classes=num_classes)


def small_swin(num_classes: int = 10) -> nn.Module:
    """Attention in shifted windows: only the insides of perceptrons are pruned."""
    return SwinTransformer(
        [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=num_classes, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip


class Halves(nn.Module):
    """Halves that go different ways (YOLO's C2f), a convolution cut by what it is added to, GLU, attention, a GroupNorm."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.enter = nn.Sequential(*conv_bn(3, 16, 3, 2), nn.ReLU()), conv_bn(16, 24)
        self.inside, self.leave = nn.ModuleList(conv_bn(12, 12, 3) for _ in range(2)), conv_bn(48, 16)
        self.left, self.right, self.whole = conv_bn(16, 10), conv_bn(16, 6), conv_bn(16, 16, 3)
        self.gates = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), nn.GroupNorm(3, 12), nn.ReLU())
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(self.stem(x)).relu().chunk(2, 1))
        parts.extend(layer(parts[-1]).relu() for layer in self.inside)
        x = F.max_pool2d(self.leave(cat(parts, 1)), 4)
        x = cat([self.left(x), self.right(x)], 1)
        tokens = F.glu(self.gates((x + self.whole(x)).flatten(2).transpose(1, 2)))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        x = self.last(tokens.transpose(1, 2).reshape(-1, 8, x.size(2), x.size(3)))
        return self.classifier(x.mean((2, 3)))


def halves(num_classes: int = 10) -> nn.Module:
    return Halves(num_classes)


class Gates(nn.Module):
    """What computes over channels (the gates of ECA, SKNet and CBAM), and ShuffleNet's halves. A sigmoid of nothing is no zero,
    and a zero is the largest where all are negative."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.neighbours = conv_bn(3, 16, 3, 2), nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.left, self.right, self.inner = conv_bn(16, 12), conv_bn(16, 12, 3), conv_bn(12, 12, 3)
        self.shuffle = nn.ChannelShuffle(2)
        self.small, self.large = conv_bn(24, 20), conv_bn(24, 20, 3)
        self.squeeze, self.select = nn.Conv2d(20, 8, 1), nn.Conv2d(8, 2 * 20, 1)
        self.positions, self.classifier = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).sigmoid()
        gate = self.neighbours(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
        x = x * gate.sigmoid().expand_as(x)
        a, b = self.shuffled(cat([self.left(x), self.right(x)], 1)).sigmoid().chunk(2, 1)
        x = self.shuffle(cat([a, self.inner(b)], 1))
        both = torch.stack([self.small(x), self.large(x)], 1)
        chosen = self.select(self.squeeze(both.sum(1).mean((2, 3), keepdim=True)).relu())
        x = (both * chosen.view(x.shape[0], 2, both.shape[2], 1, 1).softmax(1)).sum(1).abs().neg()
        gate = cat([x.max(1)[0].unsqueeze(1), x.mean(1, keepdim=True)], 1)
        return self.classifier((x * self.positions(gate).sigmoid()).mean((2, 3)))

    def shuffled(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)


def gates(num_classes: int = 10) -> nn.Module:
    return Gates(num_classes)


class NormAct(nn.BatchNorm2d):
    """BN and an activation in one, as in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"expected 4 axes, not {x.ndim}")
        momentum = 1.0 if self.momentum is None else self.momentum
        own = (self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(F.batch_norm(x, *own, self.training, momentum, self.eps))


class InstanceNormAct(nn.InstanceNorm2d):
    """An instance norm and an activation in one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps).relu()


class PaddedConv(nn.Conv2d):
    """Pads as TensorFlow does: as much as this input needs, half a pixel more on the right."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for size, window, stride in zip(x.shape[:1:-1], self.weight.shape[:1:-1], self.stride[::-1], strict=True):
            missing = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Its weights are computed from its parameters, whatever their scale (as in BiT and NFNets): it keeps its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(rows, None, None, training=True).reshape_as(self.weight))


class Scaled(nn.Module):
    """A layer of [N, C, H, W] with a norm over channels and a scale for each, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))
        self.slope, self.scale = nn.PReLU(channels), nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight, self.bias).permute(0, 3, 1, 2)
        return x + F.prelu(y, self.slope.weight) * self.scale.view(1, self.scale.shape[0], 1, 1)


class Derived(nn.Module):
    """Layers of classes that derive from torch's, or imitate them; a forward() that decides by sizes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(PaddedConv(3, 16, 3, 2, bias=False), NormAct(16), nn.InstanceNorm2d(16, affine=True))
        self.depthwise = nn.Sequential(PaddedConv(16, 16, 5, 2, groups=16, bias=False), NormAct(16))
        self.wide, self.scaled = nn.Sequential(nn.Conv2d(16, 24, 1, bias=False), InstanceNormAct(24)), Scaled(24)
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.scaled(self.wide(self.depthwise(self.stem(x))))
        if mask is not None:
            x = x * mask
        height, width = x.shape[2:]
        if min(height, width) > 1:
            x = F.avg_pool2d(x, (height // 2, int(width / 2)))
        return F.linear(x.mean((2, 3)), self.classifier.weight, self.classifier.bias)


def derived(num_classes: int = 10) -> nn.Module:
    return Derived(num_classes)


class Twice(nn.Module):
    """A head that two scales share, but for one of its BN."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.fine, self.coarse = conv_bn(3, 12, 3, 2), nn.Conv2d(12, 16, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.shared, self.norms = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.ModuleList(nn.BatchNorm2d(24) for _ in "12")
        self.depthwise, self.act = nn.Sequential(*conv_bn(24, 24, 3, groups=24)), nn.PReLU(24)
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        scales = zip((self.fine(x), self.coarse(x)), self.norms, strict=True)
        heads = [self.act(self.depthwise(norm(self.shared(y)).relu())) for y, norm in scales]
        return sum(self.classifier(head.mean((2, 3))) for head in heads)


def twice(num_classes: int = 10) -> nn.Module:
    return Twice(num_classes)


class Widening(nn.Module):
    """Shortcuts without weights: ResNet's (option A), and PyramidNet's, whose zeros are made in forward()."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3)
        self.first = nn.Sequential(*conv_bn(8, 12, 3, 2), nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.second = nn.Sequential(*conv_bn(16, 12, 3), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24))
        self.linear = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.first(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0))
        y = self.second(x)
        batch, channels, height, width = y.size()
        y = torch.relu(y + torch.cat([x, torch.zeros(batch, channels - x.size(1), height, width, device=x.device)], 1))
        return self.linear(y.mean((2, 3)))


def widening(num_classes: int = 10) -> nn.Module:
    return Widening(num_classes)


class Hourglass(nn.Module):
    """Down and up again, as in U-Net, by a transposed convolution, by a pixel shuffle and by repetition."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.stem, self.down, self.bottom = conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2), conv_bn(16, 24, 3, 2)
        self.up = nn.Sequential(nn.ConvTranspose2d(24, 16, 2, 2, bias=False), nn.BatchNorm2d(16))
        self.shuffle = nn.Sequential(*conv_bn(32, 32), nn.PixelShuffle(2))
        self.merge = conv_bn(16, 12, 3)
        self.unshuffle, self.linear = nn.Sequential(nn.PixelUnshuffle(2), *conv_bn(48, 16)), nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.act(self.stem(x))
        half = self.act(self.down(whole))
        y = self.shuffle(torch.cat([half, self.act(self.up(self.act(self.bottom(half))))], 1))
        y = self.act(self.merge(torch.cat([y, whole], 1)))
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.linear(self.act(self.unshuffle(y)).mean((2, 3)))


def hourglass(num_classes: int = 10) -> nn.Module:
    return Hourglass(num_classes)


class Tokens(nn.Module):
    """Positions as tokens, between convolutions of which one has weight norm and synchronised BN."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, stride=2, padding=1))
        self.stem, self.norm, self.scale = (
            nn.Sequential(conv, nn.SyncBatchNorm(16)),
            nn.RMSNorm(16),
            nn.Parameter(torch.ones(16)),
        )
        self.wide, self.narrow, self.classifier = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = self.narrow(F.gelu(self.wide(self.norm(x.flatten(2).transpose(1, 2)))))
        x = x + self.scale[:, None, None] * mixed.transpose(1, 2).view_as(x)
        return self.classifier(x.mean((2, 3)))


def tokens(num_classes: int = 10) -> nn.Module:
    return Tokens(num_classes)


class Classed(nn.Module):
    """A ViT of two blocks: patches of two kinds and a class token, which alone is classified; BN of tokens, as in LeViT."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(3, 16, 8, 8)
        self.mix, self.tokens, self.token = nn.Linear(48, 48), nn.BatchNorm1d(48), nn.Parameter(torch.rand(1, 1, 48))
        self.blocks = nn.Sequential(*(EncoderBlock(2, 48, 64, 0.0, 0.0) for _ in range(2)))
        self.norm, self.classifier = nn.LayerNorm(48), nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = cat([self.left(x), self.right(x)], 1).relu()
        x = self.mix(x.flatten(2).transpose(1, 2))
        x = self.tokens(x.flatten(0, 1)).reshape_as(x)
        x = cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.classifier(self.norm(self.blocks(x))[:, 0])


def classed(num_classes: int = 10) -> nn.Module:
    return Classed(num_classes)


class Deciding(nn.Module):
    """It looks at the image to know what to do: it cannot be traced."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.classifier = nn.Conv2d(3, 8, 1), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        return self.classifier(x if x.sum() > 0 else -x)


def deciding(num_classes: int = 10) -> nn.Module:
    return Deciding(num_classes)

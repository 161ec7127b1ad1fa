"""Networks put together at random: what is traced, sliced and exported computes the same at any widths."""

import copy

import einops
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tinynet import InstanceNormAct, NormAct, PaddedConv, Scaled, Standardised
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import latency
from latency.devices.torch_graph import torch_module
from pruning.extract import extract
from pruning.pruningnet import PruningNet

SHAPE = (2, 3, 8, 8)


class Step(nn.Module):
    """One thing that networks do with [N, channels, H, W]; `channels` is then how many come out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


class Convolved(Step):
    def __init__(self, channels: int, made: int, kernel: int, bias: bool) -> None:
        super().__init__(made)
        self.conv = nn.Conv2d(channels, made, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Grouped(Step):
    def __init__(self, channels: int, groups: int, times: int) -> None:
        super().__init__(channels * times)
        groups = channels if channels % groups else groups
        self.conv = nn.Conv2d(channels, channels * times, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Normed(Step):
    def __init__(self, channels: int, slopes: int) -> None:
        super().__init__(channels)
        self.norm, self.slope = nn.BatchNorm2d(channels), nn.PReLU(channels if slopes else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(self.norm(x))


class GroupNormed(Step):
    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        groups = (1, channels, channels // 2 if channels % 2 == 0 else 1)[how % 3]
        self.norm = nn.GroupNorm(groups, channels, affine=how < 3) if how < 5 else nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Added(Step):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels)
        self.conv, self.scale = (
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
            nn.Parameter(torch.rand(channels, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu() * self.scale


class Joined(Step):
    def __init__(self, channels: int, made: int) -> None:
        super().__init__(channels + made)
        self.conv = nn.Conv2d(channels, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


class Gated(Step):
    def __init__(self, channels: int, inside: int, how: int) -> None:
        super().__init__(channels)
        self.squeeze, self.excite, self.how = nn.Linear(channels, inside), nn.Linear(inside, channels), how

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1)).relu()).sigmoid()
        if self.how == 0:
            return x * gate[:, :, None, None].expand(*x.shape)
        return x * (gate.unsqueeze(-1).unsqueeze(-1) if self.how == 1 else gate.view(x.size(0), x.size(1), 1, 1))


class Mixed(Step):
    """A ConvNeXt block's second half."""

    def __init__(self, channels: int, inside: int, last: bool) -> None:
        super().__init__(channels)
        self.norm, self.wide, self.narrow = nn.LayerNorm(channels), nn.Linear(channels, inside), nn.Linear(inside, channels)
        self.scale, self.last = nn.Parameter(torch.rand(channels)), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(F.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1))))) * self.scale
        if self.last:
            return (x.permute(0, 2, 3, 1) + y).permute(0, 3, 1, 2)
        return x + y.permute(0, 3, 1, 2)


class Viewed(Step):
    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.how, self.shuffle = how, nn.ChannelShuffle(2 - channels % 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            return F.pad(x, (1, 0, 0, 1))
        if self.how == 1:
            return x[..., 1:, :]
        if self.how == 2:
            return F.avg_pool2d(x, 3, 1, 1)
        if self.how == 3:
            return x.transpose(2, 3)
        if self.how == 4:
            return self.shuffle(x)
        return torch.cat(x.chunk(2, 1), 1)


class Shuffled(Step):
    """Channels of two convolutions in turn, then, but in the last case, cut in halves."""

    def __init__(self, channels: int, half: int, how: int) -> None:
        super().__init__(2 * half)
        self.one, self.other = nn.Conv2d(channels, half, 1), nn.Conv2d(channels, half, 3, padding=1)
        self.last, self.shuffle, self.how = nn.Conv2d(half, half, 1), nn.ChannelShuffle(2), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffled(torch.cat([self.one(x), self.other(x)], 1))
        if self.how == 3:
            return x
        half = x.shape[1] // 2
        a, b = (x[:, :half], x[:, half:]) if self.how == 2 else x.chunk(2, 1)
        return self.shuffled(torch.cat([a, self.last(b)], 1))

    def shuffled(self, x: Tensor) -> Tensor:
        if self.how == 0:
            return self.shuffle(x)
        n, channels, height, width = x.shape
        return x.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)


class Attended(Step):
    """CBAM's gate for every position, from the mean and the largest of its channels."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.conv, self.how = nn.Conv2d(2, 1, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == 0:
            both = (torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0])
        elif self.how == 1:
            both = (x.max(1).values.unsqueeze(1), x.mean(1).unsqueeze(1))
        else:
            both = (x.amax(dim=1, keepdim=True), x.sum((1,), keepdim=True))
        gate = self.conv(torch.cat(both, 1)).sigmoid()
        return x * (gate if self.how else gate.expand_as(x))


class Selected(Step):
    """SKNet's choice among windows, for every channel."""

    def __init__(self, channels: int, half: int, how: int) -> None:
        super().__init__(half)
        self.small, self.large = nn.Conv2d(channels, half, 1), nn.Conv2d(channels, half, 3, padding=1)
        self.squeeze, self.select = nn.Conv2d(half, 2, 1), nn.Conv2d(2, 2 * half, 1)
        self.softmax, self.how = nn.Softmax(1), how

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.small(x), self.large(x)], dim=1)
        chosen = self.select(self.squeeze(both.sum(1).mean((2, 3), keepdim=True)).relu())
        if self.how == 2:
            chosen = chosen.view(x.shape[0], 2, -1).unsqueeze(-1).unsqueeze(-1)
        else:
            chosen = chosen.view(x.shape[0], 2, both.shape[2], 1, 1)
        chosen = self.softmax(chosen) if self.how else torch.softmax(chosen, dim=1)
        return (both * chosen).sum(dim=1)


class EfficientlyAttended(Step):
    """ECA's gate, from every channel's neighbours."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.conv, self.how = nn.Conv1d(1, 1, 3, padding=1, bias=how > 0), how

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1) if self.how < 2 else x.mean((2, 3))
        if self.how == 2:
            return x * self.conv(y.view(y.shape[0], 1, -1)).view(y.shape[0], -1, 1, 1).sigmoid()
        y = self.conv(y.squeeze(-1).transpose(-1, -2))
        return x * y.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


class Halved(Step):
    """A half of the channels goes through more layers than the other, as in YOLO's and CSPNet's blocks."""

    def __init__(self, channels: int, half: int, how: int) -> None:
        super().__init__(half if how > 3 else 3 * half)
        self.wide, self.narrow = nn.Conv2d(channels, 2 * half, 1), nn.Conv2d(half, half, 3, padding=1)
        self.half, self.how = half, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        if self.how == 5:
            return self.narrow(F.glu(x, 1))
        if self.how == 4:
            a, b = x.permute(0, 2, 3, 1).chunk(2, -1)
            return (a * b.sigmoid()).permute(0, 3, 1, 2)
        parts = [x.chunk(2, 1), torch.split(x, self.half, 1), x.split([self.half, self.half], dim=1), x.tensor_split(2, 1)]
        a, b = parts[self.how]
        return torch.cat([a, b, b + self.narrow(b)], 1)


class Parted(Step):
    """Parts of unequal size go different ways, as in FasterNet's, InceptionNeXt's and DPN's blocks."""

    def __init__(self, channels: int, part: int, how: int) -> None:
        super().__init__(2 * part if how == 3 else 4 * part)
        self.wide, self.narrow = nn.Conv2d(channels, 4 * part, 1), nn.Conv2d(part, part, 3, padding=1)
        self.part, self.how = part, how

    def forward(self, x: Tensor) -> Tensor:
        x, part = self.wide(x), self.part
        if self.how == 0:
            a, b = x.split([part, 3 * part], 1)
            return torch.cat([self.narrow(a), b], 1)
        if self.how == 1:
            return torch.cat([x[:, part:], self.narrow(x[:, :part])], 1)
        if self.how == 2:
            a, b, c = torch.split(x, (2 * part, part, part), dim=1)
            return torch.cat([a, self.narrow(b), c + b], 1)
        return x[:, part:-part] * 2


class Widened(Step):
    """Constants beside the channels, as in ResNet's shortcuts without weights and in PyramidNet's."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels + 6)
        self.conv, self.how = nn.Conv2d(channels, channels + 6, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        batch, channels, height, width = y.size()
        more = channels - x.size(1)
        if self.how == 0:
            return y + F.pad(x, (0, 0, 0, 0, 2, 4), "constant", 0)
        if self.how == 1:
            return y + F.pad(x, pad=(0, 0, 0, 0, more // 2, more // 2), value=0.5)
        made = (
            torch.zeros(batch, more, height, width, device=x.device),
            torch.ones((x.size(0), more, *x.shape[2:]), dtype=x.dtype),
            x.new_full((batch, more, height, width), 0.5),
            torch.zeros(x.shape)[:, :1].expand(batch, more, height, width).contiguous(),
        )  # fmt: skip
        return y + torch.cat((x, made[self.how - 2]), 1)


class Compared(Step):
    """The larger or smaller of two tensors, as in maxout."""

    def __init__(self, channels: int, made: int, how: int) -> None:
        super().__init__(made)
        self.conv, self.how = nn.Conv2d(channels, 2 * made, 1), how

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return (torch.max(a, b), a.max(b), torch.min(a, other=b), torch.maximum(a, b))[self.how]


class Computed(Step):
    """Functions that name no channels, among them ConvNeXt V2's normalisation of responses."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.conv, self.how = nn.Conv2d(channels, channels, 3, padding=1), how
        self.layers = nn.Sequential(
            nn.Softsign(), nn.Threshold(-0.1, 0.2), nn.Hardshrink(0.05), nn.Softshrink(0.05), nn.Tanhshrink()
        )
        self.power = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == 0:
            return self.layers(y)
        if self.how == 1:
            return torch.square(y) + torch.rsqrt(y.abs() + 1) * torch.sin(y) + torch.log1p(y.clip(0, 1)) * y.cos().erf()
        if self.how == 2:
            return torch.where(y > 0.1, y, x * 0.1) * (y <= x) + torch.max(y, torch.zeros_like(x)) * (x != torch.ones_like(y))
        if self.how == 3:
            return x / (y.std(dim=(2, 3), keepdim=True) + y.var((2, 3), keepdim=True) + 1)
        if self.how == 4:
            return (y.abs() + 0.1) ** self.power
        responses = torch.norm(y, p=2, dim=(2, 3), keepdim=True)
        return y * (responses / (responses.mean(dim=1, keepdim=True) + 1e-6)) + x


class Enlarged(Step):
    """Transposed convolutions and pixel shuffles, as decoders and super-resolution have them; then back to the old size."""

    def __init__(self, channels: int, made: int, how: int) -> None:
        super().__init__(4 * made if how == 3 else made)
        self.how, self.act, self.shrink = how, nn.ReLU(), nn.AvgPool2d(2)
        self.up = nn.ConvTranspose2d(channels, made, 4 - how % 2, stride=2, padding=1, output_padding=how % 2, bias=how > 0)
        self.norm = nn.BatchNorm2d(made)
        self.wide = nn.Conv2d(channels, 2 * made, 1)
        self.shuffle, self.unshuffle = nn.PixelShuffle(2), nn.PixelUnshuffle(2)
        self.narrow = nn.Conv2d(4 * channels, 4 * made, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how < 2:
            return self.shrink(self.act(self.norm(self.up(x))))
        if self.how == 2:
            y = self.wide(x)
            return self.shrink(self.shuffle(torch.cat((y, self.act(y)), 1)))
        y = self.narrow(self.unshuffle(F.interpolate(x, scale_factor=2)))
        return self.unshuffle(self.norm(F.pixel_shuffle(y, 2)))


class Various(Step):
    """Idioms of metric learning and attention: GeM's learnt power, normalised features, BAM's gates, turned images."""

    def __init__(self, channels: int, inside: int, how: int) -> None:
        super().__init__(channels)
        self.how, self.conv, self.power = how, nn.Conv2d(channels, channels, 3, padding=1), nn.Parameter(torch.rand(1) + 2)
        self.squeeze, self.excite = nn.Linear(channels, inside), nn.Linear(inside, channels)
        self.place = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == 0:
            return F.avg_pool2d(y.clamp(min=0.01).pow(self.power), 3, 1, 1).pow(1.0 / self.power)
        if self.how == 1:
            return F.normalize(torch.sigmoid(y)) + F.normalize(x, dim=-1, eps=0.1) * torch.norm(x, dim=1, keepdim=True)
        if self.how == 2:
            gate = self.excite(self.squeeze(y.mean((2, 3))))[:, :, None, None].expand_as(y)
            return y * (1 + torch.sigmoid(gate * self.place(y).expand_as(y)))
        turned = torch.flip(y, (3,)) + torch.roll(x, (1, 2), (2, 3)) + y.flip(2, 3)
        return torch.addcmul(torch.lerp(turned, y, 0.3), x, y, value=0.5)


class Blurred(Step):
    """Fixed filters, the same for every channel, as where pooling shall not alias; so alike that exports share them."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels)
        self.conv, self.stride = nn.Conv2d(channels, channels, 3, padding=1), stride
        window = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.ones(3) / 3)
        self.register_buffer("filters", window.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        smaller = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), self.filters, stride=self.stride, groups=x.shape[1])
        y = self.conv(F.interpolate(smaller, scale_factor=self.stride))
        return F.conv2d(y, self.filters, None, 1, 1, 1, self.channels) + y


class Tokened(Step):
    """Positions in one row or in windows, as where blocks of transformers stand among convolutions."""

    def __init__(self, channels: int, inside: int, how: int) -> None:
        super().__init__(channels)
        self.how, self.norm, self.conv = how, nn.LayerNorm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.wide, self.narrow = nn.Linear(channels, inside), nn.Linear(inside, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.how == 0:
            shape = x.shape[:2] + (h, w)  # noqa: RUF005, sizes as one value
            return x + self.mixed(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(shape)
        if self.how == 1:
            return x + self.mixed(x.view(n, c, -1).permute(0, 2, 1)).permute(0, 2, 1).view_as(x)
        if self.how == 2:
            tokens = self.mixed(einops.rearrange(x, "b c (h a) (w b2) -> (b h w) (a b2) c", a=4, b2=4))
            windows = tokens.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
            return x * windows.contiguous().view(n, self.channels, h, w)
        y = self.conv(x)
        if self.how == 3:
            a, b, _ = y.view(n, 3, c, h, w).unbind(1)
            return a * b.sigmoid()
        if self.how == 4:
            return y.narrow(1, 0, c) + torch.narrow(y, dim=1, start=2 * c, length=c) * y.narrow(2, 3, 1)[:, :c]
        q, k, v = torch.unbind(y.view(n, 3, c // 2, 2, h * w), dim=1)
        scores = (q.transpose(-1, -2) @ k).softmax(-1)
        return (v @ scores.transpose(-1, -2)).reshape(n, c, h, w)

    def mixed(self, tokens: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.wide(self.norm(tokens))))


class Attentive(Step):
    """Attention as transformers, networks of convolutions, and non-local ones write it, with channels in heads or not."""

    def __init__(self, channels: int, head: int, how: int) -> None:
        super().__init__(channels)
        self.how, self.head, wide = how, head, 2 * head
        self.qkv, self.project = nn.Linear(channels, 3 * wide), nn.Linear(wide, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(head) for _ in "qk")
        self.query, self.both = nn.Conv2d(channels, wide, 1), nn.Conv2d(channels, 2 * wide, 1)
        self.token, self.registers = nn.Parameter(torch.rand(1, 1, channels)), nn.Parameter(torch.rand(1, 2, channels))
        self.places = nn.Parameter(torch.rand(1, 67, channels))
        self.torchs = nn.MultiheadAttention(2 * head, 2, batch_first=how % 2 == 0)
        self.into, self.out = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.unbiased, self.norm = nn.Linear(channels, 3 * wide, bias=False), nn.BatchNorm1d(3 * wide)
        self.q_bias, self.v_bias = nn.Parameter(torch.rand(wide)), nn.Parameter(torch.rand(wide))
        self.near = nn.Parameter(torch.rand(200, 200))  # six other steps may pad images to 14×14
        self.register_buffer("k_bias", torch.zeros(wide), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        ways = (self.of_tokens, self.of_tokens, self.of_images, self.of_all, self.of_torch, self.of_torch)
        return (*ways, self.of_places, self.of_places, self.of_places)[self.how](x)

    def of_tokens(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(n, -1, -1), self.registers.repeat(n, 1, 1), tokens], dim=1)
        if tokens.shape[1] <= 67:
            tokens = tokens + self.places[:, : tokens.shape[1]]
        apart = self.qkv(tokens).reshape(n, tokens.shape[1], 3, 2, self.head).permute(2, 0, 3, 1, 4)
        if self.how == 0:
            q, k, v = apart.unbind(0)
            scores = (q * self.head**-0.5) @ k.transpose(-2, -1)
            mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, -1, 2 * self.head)
        else:
            q, k, v = apart
            q, k = (norm(one) for norm, one in zip(self.norms, (q, k), strict=True))
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0).swapaxes(1, 2).flatten(2)
        tokens = tokens + self.project(mixed)
        return tokens[:, 3:].transpose(1, 2).reshape(n, c, h, w) * tokens[:, 0, :, None, None].sigmoid()

    def of_images(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q = self.query(x).view(n, 2, self.head, h * w)
        k, v = self.both(x).view(n, 2, -1, h * w).split([self.head, self.head], dim=2)
        scores = torch.einsum("b h d i, b h d j -> b h i j", q, k).mul(self.head**-0.5).softmax(-1)
        return x + self.out((v @ scores.transpose(-2, -1)).view(n, -1, h, w))

    def of_all(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        k, v = self.both(x).chunk(2, 1)
        scores = torch.bmm(
            self.query(x).view(n, -1, h * w).permute(0, 2, 1), k.relu().movedim(1, 3).reshape(n, h * w, -1).mT
        ).softmax(-1)
        return x + self.out(torch.bmm(v.reshape(n, -1, h * w), scores.permute(0, 2, 1)).view(n, 2 * self.head, h, w))

    def of_places(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens, near = x.flatten(2).transpose(1, 2), self.near[: h * w, : h * w]
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        apart = F.linear(tokens, weight=self.unbiased.weight, bias=bias)
        if self.how == 6:
            apart = self.norm(apart.flatten(0, 1)).reshape_as(apart)
            q, k, v = einops.rearrange(apart, "n l (three h d) -> three (n h) l d", three=3, h=2)
            mixed = ((q @ k.mT + near).softmax(-1) @ v).reshape(n, 2, h * w, self.head).transpose(1, 2)
        elif self.how == 7:
            q, k, v = apart.unflatten(-1, (3, 2, self.head)).permute(2, 0, 3, 1, 4).unbind(0)
            k = k.view(n, 2, 1, h * w, -1).amax(2)
            mixed = F.scaled_dot_product_attention(q, k, v, near[None, None] > 0.1).transpose(1, 2)
        else:
            q, k, v = apart.view(n, h, w, 3, 2, self.head).permute(3, 0, 1, 4, 2, 5)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3).permute(0, 1, 3, 2, 4)
        return x + self.project(mixed.reshape(n, h * w, -1)).transpose(1, 2).reshape(n, c, h, w)

    def of_torch(self, x: Tensor) -> Tensor:
        tokens = self.into(x).flatten(2)
        tokens = tokens.transpose(1, 2) if self.how == 4 else tokens.permute(2, 0, 1)
        mixed, _ = self.torchs(tokens, tokens, tokens, need_weights=self.how == 4)
        tokens = tokens + mixed
        tokens = tokens.transpose(1, 2) if self.how == 4 else tokens.permute(1, 2, 0)
        return x + self.out(tokens.unflatten(2, x.shape[2:]))


class Written(Step):
    """What classes of one's own write with parameters of theirs: scales, norms, weighted sums, thresholds."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.how, self.conv = how, nn.Conv2d(channels, channels, 3, padding=1)
        self.scale, self.shift = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.rand(channels))
        self.fused, self.least = nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(1, channels, 1, 1))
        self.norm = nn.RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == 0:
            return x + self.scale.view(1, self.channels, 1).unsqueeze(-1) * nn.ReLU()(y)
        if self.how == 1:
            spread = (y - y.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True)
            y = ((y - y.mean(1, keepdim=True)) / torch.sqrt(spread + 1e-6)).to(x.dtype)
            return self.scale[:, None, None] * y + self.shift[None, :, None, None]
        if self.how == 2:
            weights = F.relu(self.fused)
            weights = weights / (weights.sum() + 1e-4)
            return F.relu_(weights[0] * x + weights[1] * y)
        if self.how == 3:
            return torch.max(y * torch.rsqrt(y.pow(2).mean((2, 3), keepdim=True) + 1), self.least)
        if self.how == 4:
            y = y * self.scale.unsqueeze(-1).unsqueeze(-1)
            return torch.stack([x, y, F.leaky_relu_(x * y)], dim=0).sum(dim=0)
        return self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Renormed(Step):
    """Weights that are computed anew in every step of training, and BN's relatives."""

    def __init__(self, channels: int, made: int, how: int) -> None:
        super().__init__(made)
        conv = nn.Conv2d(channels, made, 3, padding=1)
        kinds = (parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.spectral_norm, nn.utils.spectral_norm)
        self.conv = kinds[how](conv) if how < 4 else conv
        self.norm = (nn.SyncBatchNorm(made), nn.BatchNorm2d(made), FrozenBatchNorm2d(made))[how % 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Kept(Step):
    """Layers that keep their channels, whatever they do."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        self.before, self.after, self.how = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), how
        kinds = (
            lambda: nn.GroupNorm(2, 4), lambda: nn.InstanceNorm2d(4), lambda: nn.LayerNorm((4, 8, 8)),
            lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2), lambda: nn.Linear(8, 8),
            lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        )  # fmt: skip
        self.layer = kinds[how]()

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.before(x), (0, 8, 0, 8))[..., :8, :8]
        if self.how < 5:
            return self.after(self.layer(y))
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + self.layer(tokens, tokens, tokens, need_weights=False)[0]
        return self.after(tokens.transpose(1, 2).reshape(-1, 4, 8, 8))


class Own(Step):
    """Layers of classes that are not torch's own."""

    def __init__(self, channels: int, how: int) -> None:
        super().__init__(channels)
        kinds = (
            NormAct, Scaled, lambda channels: PaddedConv(channels, channels, 3, groups=channels), Standardised, InstanceNormAct,
        )  # fmt: skip
        self.layer = kinds[how](channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


few, choice = st.sampled_from([2, 4, 6]), st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just(Convolved), st.tuples(few, st.sampled_from([1, 3]), st.booleans())),
    st.tuples(st.just(Grouped), st.tuples(few, st.sampled_from([1, 2]))),
    st.tuples(st.just(Normed), st.tuples(st.integers(0, 1))),
    st.tuples(st.just(GroupNormed), st.tuples(choice)),
    st.tuples(st.just(Added), st.tuples(st.sampled_from([1, 3]))),
    st.tuples(st.just(Joined), st.tuples(few)),
    st.tuples(st.just(Gated), st.tuples(few, st.integers(0, 2))),
    st.tuples(st.just(Mixed), st.tuples(few, st.booleans())),
    st.tuples(st.just(Viewed), st.tuples(choice)),
    st.tuples(st.just(Shuffled), st.tuples(few, st.integers(0, 3))),
    st.tuples(st.just(Attended), st.tuples(st.integers(0, 2))),
    st.tuples(st.just(Selected), st.tuples(few, st.integers(0, 2))),
    st.tuples(st.just(EfficientlyAttended), st.tuples(st.integers(0, 2))),
    st.tuples(st.just(Halved), st.tuples(few, choice)),
    st.tuples(st.just(Parted), st.tuples(few, st.integers(0, 3))),
    st.tuples(st.just(Widened), st.tuples(choice)),
    st.tuples(st.just(Compared), st.tuples(few, st.integers(0, 3))),
    st.tuples(st.just(Computed), st.tuples(choice)),
    st.tuples(st.just(Enlarged), st.tuples(few, st.integers(0, 3))),
    st.tuples(st.just(Various), st.tuples(few, st.integers(0, 3))),
    st.tuples(st.just(Blurred), st.tuples(st.integers(1, 2))),
    st.tuples(st.just(Tokened), st.tuples(few, choice)),
    st.tuples(st.just(Attentive), st.tuples(few, st.integers(0, 8))),
    st.tuples(st.just(Written), st.tuples(choice)),
    st.tuples(st.just(Renormed), st.tuples(few, choice)),
    st.tuples(st.just(Kept), st.tuples(choice)),
    st.tuples(st.just(Own), st.tuples(st.integers(0, 4))),
)


def in_double(module: nn.Module) -> nn.Module:
    """A copy in double precision, in which no rounding hides anything; an epsilon that the precision tells stays float32's."""
    module = copy.deepcopy(module).double()
    for layer in module.modules():
        if isinstance(layer, nn.RMSNorm) and layer.eps is None:
            layer.eps = torch.finfo(torch.float32).eps
    return module


def composed(steps: list[tuple[type[Step], tuple[int, ...]]]) -> nn.Sequential:
    """A classifier of these steps, with everything in it that distinguishes channels drawn at random."""
    layers: list[nn.Module] = [Convolved(3, 6, 3, True)]
    for kind, arguments in steps:
        layers.append(kind(layers[-1].channels, *arguments))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layers[-1].channels, 5))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d | nn.LayerNorm | nn.GroupNorm | nn.PReLU):
            for tensor in layer.parameters():
                nn.init.uniform_(tensor, 0.5, 1.5)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
    return module.eval()


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=1, max_size=6), seed=st.integers(0, 99))
@example(steps=[(Halved, (4, 0)), (Various, (6, 0)), (Compared, (4, 0)), (Enlarged, (6, 0)), (GroupNormed, (1,))], seed=57)
@example(steps=[(Attentive, (6, 2)), (Attentive, (6, 3)), (Attentive, (4, 5))], seed=1)
@example(steps=[(Attentive, (4, 0)), (Attentive, (2, 6)), (Attentive, (4, 7))], seed=1)
def test_any_composition_computes_the_same_however_it_is_made(steps, seed: int) -> None:
    torch.manual_seed(seed)
    module, images = composed(steps), torch.randn(SHAPE)
    net = latency.trace(module, SHAPE, align=1)
    state = net.module.state_dict()
    doubles = images.double()
    torch.testing.assert_close(in_double(extract(net, net.max_widths, state))(doubles), in_double(module)(doubles))
    rng = np.random.default_rng(seed)
    for widths in (np.array(net.min_widths), np.array([rng.choice(gene.choices) for gene in net.genes], dtype=np.int64)):
        structure = extract(net, widths, state)
        exact = in_double(structure)
        torch.testing.assert_close(exact(doubles.repeat(2, 1, 1, 1))[:2], exact(doubles))
        scores, model = structure(images).detach(), net.onnx(widths)
        near = {"rtol": 1e-4, "atol": 1e-4 * float(scores.abs().max())}  # single precision, in any order
        ran = onnxruntime.InferenceSession(model).run(None, {"images": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(ran), scores, **near)
        torch.testing.assert_close(torch_module(onnx.load_from_string(model))[0](images)[0], scores, **near)
        assert net.params(widths) == sum(tensor.numel() for tensor in structure.parameters())
        weights = [numpy_helper.to_array(one).size for one in onnx.load_from_string(model).graph.initializer]
        assert sum(weights) < net.params(net.max_widths) + 2000
        supernet = PruningNet(net, dict(net.module.named_parameters()), "shared")
        assert {name: tensor.shape for name, tensor in supernet.weights(widths).items()} == {
            name: tensor.shape for name, tensor in structure.named_parameters()
        }
        supernet = supernet.double()
        whole, cropped = (supernet.scores(doubles, supernet.weights(widths, whole=whole)) for whole in (True, False))
        torch.testing.assert_close(whole, cropped, rtol=1e-5, atol=1e-6 * float(cropped.detach().abs().max()))


FOLLOWED = [(kind, (how,)) for kind, ways in ((Written, 6), (Computed, 6), (Attended, 3)) for how in range(ways)]
FOLLOWED += [
    (kind, (4, how))
    for kind, ways in ((Tokened, 6), (Attentive, 9), (Renormed, 6), (Selected, 3), (Various, 4), (Halved, 6))
    for how in range(ways)
]


@pytest.mark.parametrize(("kind", "arguments"), FOLLOWED)
def test_nothing_of_it_keeps_its_channels(kind: type[Step], arguments: tuple[int, ...]) -> None:
    net = latency.trace(composed([(kind, arguments)]), SHAPE, align=1)
    assert not net.unfollowed
    assert len(net.genes) >= 1

"""Tracing: genes against counts worked out by hand, costs against a plain count over the sliced module."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import latency
from latency.graph.kernels import find_kernels
from latency.graph.network import width_choices
from pruning.extract import extract
from pruning.networks import load

GENES = {
    "mobilenet_v1": 14,  # stem, 13 blocks
    "mobilenet_v2": 1 + 16 + 7 + 1,  # stem, expansions, stages, last feature
    "resnet50": 1 + 4 + 2 * 16,  # stem, stages, two inside each block
    "resnet18": 1 + 3 + 8,  # stem is the first stage, other stages, one inside each block
    "vgg11_bn": 8 + 2,  # convolutions, hidden linear layers
    "mobilenet_v3_large": 30,
    "efficientnet_b0": 40,
    "squeezenet1_1": 1 + 8 * 3,  # stem, three in each fire module
    "densenet121": 1 + 58 * 2 + 3,  # stem, two in each dense layer, transitions
    "shufflenet_v2_x0_5": 1 + 3 + 16 + 1,  # stem, halves of the stages, one inside each unit, last feature
    "resnext50_32x4d": 1 + 4 + 16,  # stem, stages, one inside each block: its grouped convolution joins two widths
    "convnext_tiny": 4 + 18,  # stages, one inside each block
}


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", GENES)
def test_genes_of_known_networks(name: str, size: int) -> None:
    net = latency.trace(load(name, num_classes=10), (1, 3, size, size))
    assert len(net.genes) == GENES[name]
    assert all(gene.choices[-1] == gene.max_width and list(gene.choices) == sorted(set(gene.choices)) for gene in net.genes)
    assert not net.layers[0].inputs.genes
    assert not net.layers[-1].outputs.genes


@pytest.mark.parametrize("name", [*(name for name in GENES if name != "densenet121"), "tinynet:small_densenet"])
def test_costs_equal_a_count_over_the_sliced_module(name: str, rng, random_widths) -> None:
    net = latency.trace(load(name, num_classes=10), (1, 3, 64, 64), align=1)
    structures = random_widths(net, rng, 2)
    counted = [count_macs(extract(net, widths), 64) for widths in structures]
    assert net.macs(structures).tolist() == counted
    assert [net.macs(widths) for widths in structures] == counted
    assert net.params(structures).tolist() == [sum(p.numel() for p in extract(net, w).parameters()) for w in structures]
    for cost, total in ((net.macs_cost, net.macs), (net.params_cost, net.params)):
        np.testing.assert_allclose(cost.at(cost.indices(structures)), total(structures))


def count_macs(module: nn.Module, size: int) -> int:
    """Multiply-adds seen by hooks on the running module."""
    total = 0

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(hook)
    module(torch.zeros(1, 3, size, size))
    return total


def test_the_tiny_network_shares_widths_as_designed(tiny_network) -> None:
    assert [(gene.name, gene.max_width) for gene in tiny_network.genes] == [
        ("stem.0", 16), ("block.expand.0", 32), ("block.squeeze.1", 8), ("feature.0", 48), ("hidden", 24),
    ]  # fmt: skip
    hidden = next(layer for layer in tiny_network.layers if layer.name == "hidden")
    assert (hidden.inputs.gene, hidden.inputs.per_channel, hidden.inputs.size) == (3, 4, 192)


def test_concatenation_groups_and_what_cannot_match(rng, random_widths) -> None:
    from tinynet import Mixed

    net = latency.trace(Mixed(), (1, 3, 16, 16), align=1)
    assert [(gene.name, gene.max_width, gene.multiple) for gene in net.genes] == [
        ("stem", 8, 4), ("left", 12, 1), ("right", 8, 1), ("head", 10, 1), ("squeeze", 6, 1),
    ]  # fmt: skip
    layers = {layer.name: layer for layer in net.layers}
    assert layers["grouped"].inputs.size == 4
    assert [(part.size, part.gene) for part in layers["head"].inputs.parts] == [(12, 1), (8, 2)]
    assert (layers["doubled"].outputs.size, layers["doubled"].outputs.gene) == (16, 0)
    assert not layers["fewer"].outputs.genes  # a grouped convolution with fewer outputs than inputs
    assert net.unfollowed == ("layer 'fewer' (operation 'fewer') has groups that cannot go one by one",)
    assert not layers["whole"].outputs.genes  # added to a concatenation that is cut elsewhere
    structures = random_widths(net, rng, 4)
    assert net.macs(structures).tolist() == [count_macs(extract(net, widths), 16) for widths in structures]
    assert net.params(structures).tolist() == [sum(p.numel() for p in extract(net, w).parameters()) for w in structures]
    with pytest.raises(latency.WidthsError, match="multiple of 4"):
        net.macs([6, 12, 8, 10, 6])


def test_halves_shrink_alike_and_cuts_follow_what_is_added(rng, random_widths) -> None:
    from tinynet import Halves

    net = latency.trace(Halves(), (1, 3, 32, 32), align=1)
    assert [(gene.name, gene.max_width) for gene in net.genes] == [
        ("stem.0", 16), ("enter.0", 12), ("inside.0.0", 12), ("inside.1.0", 12), ("leave.0", 16),
        ("left.0", 10), ("right.0", 6), ("gates", 8), ("attention.in_proj", 4), ("last.0", 12),
    ]  # fmt: skip
    layers = {layer.name: layer for layer in net.layers}
    assert [(part.size, part.gene) for part in layers["enter.0"].outputs.parts] == [(12, 1), (12, 1)]
    assert [(part.size, part.gene) for part in layers["whole.0"].outputs.parts] == [(10, 5), (6, 6)]
    assert not net.unfollowed
    assert net.genes[9].multiple == 4  # whole groups of the norm
    structures = random_widths(net, rng, 4)
    assert net.macs(structures).tolist() == [count_macs(extract(net, widths), 32) for widths in structures]
    assert net.params(structures).tolist() == [sum(p.numel() for p in extract(net, w).parameters()) for w in structures]


def test_what_is_shuffled_and_gated_is_pruned(rng, random_widths) -> None:
    from tinynet import Gates

    net = latency.trace(Gates(), (1, 3, 32, 32), align=1)
    assert [(gene.name, gene.max_width) for gene in net.genes] == [
        ("stem.0", 16), ("left.0", 12), ("small.0", 20), ("squeeze", 8),
    ]  # fmt: skip
    assert not net.unfollowed
    layers = {layer.name: layer for layer in net.layers}
    assert (layers["inner.0"].inputs.size, layers["inner.0"].inputs.gene) == (12, 1)
    assert (layers["small.0"].inputs.size, layers["small.0"].inputs.per_channel) == (24, 2)
    structures = random_widths(net, rng, 4)
    assert net.macs(structures).tolist() == [count_macs(extract(net, widths), 32) for widths in structures]
    assert net.params(structures).tolist() == [sum(p.numel() for p in extract(net, w).parameters()) for w in structures]


def test_constants_beside_the_channels_stay(rng, random_widths) -> None:
    from tinynet import Widening

    net = latency.trace(Widening(), (1, 3, 32, 32), align=1)
    assert [(gene.name, gene.max_width) for gene in net.genes] == [("stem.0", 8), ("first.0", 12), ("second.0", 12)]
    assert not net.unfollowed
    layers = {layer.name: layer for layer in net.layers}
    assert [(part.size, part.gene) for part in layers["first.2"].outputs.parts] == [(4, None), (8, 0), (4, None)]
    assert [(part.size, part.gene) for part in layers["linear"].inputs.parts] == [(4, None), (8, 0), (4, None), (8, None)]
    structures = random_widths(net, rng, 4)
    assert net.macs(structures).tolist() == [count_macs(extract(net, widths), 32) for widths in structures]


def test_channels_are_padded_on_whatever_axis_they_lie() -> None:
    net = latency.trace(Branches(lambda m, x: m.across(F.pad(x.permute(0, 2, 3, 1), (4, 4)))), (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert [gene.name for gene in net.genes] == ["stem"]
    structure, images = extract(net, [3], net.module.state_dict()), torch.randn(1, 3, 16, 16)
    scores = onnxruntime.InferenceSession(net.onnx([3])).run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)


def test_the_traced_module_is_a_copy(tiny_module, tiny_network) -> None:
    parameters = {id(p) for p in tiny_module.parameters()}
    assert not parameters & {id(p) for p in tiny_network.module.parameters()}


def test_choices_follow_the_paper_or_the_alignment() -> None:
    assert width_choices(512, 1) == tuple(int(512 * s / 100) for s in range(10, 101, 3))
    assert width_choices(32, 8) == (8, 16, 24, 32)
    assert width_choices(30, 8) == (8, 16, 24, 30)
    assert width_choices(4, 8) == (4,)


@pytest.mark.parametrize(
    "widths", [[8, 8], [0, 8, 8, 8, 8], [17, 8, 8, 8, 8], [8, 8, 8, 8, 8.5], [[[8, 8, 8, 8, 8]]], ["a"] * 5]
)
def test_wrong_widths_are_refused(tiny_network, widths) -> None:
    with pytest.raises(latency.WidthsError):
        tiny_network.macs(widths)


def test_signature_tells_networks_apart_but_not_their_weights(tiny_network) -> None:
    from tinynet import tiny

    assert latency.trace(tiny(), (1, 3, 16, 16), name="other").signature == tiny_network.signature
    assert latency.trace(tiny(9), (1, 3, 16, 16)).signature != tiny_network.signature
    assert latency.trace(tiny(), (1, 3, 24, 24)).signature != tiny_network.signature
    layers = [nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]

    def signatures(*others: nn.Module) -> set[str]:
        modules = [nn.Sequential(layers[0], other, *layers[1:]) for other in others]
        return {latency.trace(module, (1, 3, 16, 16), align=1).signature for module in modules}

    norms = [nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True)]
    assert len(signatures(*norms, nn.PReLU(8))) == 5
    assert len(signatures(*(nn.GroupNorm(groups, 8) for groups in (1, 2, 4, 8)))) == 4
    assert len(signatures(nn.ReLU(), nn.SiLU(), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2))) == 5
    assert len(signatures(nn.Identity(), nn.BatchNorm2d(8), nn.Dropout(0.1))) == 1


def test_an_activation_signs_alike_as_a_module_and_as_a_function() -> None:
    spelt = [lambda m, x: x.relu(), lambda m, x: torch.relu(x), lambda m, x: nn.functional.relu(x, inplace=True)]
    assert len({latency.trace(Branches(tail), (1, 3, 16, 16)).signature for tail in spelt}) == 1
    pooled = [lambda m, x: F.max_pool2d(x, 2), lambda m, x: F.max_pool2d(x, 3, 2, padding=1)]
    assert len({latency.trace(Branches(tail), (1, 3, 16, 16)).signature for tail in pooled}) == 2


class Branches(nn.Module):
    """A convolution, then whatever `tail` does with its output and its module."""

    def __init__(self, tail) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.norm = nn.InstanceNorm2d(8)
        self.over_all = nn.LayerNorm((8, 16, 16))
        self.across = nn.Linear(16, 4)
        self.circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.linear = nn.Linear(8, 4)
        self.gate = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.register_buffer("edges", torch.rand(8, 1, 3, 3))
        self.tail = tail

    def forward(self, x):
        return self.tail(self, self.stem(x))


def test_layers_that_derive_from_torchs_are_pruned(rng, random_widths) -> None:
    """The trace has torch's own layers in their places, and an input less for each that has a default."""
    from tinynet import Derived

    module = Derived()
    net = latency.trace(module, (2, 3, 32, 32), align=1)
    assert not net.unfollowed
    assert [(gene.name, gene.max_width) for gene in net.genes] == [("stem.0", 16), ("wide.0", 24)]
    assert set(net.parameter_names) == {name for name, _ in module.named_parameters()}
    kinds = {name: type(layer) for name, layer in net.module.named_modules() if name in ("stem.0", "stem.1", "scaled.slope")}
    assert kinds == {"stem.0": nn.Conv2d, "stem.1": nn.BatchNorm2d, "scaled.slope": nn.PReLU}
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(extract(net, net.max_widths, module.state_dict())(images), module.eval()(images))


def test_casts_pass_channels_on() -> None:
    net = latency.trace(Branches(lambda m, x: m.second(x.float().to(x.dtype))), (1, 3, 16, 16), align=1)
    assert [gene.name for gene in net.genes] == ["stem"]
    assert not net.unfollowed


class Statements(nn.Module):
    """In place, without taking the result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.scale = nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Parameter(torch.rand(8, 1, 1))
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        shortcut = x.clone()
        self.relu(x)
        x.mul_(self.scale)
        F.relu(self.second(x), inplace=True)
        y = self.second(x)
        F.hardtanh(y, -0.1, 0.1, inplace=True)
        return shortcut + x.add(y)


def test_what_is_changed_in_place_stays_changed() -> None:
    module, images = Statements(), torch.randn(1, 3, 4, 4)
    net = latency.trace(module, (1, 3, 4, 4))
    torch.testing.assert_close(extract(net, net.max_widths, net.module.state_dict())(images), module.eval()(images))


def test_calls_of_one_layer_share_their_channels() -> None:
    from tinynet import Twice

    net = latency.trace(Twice(), (1, 3, 32, 32), align=1)
    assert [(gene.name, gene.max_width) for gene in net.genes] == [("stem.0", 12), ("fine", 16), ("shared", 24)]
    once = latency.trace(Branches(lambda m, x: m.linear(m.second(x).mean((2, 3)))), (1, 3, 16, 16), align=1)
    again = latency.trace(Branches(lambda m, x: m.linear(m.second(m.second(x)).mean((2, 3)))), (1, 3, 16, 16), align=1)
    assert [gene.name for gene in once.genes] == ["stem", "second"]
    assert [gene.name for gene in again.genes] == ["stem"]
    assert again.macs([5]) == once.macs([5, 5]) + 5 * 5 * 9 * 16 * 16
    assert again.params([5]) == once.params([5, 5])


@pytest.mark.parametrize(
    ("tail", "named"),
    [
        (lambda m, x: F.conv2d(F.conv2d(x, m.second.weight), m.second.weight), "'second.weight'"),
        (lambda m, x: F.conv2d(x, m.second.weight, x.mean((0, 2, 3))), "'second.weight'"),
        (lambda m, x: F.conv2d(x, m.second.weight * 2), "calls conv2d"),
        (lambda m, x: F.conv2d(x, m.second.weight, groups=m.second.weight.size(0) // 8), "'second.weight'"),
        (lambda m, x: F.batch_norm(x, m.mean, m.mean + 1, training=True), "mean"),
        (lambda m, x: F.layer_norm(x, x.shape[-1:]), "layer_norm"),
    ],
)
def test_functions_with_weights_that_no_layer_could_hold_keep_them(tail, named: str) -> None:
    module = Branches(tail)
    module.register_buffer("mean", torch.zeros(8))
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert named in "; ".join(net.unfollowed)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(extract(net, net.max_widths, net.module.state_dict())(images), module.eval()(images))


@pytest.mark.parametrize(
    ("tail", "named"),
    [
        (lambda m, x: next(iter(x)), "control flow"),
        (lambda m, x: x[:, :, : int(x.sum())], "control flow"),
        (lambda m, x: x if x.sum() > 0 else -x, "control flow"),
        (lambda m, x: (x[:, :4].mul_(2), x)[1], "in place"),
        (lambda m, x: x.flatten(1) @ torch.zeros(3, 3), "does not run"),
    ],
)
def test_what_cannot_be_traced_is_named(tail, named: str) -> None:
    with pytest.raises(latency.TraceError, match=named):
        latency.trace(Branches(tail), (1, 3, 16, 16))


@pytest.mark.parametrize(
    ("tail", "named"),
    [
        (lambda m, x: m.norm(x), "'3.norm' (operation '_3_norm') is a InstanceNorm2d"),
        (lambda m, x: x * m.scale.exp(), "scale' is no summand or factor"),
        (lambda m, x: x * (1 / m.scale), "bare parameters alone"),
        (lambda m, x: x - x.mean(0, keepdim=True), "reduces over the batch"),
        (lambda m, x: m.second(x) * torch.min(x, dim=1, keepdim=True)[0], "the largest of all, or the smallest"),
        (lambda m, x: m.second(x.mean((2, 3), keepdim=True).expand(-1, -1, 16, 16)), "repeats"),
        (lambda m, x: m.over_all(x), "LayerNorm over (8, 16, 16)"),
        (lambda m, x: m.across(x), "axis 3, not along the channels"),
        (lambda m, x: x[:, :, :8] + x.transpose(1, 2)[:, :8], "axis 1, not along the channels"),
        (lambda m, x: m.second(torch.cat(x.split([3, 5], 1)[::-1], 1)), "unequal parts"),
        (lambda m, x: m.second(torch.cat([*x.split([3, 5], 1)], 1)), "splits into parts of 3, 5"),
        (lambda m, x: m.second(torch.cat([*x.split([4, 0, 4], 1)], 1)), "unequal parts"),
        (lambda m, x: m.second(torch.cat((x * 2).flatten(2).tensor_split(3, 1), 1).view(-1, 8, 16, 16)), "unequal parts"),
        (
            lambda m, x: m.second(
                torch.cat(torch.cat([x.mean(3).flatten(1), x.mean((2, 3))], 1).chunk(2, 1), 1)[:, :8, None, None] * x
            ),
            "middle of a channel",
        ),
        (lambda m, x: m.second(x.reshape(-1, 4, 512).relu().view(-1, 8, 16, 16)), "reshapes (1, 8, 16, 16) to (1, 4, 512)"),
        (lambda m, x: m.second(x @ m.linear.weight[:1, :1].expand(16, 16)), "multiplies by a matrix of another kind"),
        (lambda m, x: m.second(x @ x.transpose(2, 3)), "axis 3, not along the channels"),
        (lambda m, x: m.second((x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x)), "channels by other channels"),
        (lambda m, x: m.second(torch.cat([x.mean((2, 3)), m.linear.bias[None]], 1)[:, :8, None, None] * x), "beside channels"),
        (lambda m, x: m.second(torch.einsum("nchw,ndhw->nchw", x, m.second(x))), "calls einsum"),
        (lambda m, x: m.second(x) * x[0], "takes one of the images"),
        (lambda m, x: F.pixel_shuffle(torch.cat((x[:, :2], x[:, 2:4]), 1), 2), "makes one channel of parts of others"),
        (lambda m, x: m.up(x, output_size=x.size()[2:]), "told its output size"),
        (lambda m, x: F.conv2d(x, m.edges, padding=1, groups=8), "filters of its own for each channel"),
        (lambda m, x: F.conv2d(x, m.edges[:4].reshape(4, 1, 3, 3).repeat(1, 8, 1, 1)), "calls conv2d"),
        (lambda m, x: m.up(x, (16, 16)), "told its output size"),
        (lambda m, x: m.second(x) * torch.softmax(x, 1), "normalises over the channels"),
        (lambda m, x: x.permute(0, 2, 3, 1).flatten(1), "repeats them too often"),
        (lambda m, x: m.second(x) * x.std(1, keepdim=True), "how far channels spread"),
        (lambda m, x: F.max_pool2d(x.permute(0, 2, 3, 1), 1), "which lie on axis 3"),
        (lambda m, x: x[:, 3:], "splits into parts of 3, 5"),
        (lambda m, x: x[:, :4, None], "getitem"),
        (lambda m, x: x[:, :4, 1:], "getitem"),
        (lambda m, x: x[:, 2], "getitem"),
        (lambda m, x: x[:, ::2], "getitem"),
        (lambda m, x: x[[0], :, [1]], "getitem"),
        (lambda m, x: x.movedim((1, 2), (2, 1)), "moves several axes"),
        (lambda m, x: x.squeeze(), "squeezes"),
        (lambda m, x: x.squeeze(0), "squeezes"),
        (lambda m, x: F.pad(x, (0, 0, 0, 0, 0, -2)), "changes the number of channels"),
        (lambda m, x: m.second(x.flip(1)), "turns the channels round"),
        (lambda m, x: m.second(x.flip(2, 1)), "turns the channels round"),
        (lambda m, x: m.second(torch.roll(x, (1, 2), (3, -3))), "turns the channels round"),
        (lambda m, x: m.second(x.roll(1)), "turns the channels round"),
        (lambda m, x: F.log_softmax(x, 1) * x, "normalises over the channels"),
        (lambda m, x: m.second(x + torch.zeros(x.shape)), "has another tensor's sizes"),
        (lambda m, x: m.second(x) + x.mean(), "nothing that has channels"),
    ],
)
def test_what_cannot_be_followed_keeps_its_channels(tail, named: str) -> None:
    """The rest is pruned: what follows the stem still computes what ONNX Runtime does at any widths."""
    module = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 1), Branches(tail))
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert named in "; ".join(net.unfollowed)
    assert net.genes[0].name == "0"
    assert "3.stem" not in [gene.name for gene in net.genes]
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for widths in (net.max_widths, net.min_widths):
        structure = extract(net, np.array(widths), net.module.state_dict())
        session = onnxruntime.InferenceSession(net.onnx(widths))
        scores = session.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)
    torch.testing.assert_close(extract(net, net.max_widths, net.module.state_dict())(images), module.eval()(images))


@pytest.mark.parametrize(
    "tail",
    [
        lambda m, x: m.second(x[:, :8] * 2),
        lambda m, x: m.second(x[..., ::2, 1 : x.size(3)]),
        lambda m, x: m.second(x * m.gate(x.mean((2, 3)))[:, :, None, None]),
        lambda m, x: m.second(x * m.gate(x[:, :, 0].mean(2)).unsqueeze(-1).unsqueeze(2)),
        lambda m, x: m.second(F.pad(x * m.scale, (1, 2, 0, 1)).pow(2).neg() * m.scale),
        lambda m, x: m.linear(x.mean(3, keepdim=True).squeeze(3).transpose(1, 2)),
        lambda m, x: m.linear(x.transpose(3, 1)[:, None, 2:, ..., 1:3, :]),
        lambda m, x: m.second(x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1)),
        lambda m, x: m.second(x.reshape(x.shape[0] * x.shape[1] * 4, 4, 4, 4).transpose(1, 2).contiguous().view(*x.shape)),
        lambda m, x: m.second(x.view(-1, 16, 16).permute(0, 2, 1).reshape(x.size(0), x.size(1), 16, 16)),
        lambda m, x: m.second(x.view(-1, 16, 16).swapaxes(axis0=1, axis1=-1).reshape(x.size(0), x.size(1), 16, 16)),
    ],
)
def test_views_that_leave_channels_whole_are_followed(tail) -> None:
    torch.manual_seed(0)
    net = latency.trace(Branches(tail), (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert net.genes[0].name == "stem"
    images = torch.randn(1, 3, 16, 16)
    for widths in (net.max_widths, net.min_widths):
        structure = extract(net, np.array(widths), net.module.state_dict())
        scores = onnxruntime.InferenceSession(net.onnx(widths)).run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)
        torch.testing.assert_close(structure(torch.cat([images, images]))[1:], structure(images))
        kernels = [one.kernel for one in find_kernels(onnx.load_from_string(net.onnx(widths)))]
        assert max(kernel.cin for kernel in kernels) <= max(3, *widths, 8 if widths == net.max_widths else 0)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(-3)])
def test_probabilities_at_the_end_are_of_scores_that_are_kept(last: nn.Module) -> None:
    net = latency.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), last), (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert [gene.name for gene in net.genes] == ["0"]


def test_fixed_filters_without_values_count_as_alike() -> None:
    """As where networks are listed, which need no weights."""
    with torch.device("meta"):
        module = Branches(lambda m, x: m.second(F.conv2d(x, m.edges, padding=1, groups=8)))
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert "stem" in [gene.name for gene in net.genes]


def test_slopes_of_prelu_are_pruned_with_their_channels() -> None:
    layers = [nn.Conv2d(3, 12, 3), nn.PReLU(12), nn.Conv2d(12, 12, 3), nn.PReLU(12), nn.Conv2d(12, 8, 1), nn.PReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 4))
    for layer in module:
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.1, 0.9)
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert net.params(net.max_widths) == sum(p.numel() for p in module.parameters())
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for widths in (net.max_widths, [5, 7, 3, 2]):
        structure = extract(net, np.array(widths), net.module.state_dict())
        scores = onnxruntime.InferenceSession(net.onnx(widths)).run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)


class ChannelsLast(nn.Module):
    """Linear layers at every position, LayerNorm on the last axis, bare parameters and a buffer of several ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.stem, self.inside, self.out = nn.Conv2d(3, 12, 3), nn.Linear(12, 20, bias=False), nn.Linear(20, 12)
        self.norm, self.last = nn.LayerNorm(12), nn.LayerNorm(12, bias=False)
        self.head = nn.Linear(12, 5)
        shapes = {"scale": (12, 1, 1), "shift": (1, 12, 1, 1), "slope": (20,), "amount": (1,)}
        self.bare = nn.ParameterDict({name: nn.Parameter(torch.rand(shape) + 0.5) for name, shape in shapes.items()})

    def forward(self, x):
        x = self.stem(x - self.mean)
        y = self.inside(self.norm(torch.permute(x, (0, 2, 3, 1)))) * self.bare["slope"]
        x = x + self.out(y.relu()).permute(0, 3, 1, 2) * self.bare["scale"] + self.bare["shift"]
        return self.head(self.last(x.permute(0, 2, 3, 1).mean((1, 2)) * self.bare["amount"]))


def test_channels_are_followed_to_other_axes_and_into_bare_parameters(rng, random_widths) -> None:
    torch.manual_seed(0)
    module = ChannelsLast()
    for norm in (module.norm, module.last):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    net = latency.trace(module, (2, 3, 10, 10), align=1)
    assert not net.unfollowed
    assert [(gene.name, gene.max_width) for gene in net.genes] == [("stem", 12), ("inside", 20)]
    assert net.params(net.max_widths) == sum(p.numel() for p in module.parameters())
    structures = random_widths(net, rng, 3)
    assert net.macs(structures).tolist() == [count_macs(extract(net, widths), 10) for widths in structures]
    images = torch.randn(2, 3, 10, 10)
    for widths in [*structures, np.array(net.max_widths)]:
        structure = extract(net, widths, net.module.state_dict())
        scores = onnxruntime.InferenceSession(net.onnx(widths)).run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)
    torch.testing.assert_close(extract(net, net.max_widths, net.module.state_dict())(images), module(images))


@pytest.mark.parametrize(("name", "genes"), [("swin_v2_t", 28), ("vit_b_32", 25), ("maxvit_t", 73)])
def test_transformers_are_pruned(name: str, genes: int) -> None:
    """Of each block the channels of heads and the inside of its perceptron; between blocks all channels at once."""
    net = latency.trace(load(name, num_classes=10), (1, 3, 224, 224))
    assert (len(net.genes), net.unfollowed) == (genes, ())
    assert net.params(net.max_widths) == sum(p.numel() for p in net.module.parameters())


@fx.wrap
def masked(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Of what Swin's attention does: a scale by the number of channels, a mask that is filled in, a bias in part zeroed."""
    height, width = x.shape[-2:]
    mask, bias = x.new_zeros((height, width)), module.bias.clone()
    mask[: height // 2, -1:] = 2
    bias[1 : module.bias.numel() // 2].zero_()
    return F.conv2d(x * x.shape[1] ** -0.5 + mask, module.weight, bias)


@fx.wrap
def opaque(x: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return x if x.sum() > 0 else -x


def test_functions_that_are_hidden_from_tracing_are_looked_into(rng, random_widths) -> None:
    module = Branches(lambda m, x: masked(x, m.second)).eval()
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    images = torch.randn(1, 3, 16, 16)
    for widths in (np.array(net.max_widths), *random_widths(net, rng, 2)):
        structure = extract(net, widths, net.module.state_dict())
        scores = onnxruntime.InferenceSession(net.onnx(widths)).run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(structure(images).detach(), scores, atol=1e-5)
    torch.testing.assert_close(extract(net, net.max_widths, net.module.state_dict())(images), module(images))


def test_what_is_drawn_is_drawn_anew_each_time() -> None:
    net = latency.trace(Branches(lambda m, x: m.second(x + torch.rand(x.shape[-1]))).eval(), (1, 3, 16, 16), align=1)
    images = torch.randn(1, 3, 16, 16)
    assert not torch.equal(net.module(images), net.module(images))


def test_one_that_cannot_be_followed_stays_one_operation() -> None:
    module = Branches(lambda m, x: m.second(opaque(x))).eval()
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    assert "calls opaque" in "; ".join(net.unfollowed)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(net.module(images), module(images))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 0, 32), ()])
def test_wrong_input_shapes_are_refused(tiny_module, shape) -> None:
    with pytest.raises(latency.TraceError, match="N, C, H, W"):
        latency.trace(tiny_module, shape)


def test_the_public_name_survives_imports_of_the_package() -> None:
    """A submodule of the same name would replace it as soon as anything imports that."""
    import pkgutil
    import subprocess
    import sys

    modules = {module.name for module in pkgutil.iter_modules(latency.__path__)}
    assert not modules & set(latency.__all__)
    code = (
        "import latency, latency.prediction.predictor, latency.tracing.trace, latency.alignment; assert callable(latency.trace)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_forward_may_ask_what_kind_of_device_it_runs_on() -> None:
    def tail(m: Branches, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return m.linear((x + torch.ones(8, 1, 1, device=x.device)).mean((2, 3)))

    module = Branches(tail).eval()
    net = latency.trace(module, (1, 3, 16, 16), align=1)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net.module(images), module(images))


@pytest.mark.parametrize(
    "tail",
    [
        lambda m, x: m.second(torch.cat([*x.split([2, 6], 1)][::-1], 1)),
        lambda m, x: m.second(torch.cat([x[:, 2:], x[:, :2]], 1)),
    ],
)
def test_unequal_parts_and_slices_shrink_in_proportion(tail) -> None:
    net = latency.trace(Branches(tail), (1, 3, 16, 16), align=1)
    assert not net.unfollowed
    assert net.genes[0].max_width == 2
    assert extract(net, [1, *net.max_widths[1:]]).get_submodule("stem").out_channels == 4

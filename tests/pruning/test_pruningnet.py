"""PruningNet: one structure, seen three ways, must be the same network; encodings are the official ones."""

import copy

import numpy as np
import pytest
import torch
from torchvision.models.convnext import LayerNorm2d

import latency
from pruning.bank import banks
from pruning.generators import GENERATORS, HIDDEN
from pruning.networks import load
from pruning.pruningnet import PruningNet, block_genes
from pruning.train import SUPERNETS, new_pruningnet


def pruningnet(net: latency.Network, generator: str = "full", hidden: int = 2) -> PruningNet:
    return PruningNet(net, dict(net.module.named_parameters()), generator, hidden)


@pytest.mark.parametrize(
    ("name", "generator"),
    [
        ("tinynet:tiny", "full"), ("tinynet:tiny", "low-rank"), ("tinynet:tiny", "shared"), ("tinynet:mixed", "full"),
        ("tinynet:mixed", "low-rank"), ("mobilenet_v2", "low-rank"), ("resnet18", "full"), ("tinynet:small_densenet", "shared"),
        ("shufflenet_v2_x0_5", "full"), ("mobilenet_v3_small", "shared"), ("tinynet:tiny_convnext", "full"),
        ("tinynet:tiny_convnext", "low-rank"), ("tinynet:tiny_convnext", "shared"), ("tinynet:halves", "full"),
        ("tinynet:halves", "low-rank"), ("tinynet:gates", "full"), ("tinynet:derived", "full"), ("tinynet:derived", "shared"),
        ("tinynet:twice", "full"), ("tinynet:hourglass", "full"), ("tinynet:hourglass", "low-rank"),
        ("tinynet:classed", "full"),
    ],
)  # fmt: skip
def test_the_generated_network_is_the_extracted_structure(name: str, generator: str, awake, rng, random_widths) -> None:
    net = latency.trace(awake(load(name, num_classes=10), (1, 3, 32, 32)), (1, 3, 32, 32))
    supernet = pruningnet(net, generator).double().eval()  # eval: dropout off; BN uses the batch all the same
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    for widths in random_widths(net, rng, 2):
        structure = supernet.structure(widths).double()
        for layer in structure.modules():
            if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                layer.train()
        structure.load_state_dict({**structure.state_dict(), **supernet.weights(widths)})  # as doubles, unrounded
        with torch.no_grad():
            scores = structure(images)
            torch.testing.assert_close(supernet(images, widths), scores, atol=1e-6, rtol=1e-5)
            whole = supernet.weights(widths, whole=True)
            full = {name: tensor.shape for name, tensor in net.module.named_parameters()}
            assert {name: tensor.shape for name, tensor in whole.items() if not name.endswith(".kept")} == full
            torch.testing.assert_close(supernet.scores(images, whole), scores, atol=1e-6, rtol=1e-5)


def test_a_gpu_gets_whole_weights(monkeypatch) -> None:
    net = latency.trace(load("tinynet:tiny", num_classes=10), (1, 3, 32, 32))
    supernet = pruningnet(net)
    narrow = supernet.weights(np.array(net.min_widths))
    monkeypatch.setattr(PruningNet, "device", torch.device("cuda"))
    whole = supernet.weights(np.array(net.min_widths))
    assert all(tensor.shape == whole[name].shape for name, tensor in net.module.named_parameters())
    assert any(tensor.shape != whole[name].shape for name, tensor in narrow.items())


@pytest.mark.parametrize(
    "name",
    [
        "tinynet:mixed",
        "tinynet:halves",
        "tinynet:gates",
        "tinynet:tiny_convnext",
        "tinynet:derived",
        "tinynet:hourglass",
        "tinynet:classed",
    ],
)
@pytest.mark.parametrize("generator", GENERATORS)
def test_zeros_in_place_of_what_is_pruned_teach_the_same(generator: str, name: str, rng, random_widths) -> None:
    net = latency.trace(load(name, num_classes=10), (1, 3, 32, 32), align=1)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    (widths,) = random_widths(net, rng, 1)
    torch.manual_seed(0)
    cropped = pruningnet(net, generator).double()
    whole = copy.deepcopy(cropped)
    cropped.scores(images, cropped.weights(widths, whole=False)).logsumexp(1).mean().backward()
    whole.scores(images, whole.weights(widths, whole=True)).logsumexp(1).mean().backward()
    for ours, theirs in zip(cropped.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad)
    for ours, theirs in zip(banks(cropped).values(), banks(whole).values(), strict=True):
        torch.testing.assert_close(theirs.training_state(), ours.training_state())


def test_encodings_of_the_papers_networks() -> None:
    v1 = latency.trace(load("mobilenet_v1"), (1, 3, 32, 32))
    genes = block_genes(v1)
    assert genes["features.0.0"] == (0,)
    assert all(genes[f"features.{i}.{part}.0"] == (i - 1, i) for i in range(1, 14) for part in ("depthwise", "pointwise"))
    v2 = latency.trace(load("mobilenet_v2"), (1, 3, 32, 32))
    genes, names = block_genes(v2), [gene.name for gene in v2.genes]
    block = genes["features.3.conv.0.0"]
    assert block == genes["features.3.conv.1.0"] == genes["features.3.conv.2"]
    assert [names[gene] for gene in block] == ["features.2.conv.2", "features.3.conv.0.0"]  # in and out are one gene here
    r50 = latency.trace(load("resnet50"), (1, 3, 32, 32))
    genes, names = block_genes(r50), [gene.name for gene in r50.genes]
    assert {names[gene] for gene in genes["layer2.0.downsample.0"]} == {
        "layer1.0.conv3", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.conv3",
    }  # fmt: skip
    assert genes["layer2.0.conv1"] == genes["layer2.0.downsample.0"]


def test_pruningnet_of_mobilenet_v1_has_the_papers_size() -> None:
    net = latency.trace(load("mobilenet_v1"), (1, 3, 32, 32))
    supernet = pruningnet(net, hidden=HIDDEN)
    assert sum(p.numel() for p in supernet.parameters()) == pytest.approx(106e6, rel=0.02)


def test_only_kept_channels_learn(tiny_network) -> None:
    supernet = pruningnet(tiny_network, hidden=4)
    widths = np.array([gene.choices[0] for gene in tiny_network.genes])
    supernet(torch.randn(4, 3, 16, 16), widths).square().sum().backward()
    generator = supernet.generators["feature/0"]
    kept = tiny_network.kept("feature.0.weight", widths)
    touched = generator.bank.gradients[0].abs().sum(2) > 0
    assert touched[kept[0], kept[1]].any()
    touched[kept[0], kept[1]] = False
    assert not touched.any()


def test_the_seed_decides_and_the_global_generator_stays(tiny_network) -> None:
    state = torch.random.get_rng_state()
    a, b, c = (new_pruningnet(tiny_network, SUPERNETS["paper"], seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    key = "generators.feature/0.bank.values"
    assert torch.equal(a.state_dict()[key], b.state_dict()[key])
    assert not torch.equal(a.state_dict()[key], c.state_dict()[key])


@pytest.mark.parametrize("recipe", SUPERNETS)
def test_trained_weights_are_what_every_structure_starts_from(recipe: str, tiny_network) -> None:
    weights = {name: torch.randn_like(tensor) for name, tensor in tiny_network.module.state_dict().items() if tensor.dim()}
    supernet = new_pruningnet(tiny_network, SUPERNETS[recipe], 0, weights)
    widths = np.array([gene.choices[0] for gene in tiny_network.genes])
    for name, tensor in supernet.weights(widths).items():
        assert torch.equal(tensor, weights[name][tiny_network.kept(name, widths)]), name


class Positioned(torch.nn.Module):
    """Adds what a perceptron makes of a table of positions, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 1)
        self.perceptron, self.classifier = torch.nn.Linear(2, 8), torch.nn.Linear(8, 10)
        self.register_buffer("positions", torch.rand(1, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.last(self.features(images).relu()).mean((2, 3))
        return self.classifier(features + self.perceptron(self.positions))


def test_buffers_go_where_the_weights_are() -> None:
    net = latency.trace(Positioned(), (1, 3, 8, 8), align=4)
    images, widths = torch.randn(8, 3, 8, 8, dtype=torch.float64), np.array(net.min_widths)
    supernet = pruningnet(net).double()  # as on a GPU, float32 cannot meet them
    torch.testing.assert_close(supernet(images, widths), supernet.structure(widths).double()(images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", [torch.nn.GroupNorm(1, 8), LayerNorm2d(8)])
def test_norms_over_channels_count_what_is_kept(norm: torch.nn.Module) -> None:
    """The sigmoid of a channel that is not there is no zero."""
    layers = [torch.nn.Conv2d(3, 8, 1), torch.nn.Sigmoid(), norm, torch.nn.Conv2d(8, 4, 1), torch.nn.Flatten()]
    net = latency.trace(torch.nn.Sequential(*layers, torch.nn.Linear(4 * 16, 10)), (1, 3, 4, 4), align=1)
    supernet, images = pruningnet(net).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    widths = np.array([5, 3])
    whole, cropped = (supernet.scores(images, supernet.weights(widths, whole=whole)) for whole in (True, False))
    torch.testing.assert_close(whole, cropped)

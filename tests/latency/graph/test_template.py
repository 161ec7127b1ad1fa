"""ONNX of any widths: ONNX Runtime's answer against the sliced PyTorch module's."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import latency
from pruning.extract import extract

NETWORKS = (
    "mobilenet_v1 mobilenet_v2 resnet50 resnet18 mobilenet_v3_large efficientnet_b0 squeezenet1_1 tinynet:small_densenet "
    "googlenet regnet_y_400mf resnext50_32x4d shufflenet_v2_x0_5 tinynet:tiny_convnext tinynet:halves tinynet:gates "
    "tinynet:derived tinynet:twice tinynet:small_swin tinynet:classed tinynet:hourglass"
).split()


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_equals_the_sliced_module(name: str, traced, rng, random_widths) -> None:
    compare(traced(name), rng, random_widths)


def test_onnx_of_a_batch_and_of_a_flattened_network(tiny_module, rng, random_widths, awake) -> None:
    compare(latency.trace(awake(copy.deepcopy(tiny_module), (4, 3, 20, 20)), (4, 3, 20, 20), align=1), rng, random_widths)


def test_onnx_of_all_that_joins_splits_and_groups(rng, random_widths, awake) -> None:
    from tinynet import Mixed

    torch.manual_seed(0)
    compare(latency.trace(awake(Mixed(), (2, 3, 20, 20)), (2, 3, 20, 20), align=1), rng, random_widths)


def test_weights_that_a_graph_computes_are_initializers_and_sizes_it_states_follow_the_widths(rng, random_widths) -> None:
    from tinynet import Standardised

    class Upsampled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2))

    layers = [torch.nn.Conv2d(3, 128, 1), Standardised(128), torch.nn.Conv2d(128, 12, 1), Upsampled()]  # large: not folded
    layers += [torch.nn.Conv2d(12, 12, 3, 2, 1), Upsampled(), torch.nn.Conv2d(12, 4, 1)]  # both to the same size
    net = latency.trace(torch.nn.Sequential(*layers), (1, 3, 8, 8), align=1)
    assert [gene.name for gene in net.genes] == ["2", "4"]
    kinds = [one.kernel.type for one in net.template.kernels]
    assert kinds == ["conv1x1s1", "conv1x1s1", "conv1x1s1", "resize", "conv3x3s2", "resize", "conv1x1s1"]
    compare(net, rng, random_widths)


def compare(net: latency.Network, rng, random_widths) -> None:
    images = torch.randn(net.input_shape)
    for widths in [*random_widths(net, rng, 2), np.array(net.max_widths)]:
        model = net.onnx(widths)
        onnx.checker.check_model(onnx.load_from_string(model))
        session = onnxruntime.InferenceSession(model)
        scores = session.run(None, {"images": images.numpy()})[0]
        expected = extract(net, widths, net.module.state_dict())(images).detach().numpy()
        assert expected.std() > 1e-2, "a comparison of zeros proves nothing"
        np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=1e-4)


def test_a_structure_is_smaller_on_disk(tiny_network) -> None:
    smallest = [gene.choices[0] for gene in tiny_network.genes]
    assert len(tiny_network.onnx(smallest)) < len(tiny_network.onnx(tiny_network.max_widths)) / 10


def test_building_leaves_the_template_as_it_was(tiny_network) -> None:
    before = tiny_network.onnx(tiny_network.max_widths)
    tiny_network.onnx([gene.choices[0] for gene in tiny_network.genes])
    assert tiny_network.onnx(tiny_network.max_widths) == before

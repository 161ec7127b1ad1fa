"""Networks of timm: classes that derive from torch's layers, and forward() that decides by sizes."""

import warnings

import onnxruntime
import pytest
import torch

import latency
from pruning.extract import extract, in_own_class

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm")

GENES = {
    "test_byobnet": 14, "test_convnext": 13, "test_efficientnet": 13, "test_efficientnet_gn": 13, "test_efficientnet_ln": 13,
    "test_nfnet": 4, "test_resnet": 11, "tf_mobilenetv3_small_minimal_100": 18,
}  # fmt: skip


@pytest.mark.parametrize("name", GENES)
def test_networks_of_timm_are_pruned(name: str, rng, random_widths, awake) -> None:
    shape = (1, 3, 96, 96)
    module = awake(timm.create_model(name, num_classes=10), shape)
    net = latency.trace(module, shape, align=8)
    assert len(net.genes) == GENES[name]
    images = torch.randn(shape)
    state = net.module.state_dict()
    near = {"rtol": 1e-3, "atol": 1e-4 * float(module(images).abs().max())}
    torch.testing.assert_close(extract(net, net.max_widths, state)(images), module(images), **near)
    (widths,) = random_widths(net, rng, 1)
    structure = extract(net, widths, state)
    scores = structure(images).detach()
    ran = onnxruntime.InferenceSession(net.onnx(widths)).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(ran), scores, **near)
    assert type(in_own_class(module, structure, shape)) is type(module)
    assert net.params(widths) == sum(tensor.numel() for tensor in structure.parameters())

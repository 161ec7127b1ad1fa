"""Names of networks."""

import pytest
import torch

from pruning.networks import UnknownNetwork, load


def test_mobilenet_v1_is_the_papers() -> None:
    module = load("mobilenet_v1")
    assert sum(p.numel() for p in module.parameters()) == 4_231_976  # as in torch ports of the TensorFlow original
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize("name", ["resnet18", "tinynet:tiny"])
def test_networks_by_name(name: str) -> None:
    assert load(name, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet1800", "no_such_module:f", "tinynet:no_such_function", "tinynet:nn", "../x", "a:b:c"])
def test_unknown_networks_are_one_clear_error(name: str) -> None:
    with pytest.raises(UnknownNetwork, match=r"network|returned|calling"):
        load(name)

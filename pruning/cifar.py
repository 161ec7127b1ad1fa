"""Networks adapted to images of 32 pixels: the first halving (MobileNets) or the first two (ResNet) are left out.

To be named on the command line: --network pruning.cifar:mobilenet_v1_half
"""

from __future__ import annotations

from torch import nn
from torchvision import models

from pruning.networks import MobileNetV1


def mobilenet_v1(num_classes: int = 10, width_mult: float = 1.0) -> nn.Module:
    """MobileNetV1 whose first convolution has stride 1; 46 million multiply-adds."""
    return _full_resolution(MobileNetV1(num_classes, width_mult))


def mobilenet_v1_half(num_classes: int = 10) -> nn.Module:
    """The same with half the channels; 12 million multiply-adds."""
    return mobilenet_v1(num_classes, 0.5)


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """torchvision's MobileNetV2 whose first convolution has stride 1."""
    return _full_resolution(models.mobilenet_v2(num_classes=num_classes))


def resnet50(num_classes: int = 10) -> nn.Module:
    """torchvision's ResNet-50 with a first convolution of 3×3 and stride 1, and no max pooling."""
    network = models.resnet50(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _full_resolution(network: nn.Module) -> nn.Module:
    first = network.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    first.stride = (1, 1)
    return network

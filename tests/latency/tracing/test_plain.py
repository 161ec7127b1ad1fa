"""Copies without what only training needs."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from latency.tracing.plain import plain

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the older functions are deprecated, and used
    OLDER = (nn.utils.weight_norm, nn.utils.spectral_norm)


def network(normed) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(normed(nn.Conv2d(3, 8, 3)), nn.ReLU(), normed(nn.Linear(6, 5)))


@pytest.mark.parametrize("normed", [*OLDER, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_recomputed_weights_stay_as_they_are_and_the_module_is_left_alone(normed) -> None:
    module, images = network(normed), torch.randn(2, 3, 8, 8)
    for _ in range(3):
        module(images)  # spectral norm changes whenever it is trained on
    scores, names = module.eval()(images), list(module.state_dict())
    copied = plain(module.train())
    assert list(copied.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert [type(layer) for layer in copied] == [nn.Conv2d, nn.ReLU, nn.Linear]
    torch.testing.assert_close(copied(images), scores)
    assert list(module.state_dict()) == names
    module(images).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    torch.testing.assert_close(plain(copied)(images), scores)


def test_relatives_of_bn_are_bn() -> None:
    frozen, synchronised = FrozenBatchNorm2d(4, eps=1e-3), nn.SyncBatchNorm(4, momentum=0.3)
    for norm in (frozen, synchronised):
        for tensor in norm.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) + 1)
    images = torch.randn(2, 4, 5, 5)
    copied = plain(nn.Sequential(frozen, synchronised))
    assert [type(norm) for norm in copied] == [nn.BatchNorm2d] * 2
    assert copied[1].momentum == 0.3
    torch.testing.assert_close(copied[0](images), frozen(images))
    torch.testing.assert_close(copied[1](images), synchronised.eval()(images))


def test_synchronised_bn_without_statistics_stays_as_it_is() -> None:
    norm = nn.SyncBatchNorm(4, track_running_stats=False)
    assert type(plain(nn.Sequential(norm))[0]) is nn.SyncBatchNorm

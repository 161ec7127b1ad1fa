"""Folding BN changes no score, and takes away what a convolution can take in and nothing else."""

from collections import Counter

import torch
from torch import Tensor, fx, nn

from latency.graph.fold import fold_batch_norms


class _Everywhere(nn.Module):
    """BN that can be folded (one without weights, one whose input's axes are counted), and six that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)
        self.second, self.counted = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.twice, self.after_first, self.after_second = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.shared, self.beside_sum = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.third, self.of_batch = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.again, self.after_relu = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.again(self.plain(self.first(x))))
        torch._assert(x.ndim == 4, "four axes")
        x = self.after_second(self.twice(self.after_first(self.twice(self.counted(x)))))
        y = self.shared(x)
        return self.after_relu(torch.relu(self.of_batch(self.third(self.beside_sum(y) + y))))


@torch.no_grad()
def test_bn_is_folded_where_a_convolution_can_take_it_in():
    module, images = _Everywhere(), torch.randn(4, 3, 9, 9)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    module.train()(images)  # statistics of their own
    module.eval()
    folded = fold_batch_norms(fx.symbolic_trace(module))
    torch.testing.assert_close(folded(images), module(images))
    left = {name for name, layer in folded.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert left == {"again", "after_first", "after_second", "beside_sum", "of_batch", "after_relu"}
    assert folded.first.bias is not None


def test_nothing_but_convolutions_is_left_of_convolutions_and_bn(traced):
    module = traced("tinynet:tiny").module
    before, after = (Counter(type(layer) for layer in one.modules()) for one in (module, fold_batch_norms(module)))
    assert after[nn.Conv2d] == before[nn.Conv2d]
    assert after[nn.BatchNorm2d] == 0 < before[nn.BatchNorm2d]

"""A network small enough to measure, train and search in seconds, with everything in it that joins widths."""

from torch import Tensor, nn


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

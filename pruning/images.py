"""Images in memory, or in a file that is mapped into it; and what goes wrong with data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latency.errors import MillipruneError
from pruning.hardware import fits


class DataError(MillipruneError):
    """Data that is missing or not in a form we read."""


@dataclass(frozen=True)
class Images:
    """uint8 images [N, 3, S, S] and int64 labels [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """S, their side in pixels."""
        return int(self.pixels.shape[-1])

    def __getitem__(self, part: slice) -> Images:
        """Consecutive ones, not copied."""
        return Images(self.pixels[part], self.labels[part])

    def subset(self, index: Tensor) -> Images:
        """Those of `index` (int64[M]), copied, in its order."""
        pixels = self.pixels[index.to(self.pixels.device, non_blocking=True)]
        return Images(pixels, self.labels[index.to(self.labels.device, non_blocking=True)])

    def to(self, device: torch.device) -> Images:
        """With labels on `device`, and pixels too if that leaves it as much memory again; else they stay where they are."""
        pixels = self.pixels.to(device) if fits(self.pixels, device) else self.pixels
        return Images(pixels, self.labels.to(device))


def batches(images: Images, batch: int) -> Iterator[Images]:
    """Consecutive batches; the last may be shorter."""
    for start in range(0, len(images), batch):
        yield images[start : start + batch]

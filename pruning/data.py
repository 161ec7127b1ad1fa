"""Images for training, sub-validation (cut from training) and test: found, loaded, normalised and augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pruning.augment import augmented
from pruning.decoded import Stage, unseen
from pruning.images import DataError, Images
from pruning.sources import NAMED, Source, archives, image_folders

SUBVAL_IMAGES = 5000
"""Sub-validation images of all classes together. The paper has 50 of each (MetaPruning, section 4.1): of ten classes these tell
structures apart to two points only, and of a thousand classes they would be ten times as many to forward for each."""

NORMALISING_IMAGES = 1000
"""At least so many tell mean and deviation, and more of them where they are smaller than 100 pixels."""


@dataclass(frozen=True)
class Dataset:
    """Three disjoint sets and how to normalise and augment them. `mean` and `std` are float32 [3], of `train`."""

    name: str
    classes: int
    train: Images
    subval: Images
    test: Images
    mean: Tensor
    std: Tensor
    mirrored: bool = True  # whether a mirrored image is still one of its class

    def to(self, device: torch.device) -> Dataset:
        """To be normalised and augmented on `device`; images lie there too, as far as there is room."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "subval", "test", "mean", "std")}
        return replace(self, **parts)

    def limited(self, images: int | None) -> Dataset:
        """Only the first `images` of the training images; all where None."""
        return replace(self, train=self.train[:images])

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.size

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 [N, 3, S, S] of uint8 pixels from wherever, channels last in memory."""
        pixels = pixels.to(self.mean.device, non_blocking=True)
        images = (pixels.float() / 255 - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images as they are shown in training: float32 [N, 3, S, S]."""
        return augmented(self.normalised(pixels), generator, self.mirrored)


@dataclass(frozen=True)
class FoundData:
    """Images that are found but, where they are files, not decoded yet: what a network for them must know is known."""

    name: str
    classes: int
    train: Source
    test: Source
    mirrored: bool

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.size

    def load(self) -> Dataset:
        """Cut the sub-validation set from the training images, at most a fifth: the same ones whatever the run's seed."""
        order = torch.randperm(len(self.train.labels), generator=torch.Generator().manual_seed(0))
        labels, held = self.train.labels[order], []
        for label in range(self.classes):
            members = order[labels == label]
            held.append(members[: max(1, min(SUBVAL_IMAGES // self.classes, len(members) // 5))])
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[torch.cat(held)] = False
        images, kept = self.train.subset(torch.cat([keep.nonzero().squeeze(1), *held])), int(keep.sum())
        test = self.test.subset(torch.arange(len(self.test.labels)))
        mean, std = _normalising(images[:kept])
        return Dataset(self.name, self.classes, images[:kept], images[kept:], test, mean, std, self.mirrored)


def load_data(name: str, size: int | None = None) -> Dataset:
    """The images that `find_data` finds."""
    return find_data(name, size).load()


def find_data(name: str, size: int | None = None, stage: Stage = unseen) -> FoundData:
    """Find a data set.

    Args:
        name: "digits" (scikit-learn's handwritten digits, nothing to download), "cifar10" (downloaded by torchvision
            into data/), or a folder: with train/ and test/ (or val/) image folders, or with `*train.npz` and
            `*test.npz` holding arrays jpeg (uint8, all files end to end), offset (int64 [N+1]) and label (uint8 [N]).
        size: side of the square images in pixels; default 32, for image folders 224.
        stage: shows how image folders are decoded, which happens once for all runs from here.

    Raises:
        DataError: unknown name, nothing there, or files that cannot be read; from `load`, images that cannot, or no room.
    """
    if size is not None and size < 8:
        raise DataError(f"image size {size} given; expected at least 8 pixels.")
    if name in NAMED:
        return _found(name, *NAMED[name](size or 32), mirrored=name != "digits")
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise DataError(f"data '{name}' is unknown; expected {', '.join(NAMED)}, or a folder with train and test images.")
    if list(folder.glob("*train.npz")):
        return _found(folder.name, *archives(folder, size or 32))
    return _found(folder.name, *image_folders(folder, size or 224, stage))


def _found(name: str, train: Source, test: Source, mirrored: bool = True) -> FoundData:
    """Raises DataError unless training images show every class twice, and test images no others."""
    if not len(train.labels) or not len(test.labels):
        raise DataError(
            f"data '{name}' has {len(train.labels)} training and {len(test.labels)} test images; expected some of both."
        )
    counts = torch.bincount(train.labels)
    if len(counts) < 2 or counts.min() < 2:
        raise DataError(
            f"data '{name}' has {len(counts)} classes of {counts.min()} training images and more; expected at least two "
            "classes of two images, one of which ranks structures."
        )
    if test.labels.max() >= len(counts):
        raise DataError(f"data '{name}' has test images of class {test.labels.max()}, but no training images of it.")
    return FoundData(name, len(counts), train, test, mirrored)


def _normalising(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 [3]."""
    count = max(NORMALISING_IMAGES, 10_000 * 32**2 // images.pixels[0, 0].numel())
    sample = images.pixels[:: max(1, len(images) // count)].float() / 255
    return sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-3)

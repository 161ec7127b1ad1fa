"""Images, decoded once and kept in memory: training, sub-validation (cut from training) and test."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latency.errors import MillipruneError

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

SUBVAL_PER_CLASS = 50
"""Sub-validation images of each class (MetaPruning, section 4.1)."""

SUBVAL_IMAGES = 5000
"""At least so many in all: of ten classes, 50 each would tell structures apart to two points only."""


class DataError(MillipruneError):
    """Data that is missing or not in a form we read."""


@dataclass(frozen=True)
class Images:
    """uint8 images [N, 3, S, S] and int64 labels [N]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def subset(self, index: Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])


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
        """All of it on `device`, to be augmented and normalised there."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "subval", "test", "mean", "std")}
        return replace(self, **parts)

    def limited(self, images: int | None) -> Dataset:
        """Only the first `images` of the training images; all where None."""
        return self if images is None else replace(self, train=self.train.subset(torch.arange(min(images, len(self.train)))))

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""
        return int(self.train.pixels.shape[-1])

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 [N, 3, S, S] of uint8 pixels, channels last in memory."""
        images = (pixels.float() / 255 - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def augmented(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images, shifted by up to an eighth of their side and mirrored where that is allowed."""
        images, reach = self.normalised(pixels), self.size // 8
        padded = F.pad(images, (reach,) * 4, mode="reflect")
        rows, columns = (_windows(len(images), self.size, reach, generator, images.device) for _ in range(2))
        if self.mirrored:
            flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device, non_blocking=True)
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        channels = torch.arange(3, device=images.device)[None, :, None, None]
        shifted = padded[
            torch.arange(len(images), device=images.device)[:, None, None, None],
            channels,
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return shifted.contiguous(memory_format=torch.channels_last)


def _windows(count: int, size: int, reach: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """int64[count, size]: source positions of a randomly shifted window in an image padded by `reach`."""
    start = torch.randint(0, 2 * reach + 1, (count, 1), generator=generator)
    return start.to(device, non_blocking=True) + torch.arange(size, device=device)


def batches(images: Images, batch: int) -> Iterator[Images]:
    """Consecutive batches; the last may be shorter."""
    for start in range(0, len(images), batch):
        yield Images(images.pixels[start : start + batch], images.labels[start : start + batch])


def load_data(name: str, size: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: "digits" (scikit-learn's handwritten digits, nothing to download), "cifar10" (downloaded by torchvision
            into data/), or a folder: with train/ and test/ (or val/) image folders, or with `*train.npz` and
            `*test.npz` holding arrays jpeg (uint8, all files end to end), offset (int64 [N+1]) and label (uint8 [N]).
        size: side of the square images in pixels; default 32, for image folders 224.

    Raises:
        DataError: unknown name, nothing there, or files that cannot be read.
    """
    if size is not None and size < 8:
        raise DataError(f"image size {size} given; expected at least 8 pixels.")
    if name == "digits":
        return replace(_split(name, *_digits(size or 32)), mirrored=False)
    if name == "cifar10":
        return _split(name, *_cifar10(size or 32))
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(f"data '{name}' is unknown; expected digits, cifar10, or a folder with train and test images.")
    if list(folder.glob("*train.npz")):
        return _split(folder.name, *(_npz(folder, part, size or 32) for part in ("train", "test")))
    return _split(folder.name, *_image_folders(folder, size or 224))


def _split(name: str, train: Images, test: Images) -> Dataset:
    """Cut the sub-validation set from the training images, at most a fifth: the same ones whatever the run's seed."""
    classes = _checked_classes(name, train, test)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held: list[Tensor] = []
    for label in range(classes):
        members = order[train.labels[order] == label]
        wanted = max(SUBVAL_PER_CLASS, SUBVAL_IMAGES // classes)
        held.append(members[: max(1, min(wanted, len(members) // 5))])
    keep = torch.ones(len(train), dtype=torch.bool)
    keep[torch.cat(held)] = False
    kept = train.subset(keep.nonzero().squeeze(1))
    sample = kept.pixels[:: max(1, len(kept) // 10_000)].float() / 255
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-3)
    return Dataset(name, classes, kept, train.subset(torch.cat(held)), test, mean, std)


def _checked_classes(name: str, train: Images, test: Images) -> int:
    """How many there are; raises DataError unless training images show every one twice, and test images no others."""
    if not len(train) or not len(test):
        raise DataError(f"data '{name}' has {len(train)} training and {len(test)} test images; expected some of both.")
    counts = torch.bincount(train.labels)
    if len(counts) < 2 or counts.min() < 2:
        raise DataError(
            f"data '{name}' has {len(counts)} classes of {counts.min()} training images and more; expected at least two "
            "classes of two images, one of which ranks structures."
        )
    if test.labels.max() >= len(counts):
        raise DataError(f"data '{name}' has test images of class {test.labels.max()}, but no training images of it.")
    return len(counts)


def _digits(size: int) -> tuple[Images, Images]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(gray, size=(size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images = Images(pixels.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target).long())
    every_fifth = torch.arange(len(images)) % 5 == 0
    return images.subset((~every_fifth).nonzero().squeeze(1)), images.subset(every_fifth.nonzero().squeeze(1))


def _cifar10(size: int) -> tuple[Images, Images]:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10("data", train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded ({error}); put it under data/, or give a folder with *train.npz and *test.npz."
        ) from error
    train, test = (
        Images(_resized(torch.from_numpy(part.data).permute(0, 3, 1, 2), size), torch.tensor(part.targets)) for part in parts
    )
    return train, test


def _npz(folder: Path, part: str, size: int) -> Images:
    from PIL import Image

    files = sorted(folder.glob(f"*{part}.npz"))
    if len(files) != 1:
        raise DataError(f"'{folder}' holds {len(files)} files named *{part}.npz; expected exactly one.")
    try:
        with np.load(files[0], allow_pickle=False) as archive:
            jpeg, offset, label = archive["jpeg"].tobytes(), archive["offset"], archive["label"]
        encoded = (io.BytesIO(jpeg[start:end]) for start, end in itertools.pairwise(offset))
        decoded = [np.asarray(Image.open(file).convert("RGB")) for file in encoded]
        pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"'{files[0]}' cannot be read: {error}; expected arrays jpeg, offset and label.") from error
    return Images(_resized(pixels, size), torch.from_numpy(label.astype(np.int64)))


def _image_folders(folder: Path, size: int) -> tuple[Images, Images]:
    """Training and test images; classes are named by the training folder, in alphabetical order."""
    train, test = _image_folder(folder, ("train",), size), _image_folder(folder, ("test", "val"), size)
    if unknown := sorted(set(test.classes) - set(train.classes)):
        raise DataError(
            f"'{test.root}' holds classes that '{train.root}' lacks: {', '.join(unknown)}; expected the same names."
        )
    return _decoded(train, train.classes), _decoded(test, train.classes)


def _image_folder(folder: Path, names: Sequence[str], size: int) -> ImageFolder:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise DataError(f"'{folder}' has neither *train.npz nor a sub-folder {' or '.join(names)}/ of image folders.")
    try:
        return ImageFolder(str(found), Compose([Resize(size), CenterCrop(size), PILToTensor()]))
    except OSError as error:
        raise DataError(f"images under '{found}' cannot be read: {error}") from error


def _decoded(images: ImageFolder, classes: Sequence[str]) -> Images:
    numbers = torch.tensor([classes.index(name) for name in images.classes])
    try:
        pixels, labels = zip(*images, strict=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"images under '{images.root}' cannot be read: {error}") from error
    return Images(torch.stack(pixels), numbers[list(labels)])


def _resized(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-1] == size:
        return pixels.contiguous()
    parts = [F.interpolate(p.float(), size=(size, size), mode="bilinear", antialias=True) for p in pixels.split(4096)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])

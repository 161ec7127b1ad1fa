"""Where images come from: data sets by name, archives, and folders of image files."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.decoded import ImageFiles, Stage
from pruning.images import DataError, Images

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder


class Source(Protocol):
    """Images of side `size` with int64 `labels` [N], loaded or not."""

    @property
    def size(self) -> int: ...

    @property
    def labels(self) -> Tensor: ...

    def subset(self, index: Tensor) -> Images:
        """Those of `index` (int64[M]) in its order."""
        ...


def digits(size: int) -> tuple[Images, Images]:
    """scikit-learn's handwritten digits, training and test images of side `size`; nothing to download."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    gray = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(gray, size=(size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images = Images(pixels.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(scans.target).long())
    every_fifth = torch.arange(len(images)) % 5 == 0
    return images.subset((~every_fifth).nonzero().squeeze(1)), images.subset(every_fifth.nonzero().squeeze(1))


def cifar10(size: int) -> tuple[Images, Images]:
    """CIFAR-10 from data/, downloaded by torchvision where it is not there."""
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


def archives(folder: Path, size: int) -> tuple[Images, Images]:
    """Those of `*train.npz` and `*test.npz` in `folder`."""
    train, test = (_archive(folder, part, size) for part in ("train", "test"))
    return train, test


def _archive(folder: Path, part: str, size: int) -> Images:
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


def _resized(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-1] == size:
        return pixels.contiguous()
    parts = [F.interpolate(p.float(), size=(size, size), mode="bilinear", antialias=True) for p in pixels.split(4096)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def image_folders(folder: Path, size: int, stage: Stage) -> tuple[ImageFiles, ImageFiles]:
    """Those under train/ and test/ (or val/) of `folder`; classes are named by the training folder, in alphabetical order."""
    train, test = _image_folder(folder, ("train",)), _image_folder(folder, ("test", "val"))
    if unknown := sorted(set(test.classes) - set(train.classes)):
        raise DataError(
            f"'{test.root}' holds classes that '{train.root}' lacks: {', '.join(unknown)}; expected the same names."
        )
    files = partial(_files, classes=train.classes, size=size, stage=stage)
    return files(f"{folder.name}-train", train), files(f"{folder.name}-test", test)


def _image_folder(folder: Path, names: Sequence[str]) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise DataError(f"'{folder}' has neither *train.npz nor a sub-folder {' or '.join(names)}/ of image folders.")
    try:
        return ImageFolder(str(found))
    except OSError as error:
        raise DataError(f"images under '{found}' cannot be read: {error}") from error


def _files(name: str, listed: ImageFolder, classes: Sequence[str], size: int, stage: Stage) -> ImageFiles:
    number = {label: place for place, label in enumerate(classes)}
    labels = torch.tensor([number[listed.classes[target]] for target in listed.targets])
    return ImageFiles(name, str(listed.root), [path for path, _ in listed.samples], labels, size, stage)


NAMED: Mapping[str, Callable[[int], tuple[Images, Images]]] = {"digits": digits, "cifar10": cifar10}
"""Training and test images of a given side, by name."""

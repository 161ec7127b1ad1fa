"""Training images as they are shown: part of each at random, and maybe mirrored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PHOTO = 96
"""Side in pixels from which on images are taken for photos, in which things are of any size."""

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of a photo that a crop has, and width over height of it (Szegedy et al. 2015, section 6, as torchvision's defaults)."""


def augmented(images: Tensor, generator: torch.Generator, mirrored: bool) -> Tensor:
    """float32 [N, 3, S, S], channels last, of images of that shape: of photos random crops, brought to their size, of smaller
    ones the same shifted by up to an eighth of their side and continued by reflection; every second one `mirrored`, if any."""
    count, size = len(images), images.shape[2]
    rows, columns = (_cropped if size >= PHOTO else _shifted)(count, size, generator)
    if mirrored:
        flip = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    return _sampled(images, *(places.to(images.device, non_blocking=True) for places in (rows, columns)))


def _shifted(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and columns float32 [N, S] of each image from which the result is taken."""
    reach = size // 8
    first_row, first_column = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator)
    return first_row + torch.arange(float(size)), first_column + torch.arange(float(size))


def _cropped(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same of crops; a crop that would be larger than the image ends at its sides."""
    area = torch.empty(count, 1).uniform_(*AREA, generator=generator)
    aspect = torch.empty(count, 1).uniform_(*torch.tensor(ASPECT).log().tolist(), generator=generator).exp()
    height, width = (side.sqrt().clamp(max=1) * size for side in (area / aspect, area * aspect))
    top, left = torch.rand(2, count, 1, generator=generator)
    middles = (torch.arange(size) + 0.5) / size
    return (top * (size - height) + middles * height - 0.5, left * (size - width) + middles * width - 0.5)


def _sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images [N, C, S, S] at rows × columns, float32 [N, S] each, linear in between and reflected beyond their sides."""
    size = images.shape[2]
    y, x = (places * (2 / (size - 1)) - 1 for places in (rows, columns))
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return sampled.contiguous(memory_format=torch.channels_last)

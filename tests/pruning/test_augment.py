"""What part of an image is shown, read off images whose pixels say where they lie."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.augment import augmented


def places(count: int, size: int, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns, [N, S] each, that `augmented` takes from images of that size."""
    rows, columns = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    images = torch.stack([rows, columns, rows]).expand(count, -1, -1, -1)
    shown = augmented(images, torch.Generator().manual_seed(0), mirrored)
    assert shown.shape == (count, 3, size, size)
    torch.testing.assert_close(shown[:, 0], shown[:, 0, :, :1].expand(-1, -1, size), atol=1e-2, rtol=0)
    torch.testing.assert_close(shown[:, 1], shown[:, 1, :1].expand(-1, size, -1), atol=1e-2, rtol=0)
    return shown[:, 0, :, 0], shown[:, 1, 0]


@pytest.mark.parametrize("mirrored", [False, True])
def test_small_images_are_those_of_shifted_windows_in_a_reflected_one(mirrored: bool) -> None:
    pixels, reach = torch.arange(24.0).expand(1, 1, 24), 3
    windows = F.pad(pixels, (reach, reach), mode="reflect").flatten().unfold(0, 24, 1)
    rows, columns = places(300, 24, mirrored)
    nearest = [torch.cdist(found, torch.cat([windows, windows.flip(1)])).min(1) for found in (rows, columns)]
    assert all(away.max() < 1e-2 for away, _ in nearest)
    assert set(nearest[0][1].tolist()) == set(range(2 * reach + 1))
    assert set(nearest[1][1].tolist()) == set(range((2 * reach + 1) * (1 + mirrored)))


def test_photos_are_crops_of_any_size_and_place() -> None:
    rows, columns = places(2000, 96, mirrored=True)
    steps = [found.diff(dim=1)[:, 8:-8] for found in (rows, columns)]  # near the sides pixels are reflected
    assert all((step.amax(1) - step.amin(1)).max() < 1e-2 for step in steps)
    height, width = (step.mean(1).abs() for step in steps)
    area, aspect = height * width, width / height
    assert area.min() > 0.075
    assert area.max() < 1.005
    assert area.mean() == pytest.approx(0.52, abs=0.03)  # a little below (0.08 + 1) / 2, since they end at the sides
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    assert (steps[1].mean(1) < 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert (steps[0] > 0).all()
    left, right = columns.amin(1), columns.amax(1)
    assert left.min() < 1
    assert left.max() > 50
    assert right.max() > 94
    middles = (left + right) / 2
    assert middles.mean() == pytest.approx(47.5, abs=1)


def test_one_seed_shows_the_same() -> None:
    images = torch.rand(8, 3, 96, 96)
    first, second, other = (augmented(images, torch.Generator().manual_seed(seed), True) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

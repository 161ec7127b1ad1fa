"""Image files, decoded once: into one file of pixels that is mapped, so that there may be more of them than memory holds."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from pruning.images import DataError, Images

DECODED = Path("data/decoded")
"""Where the files of pixels are kept."""

CHUNK = 256
"""Images decoded and written at a time."""

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""How work that takes long is shown: given its title and the number of its steps, then called with how many are done."""


@contextmanager
def unseen(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A stage that nobody looks at."""
    yield lambda done: None


@dataclass(frozen=True)
class ImageFiles:
    """Images [N, 3, S, S] of side `size` that are still files: `paths` under `root`, with int64 `labels` [N]."""

    name: str
    root: str
    paths: Sequence[str]
    labels: Tensor
    size: int
    stage: Stage

    def subset(self, index: Tensor) -> Images:
        """Those of `index` (int64[M]) in its order, resized by their shorter side and cropped in the middle.

        They are decoded where no file of pixels is there for just these files as they are; what was interrupted goes on.
        The file is mapped, not read: what is not in memory comes from it when needed.

        Raises:
            DataError: a file that is no image, or no room for the pixels.
        """
        paths = [self.paths[number] for number in index.tolist()]
        shape = (len(paths), 3, self.size, self.size)
        try:
            kept = DECODED / f"{self.name}-{self.size}px-{self._digest(paths)}.uint8"
            kept.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{kept}.lock"):
                if not kept.exists():
                    self._decode(paths, kept)
        except OSError as error:
            raise DataError(f"{self.name} cannot be decoded to '{DECODED}': {error}.") from error
        return Images(torch.from_numpy(np.memmap(kept, np.uint8, "r+", shape=shape)), self.labels[index])

    def _digest(self, paths: Sequence[str]) -> str:
        """Changes with what is in the files or with their order."""
        known = hashlib.sha256()
        for path in paths:
            status = os.stat(path)
            known.update(f"{path.removeprefix(self.root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return known.hexdigest()[:8]

    def _decode(self, paths: Sequence[str], kept: Path) -> None:
        part, image_bytes = kept.with_suffix(".part"), 3 * self.size**2
        broken: list[str] = []
        shown = self.stage(f"decoding {self.name}", len(paths))
        with part.open("ab") as file, shown as update, ThreadPoolExecutor() as threads:
            done = file.tell() // image_bytes
            file.truncate(done * image_bytes)
            _require_room(kept.parent, (len(paths) - done) * image_bytes)
            for start in range(done, len(paths), CHUNK):
                update(start)
                for pixels in threads.map(partial(_pixels, size=self.size), paths[start : start + CHUNK]):
                    if isinstance(pixels, str):
                        broken.append(pixels)
                    elif not broken:
                        file.write(pixels.numpy().tobytes())
            update(len(paths))
        if broken:
            part.unlink()
            raise DataError("\n  ".join([f"files of {self.name} are no images; mend or remove them:", *broken]))
        part.replace(kept)


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the decoded images need {needed / 1e9:.1f} GB of '{folder}', where {free / 1e9:.1f} GB are free; make it a link "
            "to a larger disk, or give a smaller --image-size."
        )


def _pixels(path: str, size: int) -> Tensor | str:
    """uint8 [3, size, size], or what is wrong with the file."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

    try:
        return pil_to_tensor(center_crop(resize(default_loader(path), [size]), [size, size]))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises, by the kind of file
        return f"{path}: {error}"

"""Checkpoints: safetensors with a JSON header. Data, never code; replaced atomically; refused by what they do not fit."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latency.errors import MillipruneError

KIND_KEY = "milliprune_checkpoint"
FORMAT_VERSION = "1"


class CheckpointError(MillipruneError):
    """A checkpoint that cannot be read, written, or used here."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], identity: Mapping[str, Any], step: int) -> None:
    """Write `tensors` with what they belong to (`identity`, JSON values) and how far training is."""
    metadata = {KIND_KEY: FORMAT_VERSION, "identity": json.dumps(dict(identity), sort_keys=True), "step": str(step)}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, scratch, metadata)
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint '{path}': {error}. Choose another --out.") from error


def _remove_leftovers(path: Path) -> None:
    """Files that a killed process was writing: they are as large as checkpoints."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink()


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
    """(tensors, step) of the checkpoint at `path`.

    Raises:
        CheckpointError: unreadable, not ours, or made for something else: names the first entry that differs.
    """
    try:
        with uninterrupted(), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require(path, metadata, identity)
            return {name: file.get_tensor(name) for name in file.keys()}, int(metadata["step"])  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file ({error}); remove it to start over.") from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """ctrl-C waits until the end. What safetensors reads it makes tensors of in Python, and a KeyboardInterrupt that comes then
    leaves it as a ValueError."""
    raises_here = threading.current_thread() is threading.main_thread()
    if not raises_here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def _require(path: Path, metadata: Mapping[str, str], identity: Mapping[str, Any]) -> None:
    if metadata.get(KIND_KEY) != FORMAT_VERSION:
        found = metadata.get(KIND_KEY)
        what = f"has checkpoint format {found}" if found else "is a safetensors file, but not a Milliprune checkpoint"
        raise CheckpointError(f"'{path}' {what}; expected format {FORMAT_VERSION}.")
    stored = json.loads(metadata["identity"])
    expected = json.loads(json.dumps(dict(identity)))
    for key in sorted(set(stored) | set(expected)):
        if stored.get(key) != expected.get(key):
            raise CheckpointError(
                f"the checkpoint '{path}' belongs to {key} {stored.get(key)!r}, this run has {expected.get(key)!r}; "
                "remove it, or give another path."
            )

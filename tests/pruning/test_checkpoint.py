"""Checkpoints while somebody presses ctrl-C."""

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from pruning.checkpoint import load_checkpoint, save_checkpoint, uninterrupted

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(4)}


class Pressed:
    """A trace that presses it when so many lines of PyTorch's Python have run, which safetensors calls."""

    def __init__(self, lines: int) -> None:
        self.left = lines

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename == torch.storage.__file__:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Where ctrl-C raises KeyboardInterrupt: what a script starts in the background begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
def test_ctrl_c_while_it_is_read_is_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, TENSORS, {"kind": "test"}, step=3)
    for lines in range(1, 20):  # 11 run for every tensor
        sys.settrace(pressed := Pressed(lines))
        try:
            with pytest.raises(KeyboardInterrupt):
                load_checkpoint(path, {"kind": "test"})
        finally:
            sys.settrace(None)
        assert pressed.left == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    tensors, step = load_checkpoint(path, {"kind": "test"})
    assert step == 3
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_who_handles_ctrl_c_otherwise_goes_on_doing_so() -> None:
    """Another handler stays, and so does it in a thread, where nobody may set one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    entered: list[bool] = []

    def enter() -> None:
        with uninterrupted():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered

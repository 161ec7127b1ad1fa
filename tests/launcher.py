"""Commands as processes of their own, forked from one that has loaded the libraries: loading them takes longest."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import torch

from latency import alignment, coverage
from latency.devices import clock, local
from latency.measuring.measurement import Protocol
from latency.measuring.protocol import Rounds

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["search.pipeline", "optuna", "onnx", "onnxruntime", "sklearn", "torchvision", "typer"])


STRUCTURES = 24
"""Of each network that commands measure, unless told otherwise: a seventh of what they do for a user."""

ALIGNMENT = 8
"""What every command finds its device to be fast with."""


class Launched:
    """`python` with `arguments` (`-m module …` or `script.py …`), running in `folder` with so much more in its environment."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._streams = tempfile.TemporaryDirectory()
        self._process = FORKS.Process(target=_run, args=(list(arguments), folder, environment or {}, *self._files()))
        self._process.start()

    def stopped(self, how: signal.Signals, seconds: float) -> CompletedProcess[str]:
        """Send it a signal after so long, and wait for its end."""
        self._process.join(seconds)
        if self._process.is_alive():
            os.kill(self._process.pid, how)
        return self.ended()

    def ended(self) -> CompletedProcess[str]:
        self._process.join()
        out, err = (file.read_text() for file in self._files())
        self._streams.cleanup()
        return CompletedProcess([], self._process.exitcode, out, err)

    def _files(self) -> tuple[Path, Path]:
        return Path(self._streams.name, "out"), Path(self._streams.name, "err")


def command(arguments: Sequence[str], folder: Path, code: int = 0) -> CompletedProcess[str]:
    """What a command printed that ended with `code`, and never with a traceback."""
    done = Launched(arguments, folder).ended()
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def _measure_lightly() -> None:
    """Few structures and rounds, all believed at once: how good a table is, is not what commands are tested for."""
    coverage.SHORT_STRUCTURES = STRUCTURES
    local.Protocol = partial(Protocol, rounds=4)  # type: ignore[misc, assignment]
    clock.PATIENCE = 1
    Rounds.stable = lambda *_: True  # type: ignore[method-assign]
    alignment.probe = lambda device: {multiple: float(multiple < ALIGNMENT) for multiple in alignment.MULTIPLES}


def _run(arguments: list[str], folder: Path, environment: Mapping[str, str], out: Path, err: Path) -> None:
    """Become the command: its streams, folder, arguments, environment and import path."""
    for number, file in enumerate((out, err), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(environment, COLUMNS="200")
    torch.set_num_threads(1)
    _measure_lightly()
    if arguments[0] == "-m":
        sys.path.insert(0, str(folder))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")

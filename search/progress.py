"""How a run tells what it does: lines and bars in the terminal, and every line as JSON in log.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from search.report import OutputError

if TYPE_CHECKING:
    from search.genetic import Candidate

LOG_SECONDS = 1.0
"""Between two lines of one stage in log.jsonl."""


class Update(Protocol):
    """Called with how much of a stage is done, a note on how it goes, and the one number worth plotting."""

    def __call__(self, done: int, note: str = "", value: float | None = None) -> object: ...


def training_note(update: Update, step: int, loss: float) -> None:
    """How training tells a stage of its steps."""
    update(step, f"loss {loss:.3f}" if math.isfinite(loss) else "", loss)


def search_note(update: Update, done: int, best: Candidate | None) -> None:
    """How a search tells its stage of its candidates."""
    if best is not None:
        update(done, f"best loss {best.loss:.3f}, accuracy {best.accuracy:.1%}", best.loss)


class Reporter:
    """Lines on standard output, progress bars on standard error, both in `log` from when it is known.

    Lines of the log are objects: `time` (UTC), and either `said`, or `stage`, `done`, `total`, `note`, `value`.

    Args:
        quiet: no bars. silent: nothing at all, for another process speaks for this one.
    """

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.quiet, self.silent = quiet or silent, silent
        self.log: Path | None = None

    def say(self, text: str) -> None:
        """Print a line and log it."""
        if not self.silent:
            print(text, flush=True)
        self._write(said=text.strip())

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Update]:
        """A stage of `total` steps."""
        written = -math.inf

        with tqdm(total=total, desc=title, disable=self.quiet, mininterval=0.5, dynamic_ncols=True) as meter:

            def update(done: int, note: str = "", value: float | None = None) -> None:
                nonlocal written
                meter.set_postfix_str(note, refresh=False)
                meter.update(done - meter.n)
                if done == total or time.monotonic() - written > LOG_SECONDS:
                    written = time.monotonic()
                    shown = value if value is not None and math.isfinite(value) else None
                    self._write(stage=title, done=done, total=total, note=note, value=shown)

            yield update

    def _write(self, **entry: Any) -> None:
        if self.log is None or self.silent:
            return
        try:
            with self.log.open("a") as file:
                file.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write '{self.log}': {error.strerror}. Choose another --out.") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Its whole lines; what a killed run left half written is skipped."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries

"""What a run says at its end: result.json and a table for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency.errors import MillipruneError
from latency.files import write_whole


class OutputError(MillipruneError):
    """A folder or file that cannot be written, or that belongs to another run."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON, as `write_file` does."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Write atomically: a reader sees the old file or the new one. Raises OutputError where that is impossible."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}. Choose another --out.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises OutputError where the file is not JSON."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError) as error:
        raise OutputError(f"'{path}' cannot be read ({error}); remove it, or choose another --out.") from error


def versions() -> dict[str, str]:
    """Of Python and of every library that a result depends on."""
    from importlib.metadata import version

    packages = ("torch", "torchvision", "onnx", "onnxruntime", "scikit-learn", "optuna", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


COLUMNS = (
    ("network", "label", "{}"),
    ("test accuracy", "test_accuracy", "{:.2%}"),
    ("in int8", "int8_accuracy", "{:.2%}"),
    ("measured ms", "measured_ms", "{:.4g}"),
    ("predicted ms", "predicted_ms", "{:.4g}"),
    ("MACs (M)", "macs", "{:.4g}"),
    ("params (M)", "params", "{:.4g}"),
)


def result_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, aligned for reading as it stands."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_line(line, widths) for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Titles of those `COLUMNS` that any row has something for, then what they show of each row."""
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows)]
    shown = [{**row, "macs": row["macs"] / 1e6, "params": row["params"] / 1e6} for row in rows]
    lines = [["–" if (value := row.get(key)) is None else form.format(value) for _, key, form in columns] for row in shown]
    return [[title for title, _, _ in columns], *lines]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

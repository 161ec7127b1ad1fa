"""The lookup table: every structure ever measured on one device, in Parquet.

A table is a folder. Each file in it carries the schema version and the device's fingerprint in its metadata, and one
row for each measured structure, with its kernels nested: a row is whole or absent. Parts are written beside and renamed
into place, so a killed build loses at most the structures in flight; `compact` merges them.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from latency.errors import TableError
from latency.files import write_whole
from latency.graph.kernels import KERNEL_FIELDS
from latency.graph.network import Network
from latency.measuring.fingerprint import Fingerprint, difference, require_same, slug
from latency.measuring.measurement import Measurement
from latency.measuring.speed import COMPUTATION, at_speed, typical

SCHEMA_VERSION = 2
"""2026-11-24: version 1, one row a structure; version 2, the same with other kernels (see `kernels` and `protocol`)."""

_KERNEL = pa.struct(
    [("type", pa.string()), *[(name, pa.int32()) for name in KERNEL_FIELDS if name != "type"], ("ms", pa.float64())]
)
_SPEED = {"core_ms": pa.float64(), "rounds_core_ms": pa.list_(pa.float64()), "computation": pa.string()}
"""NaN for a GPU; of which fixed computation they are, which before 2026-11-29 was not written."""
_GPU_STATE = {"clock_mhz": pa.float32(), "temperature_c": pa.float32(), "throttled": pa.string()}
"""Empty for devices that are no GPU."""
_ADDED = _SPEED | _GPU_STATE
"""Columns that are absent from older files."""

_SCHEMA = pa.schema(
    [
        ("network", pa.string()),
        ("signature", pa.string()),  # Network.signature: tells apart networks of the same name
        ("input_shape", pa.list_(pa.int32())),
        ("widths", pa.list_(pa.int32())),
        ("latency_ms", pa.float64()),
        ("rounds_ms", pa.list_(pa.float64())),
        *_SPEED.items(),
        ("stable", pa.bool_()),
        ("load", pa.float32()),
        ("steal", pa.float32()),
        *_GPU_STATE.items(),
        ("measured_at", pa.timestamp("s", tz="UTC")),
        ("kernels", pa.list_(_KERNEL)),
    ]
)
StructureKey = tuple[str, tuple[int, ...]]

REFUSED = "refused.jsonl"
"""Structures that the device would not take, one a line, with the reason. Remove it to have them tried again."""


@dataclass
class LatencyTable:
    """Measured structures of one device.

    Attributes:
        path: its folder (or, read-only, a single Parquet file).
        fingerprint: of the device; every row agrees with it.
        rows: pyarrow table in the schema above, no structure twice.
    """

    path: Path
    fingerprint: Fingerprint
    rows: pa.Table

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read a table.

        Raises:
            TableError: nothing there, a truncated or foreign file, a newer schema, files of different devices.
        """
        folder = Path(path)
        files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [folder]
        if not files or not files[0].exists():
            raise TableError(f"no latency table at '{path}'; build one with: python tools/build_lut.py --device ort")
        parts = [_read_part(file) for file in files]
        for file, (fingerprint, _) in zip(files[1:], parts[1:], strict=True):
            require_same(fingerprint, parts[0][0], f"'{file}'")
        rows = pa.concat_tables([rows for _, rows in parts])
        return cls(folder, parts[0][0], _without_repeats(rows))

    @classmethod
    def open(cls, root: str | os.PathLike[str], fingerprint: Fingerprint) -> LatencyTable:
        """The table of the device with this `fingerprint` under `root`, or a new, empty one."""
        folder = Path(root) / slug(fingerprint)
        if not any(folder.glob("*.parquet")):
            return cls(folder, fingerprint, _SCHEMA.empty_table())
        table = cls.read(folder)
        require_same(table.fingerprint, fingerprint, f"the table at '{folder}'")
        return table

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def structures(self) -> pd.DataFrame:
        """One row a structure: all columns but the kernels."""
        frame: pd.DataFrame = self.rows.drop_columns(["kernels"]).to_pandas()
        return frame

    @cached_property
    def kernels(self) -> pd.DataFrame:
        """One row for each kernel of each structure: `structure` (row number in `structures`), type … ms."""
        kernels = self.rows["kernels"].combine_chunks()
        structure = np.repeat(np.arange(len(self)), np.diff(kernels.offsets.to_numpy()))
        columns = dict(zip(_KERNEL.names, kernels.flatten().flatten(), strict=True))
        return pd.DataFrame({"structure": structure} | {name: column.to_pandas() for name, column in columns.items()})

    @cached_property
    def keys(self) -> frozenset[StructureKey]:
        """(signature, widths) of every structure in the table."""
        pairs = zip(self.rows["signature"].to_pylist(), self.rows["widths"].to_pylist(), strict=True)
        return frozenset((signature, tuple(widths)) for signature, widths in pairs)

    def count(self, network: Network) -> int:
        """How many structures of `network` have been measured."""
        return sum(signature == network.signature for signature, _ in self.keys)

    @cached_property
    def core_ms(self) -> float:
        """Speed of the core that latencies are brought to: what is typical of this table (see `latency.measuring.speed`); NaN
        where nothing in it stands beside today's fixed computation."""
        return self._typical_core_ms(self.structures["computation"] == COMPUTATION)

    @cached_property
    def latency_ms(self) -> np.ndarray:
        """float64[S]: of every structure, at the table's speed."""
        latency_ms, core_ms = self.structures["latency_ms"].to_numpy(), self.structures["core_ms"]
        computation = self.structures["computation"].fillna("")
        for one in computation.unique():
            own = computation == one
            latency_ms = np.where(own, at_speed(latency_ms, core_ms, self._typical_core_ms(own)), latency_ms)
        return latency_ms

    def _typical_core_ms(self, rows: pd.Series) -> float:
        return typical(self.structures["core_ms"][rows & self.structures["stable"]])

    def latencies(self, network: Network) -> dict[tuple[int, ...], float]:
        """Widths → milliseconds at the table's speed of every structure of `network`, in the order of measurement."""
        own = (self.structures["signature"] == network.signature).to_numpy()
        widths = self.structures["widths"][own]
        return {tuple(one.tolist()): ms for one, ms in zip(widths, self.latency_ms[own].tolist(), strict=True)}

    @property
    def refused(self) -> dict[StructureKey, str]:
        """(signature, widths) of every structure that the device would not take, and why, from `REFUSED` beside the table.

        Raises:
            TableError: a line of it is not what `refuse` writes.
        """
        file = self.path / REFUSED
        if not file.exists():
            return {}
        try:
            records = [json.loads(line) for line in file.read_text().splitlines()]
            return {(one["signature"], tuple(one["widths"])): str(one["reason"]) for one in records}
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"'{file}' cannot be read ({error}); remove it, and what it lists is tried again.") from error

    def refuse(self, network: Network, widths: Iterable[int], reason: str) -> None:
        """Record that the device would not take a structure, and why."""
        file = self.path / REFUSED
        record = {
            "network": network.name, "signature": network.signature, "widths": [int(width) for width in widths],
            "reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        lines = file.read_bytes() if file.exists() else b""
        write_beside(file, lines + json.dumps(record).encode() + b"\n")

    def append(self, network: Network, widths: Sequence[Iterable[int]], measurements: Sequence[Measurement]) -> LatencyTable:
        """Write measured structures of `network` as a new part; returns the longer table.

        Raises:
            TableError: the folder cannot be written.
        """
        records = [_record(network, one, measured) for one, measured in zip(widths, measurements, strict=True)]
        part = pa.Table.from_pylist(records, schema=_SCHEMA)
        self._write(part, f"part-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}.parquet")
        return LatencyTable(self.path, self.fingerprint, pa.concat_tables([self.rows, part]))

    def compact(self) -> None:
        """Merge all parts into one file. Killed half-way it leaves repeats, which reading drops."""
        if not self.path.is_dir():
            return
        parts = sorted(self.path.glob("part-*.parquet"))
        if parts:
            merged = LatencyTable.read(self.path)
            self._write(merged.rows.combine_chunks(), "table.parquet")
            for part in parts:
                part.unlink()

    def _write(self, rows: pa.Table, name: str) -> None:
        metadata = {"milliprune_schema": str(SCHEMA_VERSION), "milliprune_fingerprint": json.dumps(self.fingerprint)}
        sink = pa.BufferOutputStream()
        pq.write_table(rows.replace_schema_metadata(metadata), sink, compression="zstd")
        write_beside(self.path / name, sink.getvalue().to_pybytes())


def write_beside(file: Path, content: bytes) -> None:
    """Write a file of a table's folder, wholly or not at all.

    Raises:
        TableError: the folder cannot be written.
    """
    with _writing(file.parent):
        write_whole(file, content)


def make_folder(folder: Path) -> None:
    """Of a table: before long measurements, whose results could not be kept.

    Raises:
        TableError: it cannot be made.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TableError(f"cannot write the table at '{folder}': {error.strerror}. Choose another --out.") from error


def find_table(device: str, root: str | os.PathLike[str], fingerprint: Fingerprint | None = None) -> LatencyTable:
    """The table of `device` under `root`: the one with this machine's `fingerprint`, else the only one, with a warning.

    Raises:
        TableError: none, or several of which none is this machine's.
    """
    folders = [folder for folder in sorted(Path(root).glob(f"{device}-*")) if any(folder.glob("*.parquet"))]
    tables = [table for table in map(LatencyTable.read, folders) if table.fingerprint.get("device") == device]
    for table in tables:
        if table.fingerprint == fingerprint:
            return table
    if len(tables) == 1:
        _warn_of_another_device(tables[0], fingerprint)
        return tables[0]
    there = ", ".join(f"'{table.path}'" for table in tables) or "none"
    raise TableError(
        f"no single latency table for device '{device}' under '{root}' (found: {there}); give its path, or build one "
        f"for this machine with: python tools/build_lut.py --device {device}"
    )


def _warn_of_another_device(table: LatencyTable, fingerprint: Fingerprint | None) -> None:
    differs = difference(table.fingerprint, fingerprint) if fingerprint else None  # None: cannot be opened here anyway
    if differs:
        warnings.warn(
            f"the only table, '{table.path}', was measured {differs}. Give its path to say that it is meant, or build one "
            "for this machine with: python tools/build_lut.py",
            stacklevel=4,
        )


def _read_part(file: Path) -> tuple[Fingerprint, pa.Table]:
    try:
        handle = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise TableError(f"'{file}' is not a whole Parquet file ({error}); remove it and build again.") from error
    metadata: Mapping[bytes, bytes] = handle.schema_arrow.metadata or {}
    if b"milliprune_schema" not in metadata or b"milliprune_fingerprint" not in metadata:
        raise TableError(f"'{file}' is a Parquet file, but not a Milliprune latency table.")
    version = int(metadata[b"milliprune_schema"])
    if version > SCHEMA_VERSION:
        raise TableError(f"'{file}' has schema version {version}, this Milliprune reads {SCHEMA_VERSION}; upgrade it.")
    if version < SCHEMA_VERSION:
        raise TableError(f"'{file}' has the older schema version {version}; remove it and build the table again.")
    try:
        rows = _with_all_columns(handle.read().replace_schema_metadata(None)).select(_SCHEMA.names).cast(_SCHEMA)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise TableError(f"'{file}' cannot be read as a latency table ({error}); remove it and build again.") from error
    return json.loads(metadata[b"milliprune_fingerprint"]), rows


def _with_all_columns(rows: pa.Table) -> pa.Table:
    for name, kind in _ADDED.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def _without_repeats(rows: pa.Table) -> pa.Table:
    keys = zip(rows["signature"].to_pylist(), rows["widths"].to_pylist(), strict=True)
    first = {(signature, tuple(widths)): index for index, (signature, widths) in reversed(list(enumerate(keys)))}
    return rows if len(first) == rows.num_rows else rows.take(sorted(first.values()))


def _record(network: Network, widths: Iterable[int], measured: Measurement) -> dict[str, Any]:
    return {
        "network": network.name,
        "signature": network.signature,
        "input_shape": list(network.input_shape),
        "widths": [int(width) for width in widths],
        "latency_ms": measured.latency_ms,
        "rounds_ms": measured.rounds_ms.tolist(),
        "core_ms": measured.core_ms,
        "rounds_core_ms": measured.rounds_core_ms.tolist(),
        "computation": COMPUTATION,
        "stable": measured.stable,
        "load": measured.conditions.load,
        "steal": measured.conditions.steal,
        **(asdict(measured.conditions.gpu) if measured.conditions.gpu else {}),
        "measured_at": datetime.now(UTC),
        "kernels": measured.kernels.to_dict("records"),
    }

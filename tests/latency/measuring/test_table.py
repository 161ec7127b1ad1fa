"""The table: what goes in comes out, what does not belong stays out, and a killed build loses nothing."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latency
from latency.build import BLOCK, build_table
from latency.coverage import quick_plan
from latency.measuring.fingerprint import GpuState
from latency.measuring.table import SCHEMA_VERSION, LatencyTable, find_table


@pytest.fixture
def plan(tiny_network) -> np.ndarray:
    return quick_plan(tiny_network, 10)


@pytest.fixture
def table(tmp_path, lawful, tiny_network, plan) -> LatencyTable:
    return build_table(lawful, tiny_network, plan, LatencyTable.open(tmp_path, lawful.fingerprint()))


def test_rows_come_back_as_they_were_measured(table, lawful, tiny_network, plan) -> None:
    again = LatencyTable.read(table.path)
    assert again.fingerprint == lawful.fingerprint()
    assert again.keys == {(tiny_network.signature, tuple(map(int, widths))) for widths in plan}
    measured = lawful.measure(tiny_network.onnx(plan[3]))
    row = next(i for i, widths in enumerate(again.structures["widths"]) if tuple(widths) == tuple(plan[3]))
    assert again.structures["latency_ms"][row] == pytest.approx(measured.latency_ms)
    assert again.structures["rounds_ms"][row].tolist() == pytest.approx(measured.rounds_ms.tolist())
    kernels = again.kernels[again.kernels["structure"] == row].drop(columns="structure").reset_index(drop=True)
    pd.testing.assert_frame_equal(kernels, measured.kernels, check_dtype=False)


def test_one_file_is_left_and_building_again_measures_nothing(table, lawful, tiny_network, plan, monkeypatch) -> None:
    assert [file.name for file in table.path.iterdir()] == ["table.parquet"]
    monkeypatch.setattr(lawful, "measure_all", lambda *_: pytest.fail("measured again"))
    steps: list[int] = []
    opened = LatencyTable.open(table.path.parent, lawful.fingerprint())
    again = build_table(lawful, tiny_network, plan, opened, progress=steps.append)
    assert len(again) == len(table)
    assert sum(steps) == len(plan)


def test_a_killed_build_keeps_every_finished_block(tmp_path, lawful, tiny_network, plan, monkeypatch) -> None:
    real, calls = lawful.measure_all, []

    def killed(models, protocol):
        calls.append(len(models))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(models, protocol)

    monkeypatch.setattr(lawful, "measure_all", killed)
    with pytest.raises(KeyboardInterrupt):
        build_table(lawful, tiny_network, plan, LatencyTable.open(tmp_path, lawful.fingerprint()))
    kept = LatencyTable.open(tmp_path, lawful.fingerprint())
    assert len(kept) == BLOCK
    (kept.path / ".part-half.parquet.1").write_bytes(b"PAR1 cut off")  # what a kill during writing leaves
    done = build_table(lawful, tiny_network, plan, kept)
    assert len(LatencyTable.read(done.path)) == len(plan)
    assert sum(calls) == len(plan) + calls[1]  # only the block in flight was measured twice


def test_what_a_gpu_said_is_kept_and_older_files_say_nothing(tmp_path, lawful_type, tiny_network, plan) -> None:
    class Hot(lawful_type):
        def observed(self) -> GpuState:
            return GpuState(clock_mhz=1410.0, temperature_c=None, throttled="SwPowerCap")

    table = build_table(Hot(), tiny_network, plan, LatencyTable.open(tmp_path, Hot().fingerprint()))
    row = LatencyTable.read(table.path).structures.iloc[0]
    assert row["clock_mhz"] == 1410.0
    assert pd.isna(row["temperature_c"])
    assert row["throttled"] == "SwPowerCap"
    older = pq.read_table(table.path / "table.parquet").drop_columns(["clock_mhz", "temperature_c", "throttled"])
    pq.write_table(older, table.path / "table.parquet")
    assert LatencyTable.read(table.path).structures["clock_mhz"].isna().all()


def test_repeats_left_by_a_kill_during_compaction_are_dropped(table) -> None:
    (table.path / "part-x.parquet").write_bytes((table.path / "table.parquet").read_bytes())
    assert len(LatencyTable.read(table.path)) == len(table)
    LatencyTable.read(table.path).compact()
    assert len(list(table.path.glob("*.parquet"))) == 1
    assert len(LatencyTable.read(table.path)) == len(table)


def stamped(table: LatencyTable, **changes: str) -> bytes:
    """The table's file with other metadata."""
    rows = pq.read_table(table.path / "table.parquet")
    sink = pa.BufferOutputStream()
    metadata = {**rows.schema.metadata, **{key.encode(): value for key, value in changes.items()}}
    pq.write_table(rows.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def test_another_devices_rows_are_refused_by_name_and_both_values(table, lawful) -> None:
    other = {**lawful.fingerprint(), "threads": "2"}
    (table.path / "part-other.parquet").write_bytes(stamped(table, milliprune_fingerprint=json.dumps(other)))
    with pytest.raises(latency.TableError, match=r"threads '1'.*'2'"):
        LatencyTable.read(table.path)


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_another_schema_is_refused(table, version: int) -> None:
    (table.path / "table.parquet").write_bytes(stamped(table, milliprune_schema=str(version)))
    with pytest.raises(latency.TableError, match=r"upgrade|build the table again"):
        LatencyTable.read(table.path)


def test_a_truncated_file_is_refused(table) -> None:
    file = table.path / "table.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(latency.TableError, match="not a whole Parquet file"):
        LatencyTable.read(table.path)


def test_a_foreign_file_is_refused(tmp_path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(latency.TableError, match="not a Milliprune latency table"):
        LatencyTable.read(tmp_path)


def test_our_mark_on_a_foreign_file_does_not_help(table) -> None:
    metadata = pq.read_schema(table.path / "table.parquet").metadata
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(metadata), table.path / "table.parquet")
    with pytest.raises(latency.TableError, match="cannot be read as a latency table"):
        LatencyTable.read(table.path)


def test_an_unwritable_folder_is_a_clear_error(tmp_path, lawful, tiny_network, plan) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(latency.TableError, match="cannot write"):
        build_table(lawful, tiny_network, plan[:1], LatencyTable.open(tmp_path / "file", lawful.fingerprint()))


def test_tables_are_found_by_device_name(table, tmp_path, lawful) -> None:
    assert len(find_table("lawful", tmp_path)) == len(table)
    with pytest.raises(latency.TableError, match=r"found: none.*build_lut"):
        find_table("ort", tmp_path)
    other = {**lawful.fingerprint(), "threads": "2"}
    with pytest.warns(UserWarning, match="measured with threads '1', this is '2'"):
        assert len(find_table("lawful", tmp_path, other)) == len(table)
    twin = LatencyTable.open(tmp_path, other)
    twin.path.mkdir()
    (twin.path / "table.parquet").write_bytes(stamped(table, milliprune_fingerprint=json.dumps(other)))
    assert find_table("lawful", tmp_path, other).fingerprint == other
    with pytest.raises(latency.TableError, match="no single latency table"):
        find_table("lawful", tmp_path)

"""What a run writes and prints."""

import pytest

from search.report import OutputError, read_json, result_table, write_json


def test_json_comes_back_and_replaces_the_old_file(tmp_path) -> None:
    path = tmp_path / "a" / "x.json"
    for content in ({"a": [1, 2.5]}, {"b": None}):
        write_json(path, content)
        assert read_json(path) == content
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_what_cannot_be_written_or_read_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("{")
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(OutputError, match="cannot be read"):
            read_json(path)


def test_the_table_lines_up() -> None:
    row = {"test_accuracy": 0.98765, "measured_ms": 0.123456, "predicted_ms": 12.3456, "macs": 11_600_000, "params": 3_217_226}
    lines = result_table([{"label": "unpruned", **row}, {"label": "a", **row}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "unpruned",
        "98.77%",
        "0.1235",
        "12.35",
        "11.6",
        "3.217",
    ]


def test_the_table_has_a_column_for_int8_where_a_network_is_exported_so() -> None:
    row = {"label": "a", "test_accuracy": 0.9, "measured_ms": 1, "predicted_ms": 1, "macs": 1, "params": 1}
    lines = result_table([row, {**row, "int8_accuracy": 0.85}]).splitlines()
    assert [line.split("|")[3].strip() for line in lines[:1] + lines[2:]] == ["in int8", "–", "85.00%"]

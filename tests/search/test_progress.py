"""What a run logs."""

import json

import pytest

from search.progress import Reporter, read_log
from search.report import OutputError


def test_lines_and_stages_are_logged_as_json(tmp_path, capsys) -> None:
    reporter = Reporter(quiet=True)
    reporter.say("before there is a log")
    reporter.log = tmp_path / "log.jsonl"
    reporter.say("hello")
    with reporter.bar("training", 3) as update:
        for done in range(4):
            update(done, f"loss {done}", float("nan") if done == 0 else done / 2)
    lines = read_log(reporter.log)
    assert [line.get("said", line.get("done")) for line in lines] == ["hello", 0, 3]
    assert lines[1]["value"] is None
    assert lines[2] | {"time": ""} == {"time": "", "stage": "training", "done": 3, "total": 3, "note": "loss 3", "value": 1.5}
    assert capsys.readouterr().out == "before there is a log\nhello\n"


def test_half_a_line_is_skipped(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"said": "a"}) + '\n{"sai')
    assert read_log(tmp_path / "log.jsonl") == [{"said": "a"}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path) -> None:
    reporter = Reporter()
    reporter.log = tmp_path / "missing" / "log.jsonl"
    with pytest.raises(OutputError, match="cannot write"):
        reporter.say("x")

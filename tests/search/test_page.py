"""report.html: whole, offline, and with the run's own numbers in it."""

import json
import re
import shutil
import subprocess

import pytest

from search.page import page


@pytest.fixture
def result() -> dict:
    row = {"test_accuracy": 0.9, "measured_ms": 1.25, "predicted_ms": 1.2, "macs": 1_000_000, "params": 2_000_000}
    member = {"widths": [8, 16], "accuracy": 0.81, "loss": 0.9, "predicted_ms": 0.7, "measured_ms": 0.73}
    return {
        "config": {
            "network": "<net>",
            "device": "ort",
            "precision": "fp32",
            "threads": 1,
            "batch": 1,
            "data": "digits",
            "seed": 0,
        },
        "budget": {"latency": "0.8 ms"},
        "genes": ["stem", "block"],
        "networks": [{"label": "unpruned", "widths": [16, 32], **row}, {"label": "winner", "widths": [8, 16], **row}],
        "finalists": [member],
        "search": {"front": [{"widths": [8, 16], "accuracy": 0.8, "loss": 0.9, "predicted_ms": 0.7}]},
        "kernels": {"kernels": ["conv", "gemm"], "unpruned_ms": [1.0, 0.2], "pruned_ms": [0.5, 0.1]},
    }


LOG = [
    {"time": "t", "said": "hello"},
    {"time": "t", "stage": "training winner", "done": 1, "total": 4, "note": "", "value": 2.125},
    {"time": "t", "stage": "genetic search", "done": 4, "total": 4, "note": "", "value": 0.8},
]


def test_it_is_one_file_that_loads_nothing(result) -> None:
    text = page(result, LOG)
    assert text.startswith("<!doctype html>")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)
    assert "&lt;net&gt; within latency 0.8 ms" in text
    assert "<net>" not in text


def test_every_picture_draws_the_runs_numbers(result) -> None:
    drawn = re.findall(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*?\]),\s*\{', page(result, LOG), re.DOTALL)
    assert len(drawn) == 5
    front, predictions, widths, kernels, curves = (json.loads(traces) for traces in drawn)
    assert front[1]["x"] == [0.73]
    assert predictions[2]["y"] == [1.25, 1.25]
    assert [trace["y"] for trace in widths] == [[16, 32], [8, 16]]
    assert [trace["y"] for trace in kernels] == [[1.0, 0.2], [0.5, 0.1]]
    assert {trace["name"]: trace["y"] for trace in curves} == {"training winner": [2.125], "genetic search": [0.8]}


def test_a_run_without_finalists_or_log_is_drawn_too(result) -> None:
    assert "Plotly.newPlot" in page({**result, "finalists": []}, [])


def test_a_real_browser_draws_it_without_an_error(result, tmp_path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome on PATH")
    (tmp_path / "report.html").write_text(page(result, LOG))
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    done = subprocess.run(
        [
            browser, *options.split(), "--no-first-run", "--disable-quic", "--enable-logging=stderr", "--dump-dom",
            "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/report.html",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.count("main-svg") >= 5
    assert "CONSOLE" not in done.stderr, done.stderr

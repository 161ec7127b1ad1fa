"""The tools as a user runs them: small tables, experiments and devices, every bad input."""

import json
import os
import re
import subprocess
import sys

import pytest
import tinynet
from launcher import ROOT, command

import latency
from latency.graph.precision import lowered


def test_validation_without_a_table_says_how_to_build_one(workplace) -> None:
    done = command([str(ROOT / "tools/validate_lut.py"), "--network", "tinynet:wide", "--lut", "nowhere"], workplace, code=2)
    assert "build_lut" in done.stderr


def test_build_lut_measures_resumes_and_validates(workplace) -> None:
    options = ["--network", "tinynet:wide", "--input-size", "32"]
    first = command([str(ROOT / "tools/build_lut.py"), *options, "--out", "tables"], workplace)
    assert re.search(r"tinynet:wide: \d\d structures measured", first.stdout)
    again = command([str(ROOT / "tools/build_lut.py"), *options, "--out", "tables"], workplace)
    assert "tinynet:wide: 0 structures measured" in again.stdout
    full = command(
        [str(ROOT / "tools/build_lut.py"), *options, "--align", "64", "--out", "full", "--coverage", "full"], workplace
    )
    assert re.search(r"tinynet:wide: \d+ structures measured", full.stdout)
    validated = command(
        [
            str(ROOT / "tools/validate_lut.py"),
            *options,
            "--lut",
            "tables",
            "--samples",
            "4",
            "--pairs",
            "3",
            "--json",
            "v.json",
        ],
        workplace,
    )
    written = json.loads((workplace / "v.json").read_text())
    assert f"mape {written['figures']['structures']['predictor']['mape']:.3f}" in validated.stdout
    assert len(written["rows"]) == len({tuple(row["widths"]) for row in written["rows"]}) == 4
    assert len(written["differences"]) == 3
    assert not (workplace / "v.part").exists()  # what is kept until the file is whole
    adaptive = command(
        [str(ROOT / "tools/build_lut.py"), *options, "--coverage", "adaptive", "--minutes", "0.05", "--out", "tables"],
        workplace,
    )
    assert "mean error on structures before they were measured" in adaptive.stdout
    (table,) = (workplace / "tables").glob("ort-*")
    drawing = ["--layer", "1", "--lut", str(table), "--align", "8", "--validation", "v.json", "--out", "lut.png"]
    command([str(ROOT / "tools/plot_lut.py"), *options, *drawing], workplace)
    assert (workplace / "lut.png").read_bytes().startswith(b"\x89PNG")
    refused = command([str(ROOT / "tools/plot_lut.py"), *options, *drawing, "--layer", "99"], workplace, code=2)
    assert "--layer 99 given" in refused.stderr


def test_networks_are_listed_with_what_stands_in_their_way(workplace) -> None:
    tool = str(ROOT / "tools/list_networks.py")
    names = ("squeezenet1_1", "tinynet:mixed", "tinynet:deciding")
    listed = command([tool, *(part for name in names for part in ("--network", name))], workplace).stdout
    assert re.search(r"yes  squeezenet1_1 +\d+ genes, \d+ layers\n", listed)
    assert re.search(
        r"yes  tinynet:mixed .*operations keep their channels\n"
        r" +layer 'fewer' \(operation 'fewer'\) has groups that cannot go one by one\n",
        listed,
    )
    assert re.search(r"no   tinynet:deciding .*control flow depends on the data", listed)
    assert "2 of 3 trace" in listed
    assert "network 'resnet' is unknown" in command([tool, "--network", "resnet"], workplace, code=2).stderr
    assert "library 'keras' is unknown" in command([tool, "--library", "keras"], workplace, code=2).stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its core here")
def test_what_a_busy_neighbour_does_to_a_table_is_told(workplace) -> None:
    options = ["--network", "tinynet:wide", "--input-size", "32", "--structures", "20"]
    done = command([str(ROOT / "tools/check_noise.py"), *options], workplace)
    stable = re.search(r"beside a busy neighbour: (\d+)% of 20 structures stable", done.stdout)
    assert stable
    assert 0 <= int(stable[1]) <= 100
    apart = re.search(r"predictions of \d+ structures differ by ([\d.]+)% \(median\), ([\d.]+)%", done.stdout)
    assert apart
    assert float(apart[1]) <= float(apart[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "trt"], "driver|pip install"),
        (["--coverage", "half"], "expected one of quick, adaptive, full"),
        (["--minutes", "3"], "needs --coverage adaptive"),
        (["--network", "nothing"], "is unknown"),
        (["--out", "tinynet.py"], "Choose another"),
        (["--threads", "0"], "expected 1 to"),
        (["--threads", "4096"], "processors of this machine"),
        (["--precision", "fp7"], "fp32"),
    ],
)
def test_build_lut_refuses_clearly(arguments: list[str], said: str, workplace) -> None:
    small = ["--network", "tinynet:wide", "--input-size", "32"] if "--network" not in arguments else []
    done = command([str(ROOT / "tools/build_lut.py"), *small, *arguments], workplace, code=2)
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.slow
def test_experiments_run_and_find_again_what_is_finished(workplace) -> None:
    """The ranking and the comparison with uniform, random and MACs, on digits; a second call trains nothing."""
    common = ["--data", "digits", "--network", "tinynet:wide", "--images", "320", "--epochs", "1", "--train-batch", "32"]
    common += ["--lut", "tables"]  # measured above
    ranking = [
        str(ROOT / "tools/check_ranking.py"), *common, "--structures", "4", "--seeds", "2", "--random-epochs", "1",
        "--sandwich-epochs", "1",
    ]  # fmt: skip
    first, second = command(ranking, workplace), command(ranking, workplace)
    assert first.stdout.splitlines()[-7:] == second.stdout.splitlines()[-7:]
    written = json.loads((workplace / "results" / "ranking.json").read_text())
    assert len(written["structures"]) == 4
    assert len(written["kinds"]) == 2 + 1 + 7
    assert all(-1 <= row["kendall_tau"] <= 1 for row in written["kinds"] if row["kendall_tau"] == row["kendall_tau"])
    comparison = [
        str(ROOT / "tools/reproduce_cifar10.py"), *common, "--budget", "60", "--pruningnet-epochs", "1", "--population", "4",
        "--generations", "2", "--seeds", "1",
    ]  # fmt: skip
    assert command(comparison, workplace).stdout == command(comparison, workplace).stdout
    rows = json.loads((workplace / "results" / "cifar10.json").read_text())["rows"]
    assert [row["how"] for row in rows] == [
        "MetaPruning by latency", "MetaPruning by MACs", "random search", "uniform", "unpruned",
    ]  # fmt: skip
    assert all(len(row["test_accuracy"]) == 1 for row in rows)
    assert rows[0]["measured_ms"] < rows[4]["measured_ms"]
    runs = workplace / "runs" / "experiments" / "tinynet.wide"
    supernets = {path.stem for path in runs.glob("tinynet.wide-*.safetensors")}
    assert all(any(name in path.name for name in supernets) for path in runs.glob("chosen-*"))  # searched for with that one
    pruners = [
        str(ROOT / "tools/compare_pruners.py"), *common, "--budget", "60", "--pruningnet-epochs", "1", "--population", "4",
        "--generations", "2", "--seeds", "1",
    ]  # fmt: skip
    assert command(pruners, workplace).stdout.count("|") == 4 * 5
    compared = json.loads((workplace / "results" / "pruners.json").read_text())
    assert [row["epochs"] for row in compared["rows"]] == [2, 2, 2, 1]
    assert all(sum(row["widths"]) < sum(rows[4]["widths"]) for row in compared["rows"])
    assert all(0 < row["test_accuracy"][0] < 1 for row in compared["rows"])


@pytest.mark.slow
def test_a_device_shows_all_its_evidence_and_is_not_measured_twice(workplace) -> None:
    options = ["--device", "ort", "--network", "tinynet:wide", "--batch", "1", "--input-size", "32", "--samples", "8"]
    check = [str(ROOT / "tools/check_device.py"), *options, "--lut", "tables", "--out", "evidence"]  # measured above
    first, second = command(check, workplace), command(check, workplace)
    assert "| tinynet:wide, batch 1, 32x32, fp32 |" in first.stdout
    assert first.stdout == second.stdout
    (file,) = (workplace / "evidence").glob("ort-fp32-*.json")
    (checked,) = json.loads(file.read_text())["networks"].values()
    assert checked["clocks"]["own_ms"] > 0
    assert len(checked["rows"]) == 8
    assert list((workplace / "tables").glob("ort-fp32-*/table.parquet"))


def test_onnx_files_are_measured_without_torch(workplace) -> None:
    network = latency.trace(tinynet.wide(), (1, 3, 32, 32), align=8)
    for name, scale in (("large", 1.0), ("small", 0.3)):
        (workplace / f"{name}.onnx").write_bytes(network.onnx(network.nearest_widths(scale)))
    without = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    tool = ["-c", without, str(ROOT / "tools/measure_onnx.py"), "--lut", "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *tool, *arguments], cwd=workplace, env=environment, capture_output=True, text=True
        )

    done = run("large.onnx", "small.onnx")
    large, small = (float(ms) for ms in re.findall(r"\.onnx: (\S+) ms", done.stdout))
    assert small < large, done.stderr
    assert run("large.onnx", "nothing.onnx").returncode == 2
    options = ["--network", "tinynet:wide", "--input-size", "32"]
    command([str(ROOT / "tools/build_lut.py"), *options, "--out", "few"], workplace)
    more = [*options, "--lut", "few", "--json", "measured.json"]
    measured_too = command([str(ROOT / "tools/measure_onnx.py"), "large.onnx", *more], workplace)
    assert re.search(r"large\.onnx: \S+ ms.*; predicted \S+ ms \(\S+ … \S+\)\ntinynet:wide: ", measured_too.stdout)
    rows = json.loads((workplace / "measured.json").read_text())
    assert rows["tinynet:wide"]["predicted_ms"] == pytest.approx(rows["large.onnx"]["predicted_ms"], rel=0.3)
    (workplace / "int8.onnx").write_bytes(lowered((workplace / "large.onnx").read_bytes(), "int8"))
    unlike = command([str(ROOT / "tools/measure_onnx.py"), "int8.onnx", "--lut", "few"], workplace)
    assert re.search(r"int8\.onnx: \S+ ms.*; not predicted: the model computes in int8", unlike.stdout)
    refused = command([str(ROOT / "tools/measure_onnx.py")], workplace, code=2)
    assert "expected ONNX files, or --network NAME" in refused.stderr


@pytest.mark.slow
def test_speed_is_told(workplace) -> None:
    options = ["--batch", "4x32", "--steps", "3", "--samples", "1000", "--threads", "1", "--out", "speed.json"]
    done = command([str(ROOT / "tools/check_speed.py"), *options], workplace)
    assert "× plain" in done.stdout
    draws = json.loads((workplace / "speed.json").read_text())["draws"]
    assert [draw["network"] for draw in draws] == ["mobilenet_v1", "mobilenet_v2", "resnet50"]
    assert all(draw["inside"] for draw in draws)
    wrong = command([str(ROOT / "tools/check_speed.py"), "--batch", "64"], workplace, code=2)
    assert "expected IMAGESxPIXELS" in wrong.stderr

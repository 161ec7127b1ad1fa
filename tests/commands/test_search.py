"""The main job as a user runs it: at a tiny scale, with every bad input, interrupted and resumed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from launcher import ROOT, STRUCTURES, Launched, command
from safetensors import safe_open
from safetensors.numpy import load_file

TINY = [
    "--network", "tinynet:wide", "--image-size", "24", "--population", "6", "--generations", "3",
    "--pruningnet-epochs", "3", "--epochs", "4", "--train-batch", "64", "--quiet",
]  # fmt: skip
SEARCH = ["-m", "search.run", "--latency", "60%", *TINY]
ONE_EPOCH = ["--epochs", "1"]  # of final training, where it does not matter how good the networks get


@pytest.fixture(scope="module")
def finished(workplace) -> tuple[Path, str]:
    """A run and what it printed."""
    return workplace / "runs" / "first", command([*SEARCH, "--out", "runs/first"], workplace).stdout


def test_the_main_job(finished) -> None:
    folder, printed = finished
    result = json.loads((folder / "result.json").read_text())
    unpruned, uniform, winner = result["networks"]
    assert [row["label"] for row in result["networks"]] == ["unpruned", "uniform", "winner"]
    budget = 0.6 * json.loads((folder / "unpruned.json").read_text())["latency_ms"]
    assert winner["measured_ms"] <= budget
    assert winner["macs"] < unpruned["macs"]
    assert len(winner["widths"]) == len(result["genes"]) == 5
    assert uniform["widths"] != unpruned["widths"]
    assert all(row["test_accuracy"] > 0.3 for row in result["networks"])
    assert winner["onnx_accuracy"] == pytest.approx(winner["test_accuracy"], abs=0.005)
    assert result["device"]["device"] == "ort"
    assert result["config"]["seed"] == 0
    assert {"torch", "onnxruntime", "python"} <= set(result["versions"])
    for row in result["networks"]:
        assert f"{row['test_accuracy']:.2%}" in printed
    (losses,) = re.findall(r"loss by PruningNet: (\S+), of the uniform structure (\S+)", printed)
    assert float(losses[0]) <= float(losses[1])


def test_a_finished_run_is_told_again_in_a_fresh_python(finished, workplace) -> None:
    """Not forked from one that has loaded everything: as a user starts it, but that no more structures need be measured."""
    shutil.copytree(finished[0], workplace / "runs" / "again")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    start = f"import runpy; from latency import coverage; coverage.SHORT_STRUCTURES = {STRUCTURES}; "
    start += "runpy.run_module('search.run', run_name='__main__', alter_sys=True)"
    again = [sys.executable, "-c", start, *SEARCH[2:], "--out", "runs/again", "--resume"]
    done = subprocess.run(again, cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows = [
        [
            (row["label"], row["widths"], row["measured_ms"], row["test_accuracy"])
            for row in json.loads(file.read_text())["networks"]
        ]
        for file in (workplace / "runs" / name / "result.json" for name in ("first", "again"))
    ]
    assert rows[0] == rows[1]


def test_processes_that_torchrun_starts_train_together_and_the_first_does_all_else(finished, workplace) -> None:
    """As torchrun sets their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    together = [*SEARCH, *ONE_EPOCH, "--pruningnet-epochs", "1", "--out", "runs/together"]
    processes = [Launched(together, workplace, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    first, second = (process.ended() for process in processes)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "report:" in first.stdout
    assert not second.stdout
    log = [json.loads(line) for line in (workplace / "runs" / "together" / "log.jsonl").read_text().splitlines()]
    assert sum("latency table:" in line.get("said", "") for line in log) == 1
    result = json.loads((workplace / "runs" / "together" / "result.json").read_text())
    assert all(row["onnx_accuracy"] == pytest.approx(row["test_accuracy"], abs=0.005) for row in result["networks"][1:])


def test_the_exported_network_stands_on_its_own(finished) -> None:
    folder, _ = finished
    widths = json.loads((folder / "result.json").read_text())["networks"][2]["widths"]
    session = onnxruntime.InferenceSession(str(folder / "winner.onnx"))
    scores = session.run(None, {"images": np.zeros((1, 3, 24, 24), np.float32)})
    assert scores[0].shape == (1, 10)
    assert (folder / "uniform.onnx").exists()
    weights = load_file(folder / "winner.safetensors")
    assert weights["stem.0.weight"].shape == (widths[0], 3, 3, 3)


def test_the_winner_comes_as_a_program_too(finished) -> None:
    folder, _ = finished
    model = torch.export.load(folder / "winner.pt2").module()
    images = np.random.default_rng(0).normal(size=(1, 3, 24, 24)).astype(np.float32)
    scores = onnxruntime.InferenceSession(str(folder / "winner.onnx")).run(None, {"images": images})[0]
    np.testing.assert_allclose(model(torch.from_numpy(images)).detach().numpy(), scores, atol=1e-4)
    assert json.loads((folder / "result.json").read_text())["networks"][2]["module"] == "TinyNet"


def test_the_report_and_the_log(finished) -> None:
    folder, _ = finished
    assert "tinynet:wide within latency" in (folder / "report.html").read_text()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    stages = {line["stage"]: line for line in log if "stage" in line}
    begun = [stage for stage in stages if not stage.startswith("measuring ort")]
    assert begun == [
        "training unpruned", "training PruningNet", "genetic search", "measuring finalists",
        "training uniform", "training winner",
    ]  # fmt: skip
    assert stages["genetic search"]["done"] == stages["genetic search"]["total"] == 18
    assert 0.5 < stages["genetic search"]["value"] < 2.31  # the least that smoothed labels allow, and chance
    result = json.loads((folder / "result.json").read_text())
    assert result["search"]["front"][-1]["loss"] == stages["genetic search"]["value"]
    assert result["finalists"]
    assert len(result["kernels"]["kernels"]) == len(result["kernels"]["pruned_ms"])
    assert sum(result["kernels"]["pruned_ms"]) < sum(result["kernels"]["unpruned_ms"])


def test_a_front_of_networks(workplace) -> None:
    done = command(
        ["-m", "search.run", "--pareto", *TINY, *ONE_EPOCH, "--pruningnet-epochs", "1", "--out", "runs/front"], workplace
    )
    folder = workplace / "runs" / "front"
    rows = json.loads((folder / "result.json").read_text())["networks"]
    assert [row["label"] for row in rows] == ["unpruned", *(f"front-{number}" for number in range(1, len(rows)))]
    assert len(rows) >= 3
    assert [row["measured_ms"] for row in rows[1:]] == sorted(row["measured_ms"] for row in rows[1:])
    for row in rows[1:]:
        assert (folder / f"{row['label']}.onnx").exists()
        assert row["label"] in done.stdout


def test_a_trained_start_and_a_teacher(finished, workplace) -> None:
    """The unpruned network of the first run is where this one starts; half as many epochs then go as far, whatever is found."""
    state = load_file(unpruned(workplace, epochs=4))
    weights = {name.removeprefix("module."): torch.from_numpy(tensor) for name, tensor in state.items()}
    torch.save(weights, workplace / "trained.pth")
    options = [*SEARCH, "--weights", "trained.pth", "--distill", "--recipe", "light", "--out", "runs/pretrained"]
    short = [{"4": "2", "3": "1"}.get(option, option) for option in options]  # epochs and generations
    supernets = set((workplace / "runs" / "pruningnets").glob("*.safetensors"))
    command(short, workplace)
    first, second = (
        json.loads((workplace / "runs" / name / "result.json").read_text())["networks"] for name in ("first", "pretrained")
    )
    assert second[0]["test_accuracy"] > first[0]["test_accuracy"] - 0.1
    assert second[2]["test_accuracy"] > 0.6
    (learnt,) = set((workplace / "runs" / "pruningnets").glob("*.safetensors")) - supernets
    ahead = [*TINY[:4], "--pruningnet-epochs", "1", "--train-batch", "64", "--recipe", "light"]
    told = command([str(ROOT / "tools/train_pruningnet.py"), *ahead, "--weights", "trained.pth"], workplace).stdout
    assert learnt.name in told
    torch.save({name: tensor + 1e-3 if tensor.is_floating_point() else tensor for name, tensor in weights.items()},
               workplace / "trained.pth")  # fmt: skip
    assert "weights_digest" in command([*short, "--resume"], workplace, code=2).stderr


def unpruned(workplace: Path, epochs: int) -> Path:
    """The checkpoint of the unpruned network that was trained for so many epochs."""
    (path,) = (
        path
        for path in workplace.glob("runs/pruningnets/*-unpruned-*")
        if json.loads(safe_open(path, "numpy").metadata()["identity"])["recipe"]["epochs"] == epochs
    )
    return path


def test_a_second_run_uses_the_table_and_the_pruningnet_and_gives_the_same_search(finished, workplace) -> None:
    first, _ = finished
    tables = {file: file.stat().st_mtime_ns for file in workplace.glob("lut_data/*/*.parquet")}
    supernets = {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")}
    assert len(tables) == 1
    assert supernets
    shutil.copytree(first, workplace / "runs" / "second")
    for name in ("search.journal", "finish.json", "result.json"):
        (workplace / "runs" / "second" / name).unlink()
    shutil.rmtree(workplace / "runs" / "second" / "checkpoints")  # of what was measured then
    command([*SEARCH, "--out", "runs/second", "--resume"], workplace)
    assert {file: file.stat().st_mtime_ns for file in workplace.glob("lut_data/*/*.parquet")} == tables
    assert {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")} == supernets
    results = [json.loads((workplace / "runs" / name / "result.json").read_text()) for name in ("first", "second")]
    assert results[0]["search"]["evaluations"] == results[1]["search"]["evaluations"]


@pytest.mark.parametrize("front", [False, True])
def test_a_device_elsewhere_is_searched_for_by_its_table(front: bool, finished, workplace) -> None:
    (table,) = (workplace / "lut_data").glob("ort-*")
    out = workplace / f"runs/elsewhere-{front}"
    done = command([*SEARCH, *ONE_EPOCH, "--device", table.name, "--out", str(out), *["--pareto"] * front], workplace)
    assert "is elsewhere: nothing is measured" in done.stdout
    result = json.loads((out / "result.json").read_text())
    unpruned, last = result["networks"][0], result["networks"][-1]
    assert {row["measured_ms"] for row in result["networks"]} == {None}
    assert not any("exported_ms" in row for row in result["networks"])
    assert last["predicted_ms"] <= 0.6 * unpruned["predicted_ms"] * (1 + 1e-6)
    assert result["device"] == json.loads((finished[0] / "result.json").read_text())["device"]
    assert (out / f"{last['label']}.onnx").exists()
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_anywhere_a_run_goes_on_to_its_result(stop: signal.Signals, finished, workplace) -> None:
    """Stopped four times, later each time, then left alone: the search holds no candidate twice and the run finishes."""
    first, _ = finished
    name = f"runs/stopped{int(stop)}"
    (workplace / name).mkdir()
    shutil.copy(first / "unpruned.json", workplace / name)  # the same measured budget, so the same search
    for seconds in (2.0, 4.0, 6.0, 8.0):
        done = Launched([*SEARCH, "--out", name, "--resume"], workplace).stopped(stop, seconds)
        if done.returncode == 0:
            break
        assert done.returncode == (130 if stop == signal.SIGINT else -stop), done.stderr
        assert "Traceback" not in done.stderr
    command([*SEARCH, "--out", name, "--resume"], workplace)
    journals = [candidates(workplace / name), candidates(first)]
    assert journals[0] == journals[1]
    assert len(set(journals[0])) == 18


def candidates(folder: Path) -> list[tuple[tuple[int, ...], float]]:
    """Evaluated structures of a run, in order, read by optuna itself."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "search.journal")))
    trials = optuna.load_study(study_name=None, storage=storage).get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    return [(tuple(trial.params.values()), trial.value) for trial in trials]


def test_a_budget_that_does_not_bind_is_said_and_searched_all_the_same(workplace) -> None:
    least = [*ONE_EPOCH, "--pruningnet-epochs", "1", "--generations", "1"]
    done = command(["-m", "search.run", "--latency", "15ms", *TINY, *least, "--out", "runs/loose"], workplace)
    assert "does not bind" in done.stdout
    assert (workplace / "runs" / "loose" / "result.json").exists()


def test_budgets_in_macs_and_parameters_and_a_network_without_bn(workplace) -> None:
    options = [{"tinynet:wide": "tinynet:plain"}.get(option, option) for option in TINY]
    options += [*ONE_EPOCH, "--pruningnet-epochs", "1", "--optimizer", "adamw"]
    done = command(["-m", "search.run", "--macs", "60%", "--params", "45K", *options, "--out", "runs/macs"], workplace)
    winner = json.loads((workplace / "runs" / "macs" / "result.json").read_text())["networks"][2]
    assert winner["params"] <= 45_000
    assert "budget: params 45K" in done.stdout
    assert "convolutions have BN while they are trained" in done.stdout
    assert winner["module"] == "Plain"
    assert load_file(workplace / "runs" / "macs" / "winner.safetensors")["2.bias"].shape == (winner["widths"][1],)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--latency", "15"], "expected a number with its unit"),
        (["--latency", "0ms"], "more than 0"),
        (["--latency", "-5ms"], "more than 0"),
        (["--latency", "nanms"], "more than 0"),
        ([], "no budget given"),
        (["--latency", "0.0001ms"], "smallest reachable is"),
        (["--macs", "10"], r"smallest reachable is \S+ with widths in multiples of \d+ \(a smaller --align"),
        (["--latency", "60%", "--network", "resnet1800"], "is unknown"),
        (["--latency", "60%", "--network", "tinynet:deciding"], "control flow depends on the data in 'gt'"),
        (["--latency", "60%", "--device", "tpu"], "expected one of"),
        (["--latency", "60%", "--device", "trt"], "device 'trt'"),
        (["--latency", "60%", "--data", "mnist9"], "is unknown"),
        (["--latency", "60%", "--recipe", "grandmas"], "expected one of focused, paper, light, sandwich"),
        (["--latency", "60%", "--optimizer", "lion"], "expected sgd or adamw"),
        (["--latency", "60%", "--weights", "nowhere.pth"], "neither a file nor torchvision's"),
        (["--latency", "15ms", "--storage", "nonsense"], "database 'nonsense' cannot be used"),
        (["--latency", "60%", "--storage", "sqlite:///shared.db"], "expected --latency in milliseconds"),
        (["--latency", "60%", "--out", "tinynet.py/run"], "cannot write"),
        (["--latency", "60%", "--lut", "tinynet.py"], "cannot write|Choose another"),
        (["--latency", "60%", "--population", "0"], "population"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], said: str, finished, workplace) -> None:
    extra = ["--out", "runs/bad"] if "--out" not in arguments else []
    base = [argument for argument in TINY if argument != "--network" or "--network" not in arguments]
    base = [argument for argument in base if argument != "tinynet:wide" or "--network" not in arguments]
    done = command(["-m", "search.run", *base, *extra, *arguments], workplace, code=2)
    assert re.search(said, done.stderr), done.stderr
    shutil.rmtree(workplace / "runs" / "bad", ignore_errors=True)


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(finished, workplace) -> None:
    assert "--resume" in command([*SEARCH, "--out", "runs/first"], workplace, code=2).stderr
    other = command([*SEARCH, "--out", "runs/first", "--resume", "--seed", "7"], workplace, code=2)
    assert "seed=0" in other.stderr


def test_a_checkpoint_of_another_network_is_refused(finished, workplace) -> None:
    folder, _ = finished
    shutil.copytree(folder, workplace / "runs" / "wrong")
    checkpoints = workplace / "runs" / "wrong" / "checkpoints"
    shutil.copy(checkpoints / "uniform.safetensors", checkpoints / "winner.safetensors")
    done = command([*SEARCH, "--out", "runs/wrong", "--resume"], workplace, code=2)
    assert "belongs to widths" in done.stderr


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-50]), "not a whole Parquet file"),
        (lambda file: file.write_bytes(b""), "not a whole Parquet file"),
        (lambda file: file.rename(file.with_name("a.parquet")) and file.write_text("text"), "not a whole Parquet file"),
    ],
)
def test_a_spoilt_table_is_refused(spoil, said: str, finished, workplace, tmp_path) -> None:
    shutil.copytree(workplace / "lut_data", tmp_path / "lut")
    spoil(next(tmp_path.glob("lut/*/*.parquet")))
    done = command([*SEARCH, "--out", "runs/spoilt", "--resume", "--lut", str(tmp_path / "lut")], workplace, code=2)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "focused"], "without a budget"),
        (["--latency", "60%"], "expected --latency in milliseconds"),
        (["--macs", "10"], "smallest reachable is"),
    ],
)
def test_a_focused_pruningnet_needs_a_budget_that_means_the_same_everywhere(arguments, said: str, finished, workplace) -> None:
    options = ["--network", "tinynet:wide", "--image-size", "24", "--pruningnet-epochs", "1", *arguments]
    assert said in command([str(ROOT / "tools/train_pruningnet.py"), *options], workplace, code=2).stderr


def test_train_pruningnet_ahead_of_a_search(finished, workplace) -> None:
    """It finds the search's own checkpoint: same options, same file."""
    folder, _ = finished
    budget_ms = 0.6 * json.loads((folder / "unpruned.json").read_text())["latency_ms"]
    options = [*TINY[:4], *TINY[8:-1], "--latency", f"{budget_ms}ms"]
    before = {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")}
    done = command([str(ROOT / "tools/train_pruningnet.py"), *options], workplace)
    assert "sub-validation accuracy at 1.00" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")} == before


def test_train_pruningnet_by_two_processes(finished, workplace) -> None:
    """Under torchrun; one of them speaks and writes. What they have trained serves one process too."""
    tool = str(ROOT / "tools/train_pruningnet.py")
    options = [*TINY[:4], "--pruningnet-epochs", "2", "--train-batch", "64", "--recipe", "light"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = command([*torchrun, tool, *options], workplace)
    assert done.stdout.count("sub-validation accuracy at 1.00") == 1
    trained = {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")}
    again = command([tool, *options], workplace)
    assert again.stdout == done.stdout
    assert {file: file.stat().st_mtime_ns for file in workplace.glob("runs/pruningnets/*")} == trained

"""Training by several processes, started by torchrun as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, time, torch
import latency
from pathlib import Path
from pruning.data import load_data
from pruning.fit import fit
from pruning.recipe import Recipe
from pruning.networks import load
from pruning.train import SUPERNETS, new_pruningnet, train_pruningnet
from pruning.workers import Workers

torch.set_num_threads(1)
folder, workers = Path(sys.argv[1]), Workers.joined()
with workers.first_ahead():
    if workers.rank == 0:
        time.sleep(0.5)
        (folder / "measured").touch()
    assert (folder / "measured").exists(), "the others did not wait"

def assert_equal(module):
    flat = torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])
    others = [torch.zeros_like(flat) for _ in range(workers.size)]
    if workers.size > 1:
        torch.distributed.all_gather(others, flat)
        assert all(torch.equal(flat, other) for other in others), "processes drifted apart"

network, losses = latency.trace(load("tinynet:tiny", 10), (1, 3, 16, 16), align=4), {}
for recipe, epochs in (("paper", 6), ("sandwich", 3)):
    torch.manual_seed(0)
    curve = losses[recipe] = []
    keep = lambda step, loss: curve.append(loss) if loss == loss else None
    pruningnet = new_pruningnet(network, SUPERNETS[recipe], 0)
    train_pruningnet(pruningnet, SUPERNETS[recipe], load_data("digits", 16), Recipe(epochs=epochs, batch=64), seed=0,
                     checkpoint=folder / recipe, progress=keep)
    assert_equal(pruningnet)
if workers.rank == 0:
    (folder / "losses.json").write_text(json.dumps(losses))

module, data = torch.nn.Linear(3 * 16 * 16, 10), load_data("digits", 16)
torch.nn.init.zeros_(module.weight); torch.nn.init.zeros_(module.bias)
def backward(images, labels, step):
    loss = torch.nn.functional.cross_entropy(module(images.flatten(1)), labels)
    loss.backward()
    return loss.detach()
object.__setattr__(data, "augmented", lambda pixels, generator: data.normalised(pixels))
def learn(name):
    fit(module, backward, data, Recipe(epochs=1, batch=64), seed=0, checkpoint=folder / name, identity={},
        progress=lambda step, loss: None)
learn("average")
torch.manual_seed(workers.rank)
module = torch.nn.Sequential(torch.nn.BatchNorm1d(3 * 16 * 16), torch.nn.Linear(3 * 16 * 16, 10))
learn("with BN")
assert_equal(module)
"""


@pytest.fixture(scope="module")
def by_one_and_two(tmp_path_factory) -> list[Path]:
    """What one process leaves that runs the script, and what two do."""
    return [torchrun(processes, tmp_path_factory.mktemp(f"by{processes}")) for processes in (1, 2)]


def torchrun(processes: int, folder: Path) -> Path:
    (folder / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [*launcher, str(folder / "script.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_averaged_gradients_are_those_of_the_whole_batch(by_one_and_two) -> None:
    """Without augmentation and BN, two processes take the very steps that one takes with all of each batch."""
    weights = [load_file(folder / "average")["module.weight"] for folder in by_one_and_two]
    assert weights[0].abs().max() > 0.01
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_running_statistics_are_those_of_all_processes(by_one_and_two) -> None:
    """Which differ here in the weights that they would begin with, too."""
    one, two = (load_file(folder / "with BN")["module.0.running_mean"] for folder in by_one_and_two)
    assert one.abs().max() > 0.1
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_pruningnet_learns_alike_in_two_processes_that_stay_equal(by_one_and_two) -> None:
    alone, together = (json.loads((folder / "losses.json").read_text()) for folder in by_one_and_two)
    for recipe in ("paper", "sandwich"):
        curves = alone[recipe], together[recipe]
        assert len(curves[0]) == len(curves[1])
        ends = [sum(curve[-20:]) / 20 for curve in curves]
        assert ends[0] < 0.8 * curves[0][0]
        assert abs(ends[0] - ends[1]) < 0.25

"""The README's way to prune what is no classifier, as it stands there."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tinynet import conv_bn
from torch import Tensor, nn

import latency
from latency.build import build_table
from latency.coverage import quick_plan
from latency.measuring.table import LatencyTable
from pruning.extract import in_own_class
from search import genetic

README = (Path(__file__).parents[2] / "README.md").read_text()
SIDE = 24


class Segmenter(nn.Module):
    """Down, and up again; two classes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.act = conv_bn(3, 16, 3), conv_bn(16, 32, 3, 2), nn.ReLU()
        self.up, self.head = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        return self.head(torch.cat([x, self.act(self.up(self.act(self.down(x))))], 1))


def discs(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Noise in which a disc is brighter, and where."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    centre, radius = rng.integers(4, SIDE - 4, (2, count, 1, 1)), rng.integers(3, 7, (count, 1, 1))
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    images = rng.normal(size=(count, 3, SIDE, SIDE)) + inside[:, None]
    return torch.from_numpy(images).float(), torch.from_numpy(inside).long()


def test_a_segmentation_network_is_pruned_by_its_own_loss(lawful, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, rng = Segmenter(), np.random.default_rng(0)
    network = latency.trace(model, (1, 3, SIDE, SIDE))
    table = build_table(lawful, network, quick_plan(network, 60), LatencyTable.open(tmp_path, lawful.fingerprint()))
    predictor = latency.load_predictor(table.path)
    budget = 0.6 * float(predictor.predict_widths(network, np.array([network.max_widths]))[0])
    (code,) = re.findall(r"### Other tasks.*?```python\n(.*?)```", README, re.DOTALL)
    for shown, ours in (
        ('load_predictor("ort")', f'load_predictor("{table.path}")'),
        ("256, 256", f"{SIDE}, {SIDE}"),
        ("latency_ms=5.0", f"latency_ms={budget}"),
        ("Evolution()", "Evolution(population=10, generations=3)"),
    ):
        assert shown in code
        code = code.replace(shown, ours)
    loader, validation = [discs(rng, 16) for _ in range(80)], [discs(rng, 64)]
    names = {"model": model, "loader": loader, "validation": validation, "task_loss": F.cross_entropy}
    exec(code, names)
    scored = {one.widths: one.loss for one in names["found"]}
    assert len(scored) == len(names["found"]) > 5
    assert predictor.predict_widths(network, np.array(list(scored))).max() <= budget
    assert min(scored.values()) == scored[tuple(names["widths"])] == names["score"](names["widths"]).loss
    ((images, targets),) = validation
    smaller = names["smaller"].train()
    assert (smaller(images).argmax(1) == targets).float().mean() > max(0.9, 1.02 * float((targets == 0).float().mean()))
    own = in_own_class(model, smaller, (1, 3, SIDE, SIDE))
    assert type(own) is Segmenter
    assert own.stem[0].out_channels == names["widths"][0]
    again = genetic.evolve(
        names["within"], None, genetic.Evolution(10, generations=3), seed=0, journal=Path("unet.journal"), progress=print
    )
    assert {one.widths: one.loss for one in again} == scored  # nothing is scored twice

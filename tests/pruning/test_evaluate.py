"""BN statistics: against NumPy's, and against chance."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning.evaluate import StructureEvaluator, accuracy, balanced, recalibrate_bn, recalibrated_score
from pruning.recipe import Recipe
from pruning.train import SUPERNETS, new_pruningnet, train_pruningnet


def test_statistics_are_those_numpy_computes(rng) -> None:
    images = torch.from_numpy(rng.normal(3, 2, (64, 4, 6, 6)).astype(np.float32))
    layer = nn.BatchNorm2d(4)
    layer.running_mean.fill_(99)
    recalibrate_bn(nn.Sequential(layer), images, batch=16)
    parts = images.numpy().reshape(4, 16, 4, 36).transpose(0, 2, 1, 3).reshape(4, 4, -1)  # batch, channel, values
    np.testing.assert_allclose(layer.running_mean.numpy(), parts.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), parts.var(2, ddof=1).mean(0), rtol=1e-5)
    assert not layer.training
    assert layer.momentum == 0.1


def test_a_deeper_layer_sees_its_input_normalised_by_fresh_statistics() -> None:
    images = torch.randn(64, 3, 8, 8) * 5 + 2
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.9))
    recalibrate_bn(module, images, batch=64)
    normal = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True, correction=0)
    expected = module[1](normal).mean((0, 2, 3))
    torch.testing.assert_close(module[2].running_mean, expected.detach(), atol=1e-4, rtol=1e-3)
    assert torch.isfinite(module(images)).all()


def test_calibration_images_show_every_class_equally_often_and_in_random_order() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([100, 90, 80, 30, 4]))
    chosen = balanced(labels, 50)
    assert len(chosen.unique()) == 50
    assert sorted(labels[chosen].bincount().tolist()) == [4, 11, 11, 12, 12]
    assert labels[chosen][:5].unique().numel() == 5
    assert (chosen[:-1] > chosen[1:]).any()
    assert sorted(balanced(labels, 10_000).tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("name", [name for name in SUPERNETS if name != "focused"])  # trained on all, it is the paper's
def test_fresh_statistics_give_accuracy_where_stale_ones_give_chance(name: str, digits, tiny_network, tmp_path) -> None:
    kind = SUPERNETS[name]
    supernet = new_pruningnet(tiny_network, kind, 0)
    recipe = Recipe(epochs=4 if name == "sandwich" else 10, batch=32)  # which trains several structures a step
    train_pruningnet(supernet, kind, digits, recipe, seed=0, checkpoint=tmp_path / "c", progress=lambda done, loss: None)
    evaluate = StructureEvaluator(supernet, digits)
    widths = tiny_network.nearest_widths(0.6)
    stale = accuracy(supernet.structure(widths), digits.subval, digits)
    fresh = evaluate(widths)
    assert stale < fresh.accuracy - 0.1
    assert fresh.accuracy > 0.6
    assert evaluate(widths) == fresh
    share = fresh.accuracy * len(digits.subval)
    assert share == pytest.approx(np.round(share))


def test_scores_are_those_of_numpy(digits, tiny_network, exactly) -> None:
    """Either way to make statistics: of a thousand training images, or the images' own, here of one batch."""
    supernet = new_pruningnet(tiny_network, SUPERNETS["paper"], 0)
    widths = tiny_network.nearest_widths(0.6)
    images = digits.normalised(digits.subval.pixels)
    structure = supernet.structure(widths)
    recalibrate_bn(structure, digits.normalised(digits.train.pixels[balanced(digits.train.labels, 1000)]))
    agree(recalibrated_score(supernet, widths, digits, 1000), structure(images), digits)
    agree(StructureEvaluator(supernet, digits)(widths), supernet(images, widths), digits)


def test_images_are_scored_in_equal_batches_that_show_all_classes_alike(digits, tiny_network, monkeypatch) -> None:
    monkeypatch.setattr("pruning.evaluate.STATISTICS_BATCH", 100)
    seen = []
    supernet = new_pruningnet(tiny_network, SUPERNETS["paper"], 0)
    evaluate = StructureEvaluator(supernet, digits)
    widths = tiny_network.nearest_widths(1.0)
    scores = supernet.scores
    monkeypatch.setattr(supernet, "scores", lambda images, weights: seen.append(images) or scores(images, weights))
    evaluate(widths)
    assert evaluate.images == sum(map(len, seen)) == len(digits.subval) == 283
    assert [len(part) for part in seen] == [95, 94, 94]
    positions = {image.numpy().tobytes(): place for place, image in enumerate(digits.normalised(digits.subval.pixels))}
    for part in seen:
        labels = digits.subval.labels[[positions[image.numpy().tobytes()] for image in part]]
        assert labels.bincount(minlength=10).max() - labels.bincount(minlength=10).min() <= 4


def agree(score, scores: torch.Tensor, digits) -> None:
    """NumPy says the same of class scores [N, classes] of the sub-validation images."""
    scores, labels = scores.detach().double().numpy(), digits.subval.labels.numpy()
    log_shares = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    wanted = 0.9 * np.eye(digits.classes)[labels] + 0.1 / digits.classes
    assert score.accuracy == pytest.approx((scores.argmax(axis=1) == labels).mean())
    assert score.loss == pytest.approx(-(wanted * log_shares).sum(axis=1).mean(), rel=1e-4)

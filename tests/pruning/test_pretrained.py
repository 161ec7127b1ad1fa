"""Trained weights to start from: files, torchvision's names, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

from pruning.networks import load
from pruning.pretrained import WeightsError, digest, load_weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_state_dict_comes_back(suffix: str, tmp_path) -> None:
    torch.manual_seed(1)
    trained, fresh = load("tinynet:tiny", 10), load("tinynet:tiny", 10)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}}, path)
    else:
        save_file(trained.state_dict(), path)
    assert digest(fresh.state_dict()) != digest(trained.state_dict())
    assert load_weights(fresh, "tinynet:tiny", str(path)) == ()
    assert digest(fresh.state_dict()) == digest(trained.state_dict())


def test_the_classifier_of_other_classes_is_left_out(tmp_path) -> None:
    trained, fresh = load("tinynet:tiny", 1000), load("tinynet:tiny", 10)
    before = fresh.classifier.weight.clone()
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    assert load_weights(fresh, "tinynet:tiny", str(tmp_path / "w.pth")) == ("classifier.weight", "classifier.bias")
    assert torch.equal(fresh.classifier.weight, before)
    assert torch.equal(fresh.hidden.weight, trained.hidden.weight)


def test_what_does_not_fit_or_cannot_be_read_is_a_clear_error(tmp_path) -> None:
    module = load("tinynet:tiny", 10)
    torch.save(load("tinynet:wide", 10).state_dict(), tmp_path / "wide.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    torch.save(module, tmp_path / "whole.pth")
    (tmp_path / "text.safetensors").write_text("x")
    for name, said in (
        ("wide.pth", "differ in shape"),
        ("other.pth", "lack"),
        ("whole.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("nowhere.pth", "neither a file nor torchvision's"),
    ):
        with pytest.raises(WeightsError, match=said):
            load_weights(module, "tinynet:tiny", str(tmp_path / name) if name != "nowhere.pth" else name)
    with pytest.raises(WeightsError, match="neither a file nor torchvision's"):
        load_weights(load("resnet18", 10), "resnet18", "IMAGENET9K")

"""Names of networks."""

import pytest
import torch

import latency
from pruning.networks import UnknownNetwork, load, require_classifier, trace_classifier


def test_mobilenet_v1_is_the_papers() -> None:
    module = load("mobilenet_v1")
    assert sum(p.numel() for p in module.parameters()) == 4_231_976  # as in torch ports of the TensorFlow original
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize("name", ["resnet18", "tinynet:tiny"])
def test_networks_by_name(name: str) -> None:
    assert load(name, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_random_weights_follow_the_seed_alone() -> None:
    """Those of attention, which nothing of ours draws anew, too."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load("tinynet:halves", seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(load("tinynet:halves", seed=3).state_dict(), first, rtol=0, atol=0)
    other = load("tinynet:halves", seed=4).state_dict()
    assert not torch.equal(other["attention.in_proj_weight"], first["attention.in_proj_weight"])


@pytest.mark.parametrize("name", ["resnet1800", "no_such_module:f", "tinynet:no_such_function", "tinynet:nn", "../x", "a:b:c"])
def test_unknown_networks_are_one_clear_error(name: str) -> None:
    with pytest.raises(UnknownNetwork, match=r"network|returned|calling"):
        load(name)


def test_somebody_elses_code_that_raises_is_one_error_that_says_where(tmp_path, monkeypatch) -> None:
    (tmp_path / "theirs.py").write_text("def bad(num_classes):\n    return {}['stem']\n")
    (tmp_path / "spoilt.py").write_text("def bad(num_classes:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownNetwork, match=r"KeyError: 'stem' \(theirs.py, line 2\)"):
        load("theirs:bad")
    with pytest.raises(UnknownNetwork, match="SyntaxError"):
        load("spoilt:bad")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (torch.nn.Flatten(), None),
        (torch.nn.Identity(), "scores"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), "one for each class"),
        (torch.nn.RNN(2, 8), "returns a tuple"),
    ],
)
def test_a_classifier_gives_one_score_for_each_class(module: torch.nn.Module, said: str | None) -> None:
    shape = (1, 3, 2, 2) if not isinstance(module, torch.nn.RNN) else (3, 2, 2)
    if said is None:
        require_classifier(module, "net", shape, 4)
        assert module.training
    else:
        with pytest.raises(UnknownNetwork, match=said):
            require_classifier(module, "net", shape, 4)


def test_a_network_without_channels_to_prune_is_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    with pytest.raises(latency.TraceError, match="net has no channels to prune"):
        trace_classifier(module, "net", (1, 3, 8, 8), 10, align=1)
    one = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    assert len(trace_classifier(one, "net", (1, 3, 8, 8), 10, align=1).genes) == 1


class Counting(torch.nn.Module):
    """Multiplies by how often it has been called, which a trace cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier, self.calls = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 10), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.classifier(self.features(images).mean((2, 3))) * self.calls


def test_a_trace_that_computes_something_else_is_refused() -> None:
    with pytest.raises(latency.TraceError, match="net: the traced network computes something else, its scores are off by"):
        trace_classifier(Counting(), "net", (1, 3, 8, 8), 10, align=1)


class Single(torch.nn.Sequential):
    """Knows its own precision only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self[0].weight.dtype == torch.float32
        return super().forward(images)


def test_what_runs_in_its_own_precision_only_is_taken_as_traced() -> None:
    module = Single(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    assert len(trace_classifier(module, "net", (1, 3, 8, 8), 10, align=1).genes) == 1

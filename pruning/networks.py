"""Names of networks, and the one network torchvision does not have: MobileNetV1."""

from __future__ import annotations

import copy
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latency.errors import MillipruneError, TraceError
from latency.graph.network import Network
from latency.tracing.trace import trace


class UnknownNetwork(MillipruneError):
    """No network of that name."""


class DepthwiseSeparable(nn.Module):
    """Depthwise 3×3 then pointwise 1×1, each with BN and ReLU (MobileNets, arXiv 1704.04861, section 3.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _conv_bn_relu(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = _conv_bn_relu(inputs, outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class MobileNetV1(nn.Module):
    """MobileNetV1 (arXiv 1704.04861, table 1), all widths times `width_mult`; any input of 32 pixels and more."""

    BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0) -> None:
        super().__init__()
        channels = int(32 * width_mult)
        layers: list[nn.Module] = [_conv_bn_relu(3, channels, 3, 2)]
        for base, stride in self.BLOCKS:
            outputs = int(base * width_mult)
            layers.append(DepthwiseSeparable(channels, outputs, stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def mobilenet_v1(num_classes: int = 1000, weights: None = None) -> nn.Module:
    """MobileNetV1. No pretrained weights are published for this definition."""
    if weights is not None:
        raise UnknownNetwork("nobody has published any for this definition")
    return MobileNetV1(num_classes)


EQUAL = 1e-4
"""Relative difference of scores in double precision that is rounding."""

OURS = {"mobilenet_v1": mobilenet_v1}


def load(name: str, num_classes: int = 1000, weights: Any = None, *, seed: int | None = None) -> nn.Module:
    """The network called `name`: one of ours, a torchvision classification model, or `package.module:function`.

    Args:
        name: "mobilenet_v1", "resnet50", "mypackage.models:small_net", …
        num_classes: size of the classifier.
        weights: as torchvision takes them; None starts from random weights.
        seed: what random weights are drawn from, leaving the global generator as it is; by default the global one.

    Raises:
        UnknownNetwork: when there is no such network, saying where it was looked for.
    """
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load(name, num_classes, weights)
    if name in OURS:
        return OURS[name](num_classes=num_classes, weights=weights)
    if ":" in name:
        return _from_function(name, num_classes)
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UnknownNetwork(
            f"network '{name}' is unknown; expected one of {', '.join(OURS)}, a torchvision classification model "
            "(such as mobilenet_v2, resnet50), or package.module:function returning a torch.nn.Module."
        )
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") and weights is None else {}
    return models.get_model(name, weights=weights, num_classes=num_classes, **options)


def _from_function(name: str, num_classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a module beside the user, whichever way the command was started
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the user's code, which may raise anything
        raise UnknownNetwork(
            f"network '{name}' cannot be imported: {_said(error)}. Check the spelling and PYTHONPATH."
        ) from error
    try:
        module = function(num_classes=num_classes)
    except Exception as error:
        raise UnknownNetwork(f"calling '{name}' failed: {_said(error)}; expected a function of num_classes.") from error
    if not isinstance(module, nn.Module):
        raise UnknownNetwork(f"'{name}' returned a {type(module).__name__}; expected a torch.nn.Module.")
    return module


def _said(error: Exception) -> str:
    """What went wrong, and where in somebody else's code."""
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in frame.filename]
    where = f" ({os.path.basename(theirs[-1].filename)}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{where}"


def trace_classifier(module: nn.Module, name: str, shape: Sequence[int], classes: int, align: int) -> Network:
    """`module` traced on images [N, C, H, W] of this `shape`, of which it scores so many classes; `align` is `latency.trace`'s.

    Raises:
        UnknownNetwork: its output is no tensor [N, classes or more].
        TraceError: it cannot be traced, its trace computes something else, or nothing of it can be pruned.
    """
    network = trace(module, tuple(shape), align=align, name=name)
    require_classifier(module, name, shape, classes)
    require_equal(network, module)
    if not network.genes:
        raise TraceError(f"{name} has no channels to prune: every layer meets something that keeps them.")
    return network


def require_classifier(module: nn.Module, name: str, shape: Sequence[int], classes: int) -> None:
    """See that `module`, which runs on images [N, C, H, W] of this `shape`, scores so many classes.

    Raises:
        UnknownNetwork: its output is no tensor [N, classes or more].
    """
    training = module.training
    with torch.no_grad():
        scores = module.eval()(torch.zeros(tuple(shape)))
    module.train(training)
    if not isinstance(scores, Tensor):
        raise UnknownNetwork(f"{name} returns a {type(scores).__name__}; expected one tensor of scores [N, {classes}].")
    if scores.ndim != 2 or scores.shape[1] < classes:
        raise UnknownNetwork(f"{name} returns scores {list(scores.shape)}; expected [N, {classes}], one for each class.")


def require_equal(network: Network, module: nn.Module) -> None:
    """See that the trace `network` of `module`, a classifier, computes the same, in double precision on random images; what
    runs in no other precision than its own is not compared.

    Raises:
        TraceError: it does not.
    """
    images = torch.rand(network.input_shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected, scores = (copy.deepcopy(one).double().eval()(images) for one in (module, network.module))
    except Exception:  # the user's code, in a precision that it may not know
        return
    off, scale = float((scores - expected).abs().max()), float(expected.abs().max())
    if off > EQUAL * scale:
        raise TraceError(
            f"{network.name}: the traced network computes something else, its scores are off by {off / scale:.1%}. "
            "Something in forward() escapes torch.fx; what depends on nothing but its input would not."
        )

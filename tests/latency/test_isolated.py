"""Kernels as models of their own."""

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import latency
from latency.isolated import isolated_models


class Indexed(nn.Module):
    """A bias for every pair of positions, looked up by indices, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.biases = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(2, 144))
        self.register_buffer("places", torch.arange(144 * 144).view(144, 144) % 144)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2)
        scores = (tokens.mT @ tokens).unsqueeze(1) + self.biases[:, self.places]
        return scores.softmax(-1)


def test_every_kernel_runs_alone_but_those_of_indices() -> None:
    net = latency.trace(Indexed(), (1, 3, 12, 12), align=1)
    parts = isolated_models(net.onnx(np.array(net.max_widths)))
    gone = {one.kernel.type for one in net.template.kernels} - {kernel.type for kernel, _ in parts}
    assert "gathernd" in gone
    assert {"matmul", "softmax"} <= {kernel.type for kernel, _ in parts}
    for _, alone in parts:
        session = onnxruntime.InferenceSession(alone)
        session.run(None, {one.name: np.zeros(one.shape, np.float32) for one in session.get_inputs()})

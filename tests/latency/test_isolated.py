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
        self.conv, self.biases = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(2, 16))
        self.register_buffer("places", torch.arange(16).view(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2)
        scores = (tokens.mT @ tokens).unsqueeze(1) + self.biases[:, self.places]
        return scores.softmax(-1)


def test_every_kernel_runs_alone_whatever_types_it_reads() -> None:
    net = latency.trace(Indexed(), (1, 3, 2, 2), align=1)
    parts = isolated_models(net.onnx(np.array(net.max_widths)))
    assert {"gather", "matmul+add", "softmax"} & {kernel.type for kernel, _ in parts}
    for _, alone in parts:
        session = onnxruntime.InferenceSession(alone)
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        session.run(None, {one.name: np.zeros(one.shape, kinds[one.type]) for one in session.get_inputs()})

"""What shapes of kernels say of their work, against what tracing counts."""

from dataclasses import asdict

import onnx
import pandas as pd
import pytest
import torch

from latency.graph.kernels import find_kernels, is_product
from latency.graph.work import Kernels


@pytest.mark.parametrize("name", ["tinynet:tiny", "tinynet:mixed", "tinynet:hourglass"])
def test_kernels_multiply_and_add_as_often_as_the_layers_they_come_from(name: str, traced, rng, random_widths) -> None:
    net = traced(name)
    (widths,) = random_widths(net, rng, 1)
    found = pd.DataFrame([asdict(one.kernel) for one in find_kernels(onnx.load_from_string(net.onnx(widths)))])
    products = found[[is_product(kind) for kind in found["type"]]]
    assert Kernels.of(products).terms()[:, 1].sum() == net.macs(widths)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kind"),
    [(4, 6, 1, "convtranspose2x3s2"), (8, 12, 2, "groupconvtranspose2x3s2g4"), (6, 6, 6, "depthwisetranspose2x3s2")],
)
def test_transposed_convolutions_make_a_window_of_each_position(inputs: int, outputs: int, groups: int, kind: str) -> None:
    layer = torch.nn.ConvTranspose2d(inputs, outputs, (2, 3), stride=2, groups=groups)
    program = torch.onnx.export(layer.eval(), (torch.zeros(1, inputs, 5, 7),), dynamo=True, verbose=False)
    (kernel,) = (one.kernel for one in find_kernels(program.model_proto))
    assert (kernel.type, kernel.cin, kernel.cout) == (kind, inputs, outputs)
    terms = Kernels.of(pd.DataFrame([asdict(kernel)])).terms()[0]
    assert terms[1] == 2 * 3 * inputs * outputs // groups * 5 * 7

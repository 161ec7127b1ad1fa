"""Generators against their definitions, written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pruning.generators import FullGenerator, LowRankGenerator

KEPT = (slice(0, 4), slice(0, 3))
SHAPE = (6, 5, 3, 3)


def woken(kind):
    """A generator with random parameters everywhere."""
    generator = kind((0, 2), torch.randn(SHAPE), hidden=4).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter)
    return generator


def written_out(generator, scales: torch.Tensor) -> torch.Tensor:
    """All weights, by loops over the definition."""
    code = F.relu(generator.encoder(scales[[0, 2]]))
    if isinstance(generator, FullGenerator):
        return generator.base + torch.einsum("oikh,h->oik", generator.bank.values, code).view(SHAPE)
    left = torch.einsum("orh,h->or", generator.left, code)
    return generator.base + torch.einsum("or,rikl->oikl", left, generator.right)


@pytest.mark.parametrize("kind", [FullGenerator, LowRankGenerator])
@pytest.mark.parametrize("inputs", [slice(0, 3), np.array([0, 2, 4])], ids=["first", "of a concatenation"])
def test_a_generator_gives_the_crop_of_all_its_weights(kind, inputs) -> None:
    torch.manual_seed(0)
    generator, scales = woken(kind), torch.rand(3, dtype=torch.float64)
    kept = (slice(0, 4), inputs)
    torch.testing.assert_close(generator(scales, kept), written_out(generator, scales)[kept])


@pytest.mark.parametrize("kind", [FullGenerator, LowRankGenerator])
@pytest.mark.parametrize("inputs", [slice(0, 3), np.array([0, 2, 4])], ids=["first", "of a concatenation"])
def test_gradients_are_autograds(kind, inputs) -> None:
    torch.manual_seed(0)
    generator, kept = woken(kind), (slice(0, 4), inputs)
    upstream = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    scales = [torch.rand(3, dtype=torch.float64) for _ in range(2)]  # gradients of several structures add up
    expected = sum((written_out(generator, one)[kept] * upstream).sum() for one in scales)
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]  # a bank trains itself
    gradients = torch.autograd.grad(expected, trained)
    for one in scales:
        generator(one, kept).backward(upstream)
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("kind", [FullGenerator, LowRankGenerator])
def test_it_starts_from_the_given_weights_once_it_forgets_widths(kind) -> None:
    start = torch.randn(SHAPE)
    generator = kind((0, 2), start, hidden=4)
    generator.forget_widths()
    for scales in (torch.rand(3), torch.rand(3)):
        assert torch.equal(generator(scales, KEPT), start[KEPT])

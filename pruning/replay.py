"""How training steps and scores are computed: in mixed precision, and on a GPU as one CUDA graph.

A training step of a PruningNet is some thousand operations, which take a GPU longer to start than to compute. They are the same
in every step, since a PruningNet's weights keep their size there, so they are recorded once and started as one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from pruning.bank import Bank, banks
from pruning.hardware import mixed_precision

WARM_UP = 3
"""Calls before one is recorded: they make gradients and buffers, and libraries choose their kernels."""


class Replayed:
    """A function of tensors that computes with `module` and changes nothing but its gradients, banks and buffers.

    Where all tensors it is given lie on a GPU, calls replay what an early one recorded: these keep their shapes, and what was
    returned by the call before is overwritten. What cannot be recorded is computed operation by operation, as all is on a CPU.
    """

    def __init__(self, compute: Callable[..., Tensor], module: nn.Module, *, backward: bool) -> None:
        self._compute, self._backward = compute, backward
        self._banks = list(banks(module).values())
        self._calls = 0
        self._recording: _Recording | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not all(one.is_cuda for one in inputs):
            return self._computed(*inputs)
        self._calls += 1
        if self._calls <= WARM_UP:
            return _beside(self._computed, *inputs)
        if self._calls == WARM_UP + 1:
            with suppress(RuntimeError):  # of a network that waits for the GPU, say
                self._recording = _Recording(self._computed, self._banks, inputs)
        return self._recording(*inputs) if self._recording else self._computed(*inputs)

    def _computed(self, *inputs: Tensor) -> Tensor:
        with mixed_precision(inputs[0].device, backward=self._backward):
            return self._compute(*inputs)


class _Recording:
    """A CUDA graph, with the tensors it reads and writes, and how many gradients it leaves in each bank. Recording computes
    nothing.

    Raises:
        RuntimeError: CUDA cannot record this.
    """

    def __init__(self, compute: Callable[..., Tensor], counted: list[Bank], inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [one.clone() for one in inputs]
        self._graph = torch.cuda.CUDAGraph()
        before = [bank.count for bank in counted]
        try:
            with torch.cuda.graph(self._graph):
                self._output = compute(*self._inputs)
            self._gradients = {bank: bank.count - count for bank, count in zip(counted, before, strict=True)}
        finally:
            for bank, count in zip(counted, before, strict=True):
                bank.count = count

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        for bank, gradients in self._gradients.items():
            bank.count += gradients
        return self._output


def _beside(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Compute on a stream of its own, as what is recorded is."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        output = compute(*inputs)
    current.wait_stream(stream)
    return output

"""Processes that train together, as torchrun starts them: each with its own part of every batch and its own structures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pruning.bank import banks

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""So long the others wait for the first, which may have to measure a table, to decode images or to search."""


@dataclass(frozen=True)
class Workers:
    """This process among `size` that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Workers:
        """The group that torchrun started this process in, joined at the first call; alone where it did not."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def salt(self) -> tuple[int, ...]:
        """Set this process's random draws apart from the others'; nothing for the first, so that it draws as if alone."""
        return (self.rank,) if self.rank else ()

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """The first process does it alone, the others once it is through: they find what it left."""
        if self.rank:
            self._meet()
        yield
        if self.size > 1 and not self.rank:
            self._meet()

    def told(self, decide: Callable[[], T]) -> T:
        """What the first process decides, told to all."""
        said = [None if self.rank else decide()]
        if self.size > 1:
            dist.broadcast_object_list(said, device=torch.device("cpu"))
        return cast("T", said[0])

    def begin_alike(self, module: nn.Module) -> None:
        """Give the module in every process the weights and buffers of the first's."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def average_statistics(self, module: nn.Module) -> None:
        """Replace BN's running statistics, each of one process's parts of the batches, by their means over all."""
        for name, buffer in module.named_buffers() if self.size > 1 else ():
            if name.endswith(("running_mean", "running_var")):
                dist.all_reduce(buffer)
                buffer /= self.size

    def average_gradients(self, module: nn.Module) -> None:
        """Replace every gradient by its mean over all processes; one that a process lacks counts as 0.

        By hand rather than by DistributedDataParallel: generators keep their gradients themselves (see `pruning.generators`
        and `pruning.bank`), past the hooks it relies on.
        """
        if self.size == 1:
            return
        for bank in banks(module).values():
            bank.share(self._gathered)
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.size

    def _meet(self) -> None:
        """Wait until all are here, at rest: a GPU's barrier keeps a core of each that waits busy, beside measurements."""
        dist.all_reduce(torch.zeros(1))

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

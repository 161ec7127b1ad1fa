"""Processes that train together, as torchrun starts them: each with its own part of every batch and its own structures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pruning.bank import banks

PATIENCE = timedelta(days=1)
"""So long the others wait for the first, which may have to measure a table or to decode images."""


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
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def salt(self) -> tuple[int, ...]:
        """Set this process's random draws apart from the others'; nothing for the first, so that it draws as if alone."""
        return (self.rank,) if self.rank else ()

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """The first process does it alone, the others once it is through: they find what it left."""
        if self.rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.rank:
            dist.barrier()

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

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

"""A generator's bank of weights, trained by SGD that touches the whole of it only every few steps.

The bank holds `hidden` numbers for every weight of a network. A step of SGD with momentum reads or writes bank, momentum
and gradient six times, which takes longer than a small network itself. But the gradient is an outer product (that of the
weights ⊗ the code), and SGD is linear in it: for every element, with rate η, momentum μ and decay λ, a step maps

    (p, m) → A (p, m) + b g,    A = [[1 − ηλ, −ημ], [λ, μ]],    b = (−η, 1).

So the last few gradients are kept as products, what the steps since have made of everything are a few scalars, and all is
settled at once. This is SGD itself, up to rounding. On a GPU every step changes the bank at once: it has the bandwidth, and
what takes its time is to start operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency.graph import axis

CAPACITY = 16
"""Gradients that are kept before they are settled."""

MOST_IN_A_STEP = 4

BLOCK = 16_384
"""Weights settled at a time: their values and momentum stay in a CPU's cache."""

Kept = axis.Kept | None
"""What is kept of a weight [out, in, kh, kw]; None: all of it."""


class Bank(nn.Module):
    """float32 [out, in, area, hidden]; `product` with a code float32[hidden] gives weights.

    `values` and `momentum` are those after the last settling; an element's own are carry[0] · (value, momentum) +
    Σ recent[k, 0] · gradients[k] ⊗ codes[k], and likewise with carry[1] and recent[:, 1] its momentum's.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: int, deviation: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.empty(*shape, hidden), requires_grad=False)
        nn.init.normal_(self.values, std=deviation)
        self.momentum: Tensor | None = None  # all of these are made when training begins
        self.gradients, self.codes = torch.empty(0, *shape), torch.empty(0, hidden)
        self.recent, self.carry = np.empty((0, 2)), np.eye(2)
        self.count = self.stepped = 0

    def product(self, code: Tensor, kept: Kept) -> Tensor:
        """The bank's values times `code` [hidden], cropped to kept[0] × kept[1]: [o, i, area]. Remembers its gradient."""
        result: Tensor = _Product.apply(code, self, (slice(None),) if kept is None else axis.mesh(kept[:2]))
        return result

    @torch.no_grad()
    def step(self, rate: float, momentum: float, decay: float) -> None:
        """One step of SGD with the gradients remembered since the last."""
        if self.values.is_cuda:
            self._step_at_once(rate, momentum, decay)
            return
        transition = np.array([[1 - rate * decay, -rate * momentum], [decay, momentum]])
        self.carry = transition @ self.carry
        self.recent = self.recent @ transition.T
        self.recent[self.stepped : self.count] = -rate, 1.0
        self.stepped = self.count
        if self.count > CAPACITY - MOST_IN_A_STEP:
            self.settle()

    def _step_at_once(self, rate: float, momentum: float, decay: float) -> None:
        assert self.momentum is not None, "a step without gradients"
        gradients, codes = self.gradients[: self.count].flatten(1).T, self.codes[: self.count]
        self.momentum.flatten(0, 2).addmm_(gradients, codes, beta=momentum)
        self.momentum.add_(self.values, alpha=decay)
        self.values.add_(self.momentum, alpha=-rate)
        self._clear()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring `values` and `momentum` up to date."""
        if self.momentum is None:
            return
        (a, b), (c, d) = self.carry.tolist()
        codes = [self.recent_of(part, self.count)[:, None] * self.codes[: self.count] for part in (0, 1)]
        many = max(1, BLOCK // self.values[0, ..., 0].numel())
        for start in range(0, len(self.values), many):
            rows = slice(start, start + many)
            gradients = self.gradients[: self.count, rows].flatten(1).T
            value, velocity = self.values[rows].flatten(0, 2), self.momentum[rows].flatten(0, 2)
            changed = torch.addmm(velocity, gradients, codes[1], beta=d).add_(value, alpha=c)
            value.addmm_(gradients, codes[0], beta=a).add_(velocity, alpha=b)
            velocity.copy_(changed)
        self._clear()

    def recent_of(self, part: int, count: int) -> Tensor:
        """`recent[:count, part]` in the values' type."""
        return torch.from_numpy(self.recent[:count, part]).to(self.values)

    def remember(self, code: Tensor, gradient: Tensor, kept: tuple[Any, ...]) -> None:
        """Keep the gradient [o, i, area] of the weights that `code` made."""
        self._make_room(1)
        self.gradients[self.count].zero_()[kept] = gradient
        self.codes[self.count] = code
        self.count += 1

    def share(self, gather: Callable[[Tensor], list[Tensor]]) -> None:
        """Replace the gradients since the last step by those of all processes, each counting as one part of their mean."""
        new = slice(self.stepped, self.count)
        gradients, codes = torch.cat(gathered := gather(self.gradients[new])), torch.cat(gather(self.codes[new]))
        self.count = self.stepped
        self._make_room(len(codes))
        self.count += len(codes)
        self.gradients[self.stepped : self.count] = gradients / len(gathered)
        self.codes[self.stepped : self.count] = codes

    def training_state(self) -> dict[str, Tensor]:
        """What training needs besides the values to go on exactly."""
        if self.momentum is None:
            return {}
        count = self.count
        return {
            "momentum": self.momentum, "gradients": self.gradients[:count], "codes": self.codes[:count],
            "carry": torch.tensor(self.carry), "recent": torch.tensor(self.recent[:count]),
        }  # fmt: skip

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""
        if not state:
            return
        self._make_room(len(state["codes"]))
        self.count = self.stepped = len(state["codes"])
        self.momentum = torch.empty_like(self.values).copy_(state["momentum"])  # aligned as it was: a file's need not be
        self.gradients[: self.count], self.codes[: self.count] = state["gradients"], state["codes"]
        self.carry, self.recent[: self.count] = state["carry"].numpy(), state["recent"].numpy()

    def _make_room(self, more: int) -> None:
        if self.momentum is None:
            self.momentum = torch.zeros_like(self.values)
        spare = self.count + more - len(self.gradients)
        if spare > 0:
            spare = max(spare, CAPACITY)
            shape = self.values.shape
            self.gradients = torch.cat([self.gradients.to(self.values), self.values.new_zeros(spare, *shape[:3])])
            self.codes = torch.cat([self.codes.to(self.values), self.values.new_zeros(spare, shape[3])])
            self.recent = np.concatenate([self.recent, np.zeros((spare, 2))])

    def _clear(self) -> None:
        self.carry, self.recent[:] = np.eye(2), 0.0
        self.count = self.stepped = 0


def banks(module: nn.Module) -> dict[str, Bank]:
    """All banks in `module`, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Bank)}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, code: Tensor, bank: Bank, kept: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(code)
        ctx.bank, ctx.kept = bank, kept
        values = bank.values[kept]
        a, b = bank.carry[0].tolist()
        product = _times(a * code, values.flatten(1, 2).mT)
        if bank.momentum is not None and b:
            product += _times(b * code, bank.momentum[kept].flatten(1, 2).mT)
        if known := bank.stepped:
            weights = bank.recent_of(0, known) * (bank.codes[:known] @ code)
            product += _times(weights, bank.gradients[:known, *kept].flatten(2).transpose(0, 1))
        return product.view(values.shape[:3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (code,) = ctx.saved_tensors
        bank, kept = ctx.bank, ctx.kept
        upstream = gradients[0].flatten(1)
        a, b = bank.carry[0].tolist()
        of_code = a * _times(upstream, bank.values[kept].flatten(1, 2)).sum(0)
        if bank.momentum is not None and b:
            of_code += b * _times(upstream, bank.momentum[kept].flatten(1, 2)).sum(0)
        if known := bank.stepped:
            along = _times(upstream, bank.gradients[:known, *kept].flatten(2).permute(1, 2, 0)).sum(0)
            of_code += (bank.recent_of(0, known) * along) @ bank.codes[:known]
        bank.remember(code, gradients[0], kept)
        return of_code, None, None


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """[o, n]: a row [k], or one for each matrix [o, k], times matrices [o, k, n].

    Of the ways to write products with a crop of the bank, this one reads it where it lies, at the memory's speed.
    """
    return torch.bmm(rows.expand(len(matrices), -1).unsqueeze(1), matrices).squeeze(1)

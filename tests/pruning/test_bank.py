"""A bank that settles its steps late is trained exactly as by torch's SGD."""

import numpy as np
import pytest
import torch

from pruning.bank import CAPACITY, Bank

SHAPE = (6, 5, 9)
HIDDEN = 4


def crops(rng: np.random.Generator):
    outputs, inputs = rng.integers(1, SHAPE[0] + 1), rng.integers(1, SHAPE[1] + 1)
    if rng.random() < 0.3:  # of a concatenation
        return slice(0, outputs), np.sort(rng.choice(SHAPE[1], inputs, replace=False))
    return slice(0, outputs), slice(0, inputs)


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers where no vector instruction likes them, as a file's may lie."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


def trained(steps: int, per_step: int, resumed_at: int = -1, *, at_once: bool = False) -> tuple[Bank, torch.Tensor, list, list]:
    """A bank and a plain parameter after the same training, and the products and gradients of codes on the way."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    bank = Bank(SHAPE, HIDDEN, 1.0).double()
    plain = bank.values.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([plain], lr=0.1, momentum=0.9, weight_decay=0.01)
    ours, theirs = [], []
    for step in range(steps):
        if step == resumed_at:
            values, state = bank.values.detach().clone(), {k: t.clone() for k, t in bank.training_state().items()}
            with torch.random.fork_rng():
                bank = Bank(SHAPE, HIDDEN, 1.0).double()
            bank.values.data.copy_(values)
            bank.load_training_state({key: shifted(tensor) for key, tensor in state.items()})
        rate = 0.1 * (1 - step / steps)
        for _ in range(per_step):
            kept = crops(rng)
            code = torch.randn(HIDDEN, dtype=torch.float64)
            codes = [code.clone().requires_grad_() for _ in range(2)]
            products = [bank.product(codes[0], kept), plain[kept] @ codes[1]]
            target = torch.randn_like(products[0])
            for product in products:
                ((product - target) ** 2).mean().backward()
            ours += [products[0].detach(), codes[0].grad]
            theirs += [products[1].detach(), codes[1].grad]
        bank.step(rate, 0.9, 0.01)
        if at_once:
            bank.settle()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return bank, plain.detach(), ours, theirs


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("per_step", [1, 3])
def test_every_product_gradient_and_value_is_that_of_sgd(per_step: int, at_once: bool) -> None:
    bank, plain, ours, theirs = trained(3 * CAPACITY, per_step, at_once=at_once)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    bank.settle()
    torch.testing.assert_close(bank.values.data, plain)


def test_settling_is_late(monkeypatch) -> None:
    settled = []
    settle = Bank.settle
    monkeypatch.setattr(Bank, "settle", lambda bank: settled.append(bank.count) or settle(bank))
    trained(2 * CAPACITY, 1)
    assert len(settled) <= 3
    assert all(count > CAPACITY // 2 for count in settled)


@pytest.mark.parametrize("resumed_at", [1, 5, 20])
def test_training_goes_on_bit_for_bit(resumed_at: int) -> None:
    straight, resumed = trained(24, 1)[2], trained(24, 1, resumed_at)[2]
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_what_a_file_gives_is_laid_where_training_would_have_it() -> None:
    """Matrix products of the same numbers may differ in the last bit with where they lie."""
    state = trained(5, 1)[0].training_state()
    bank = Bank(SHAPE, HIDDEN, 1.0).double()
    bank.load_training_state({key: shifted(tensor) for key, tensor in state.items()})
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (bank.momentum, bank.gradients, bank.codes))


def test_before_training_it_takes_no_more_memory_than_its_values() -> None:
    bank = Bank(SHAPE, HIDDEN, 1.0)
    bank.product(torch.randn(HIDDEN), (slice(0, 2), slice(0, 3)))
    bank.settle()
    assert bank.training_state() == {}
    assert bank.momentum is None

"""A device whose timing law is known exactly: an oracle for everything that is fitted to measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import onnx

from latency.devices import Events, Times
from latency.devices.local import LocalDevice
from latency.graph.kernels import Kernel, find_kernels


def exact_ms(kernel: Kernel) -> float:
    """The law of `LawfulDevice`: multiply-adds, bytes moved and a start-up time."""
    mixes = kernel.type.startswith(("conv", "gemm"))
    macs = (kernel.cin if mixes else 1) * kernel.cout * kernel.out_height * kernel.out_width
    moved = kernel.cin * kernel.height * kernel.width + kernel.cout * kernel.out_height * kernel.out_width
    return kernel.batch * (2e-6 * macs + 1e-6 * moved) + 0.002


class LawfulModel:
    def __init__(self, model: bytes, law: Callable[[Kernel], float], link: Callable[[float], float]) -> None:
        self.placed = find_kernels(onnx.load_from_string(model))
        self.law = law
        self.total = link(sum(law(one.kernel) for one in self.placed))

    def profile(self, runs: int) -> Events:
        return [((one.output,), self.law(one.kernel)) for one in self.placed]

    def times(self, runs: int) -> Times:
        return Times(np.full(runs, self.total), np.full(runs, True), core_ms=1.0)

    def run(self, times: int) -> None:
        time.sleep(times * self.total / 1000)

    def close(self) -> None:
        pass


class LawfulDevice(LocalDevice):
    """Times models by `law`, then `link`: an oracle for everything that is fitted to measurements."""

    name = "lawful"

    def __init__(self, link: Callable[[float], float] = float, law: Callable[[Kernel], float] = exact_ms) -> None:
        self.link, self.law = link, law

    def fingerprint(self) -> dict[str, str]:
        return {"device": self.name, "precision": "fp32", "threads": "1"}

    def load(self, model: bytes) -> LawfulModel:
        return LawfulModel(model, self.law, self.link)


CORE_MS = 0.06


class Wandering(LawfulDevice):
    """Every model finds the core up to a fifth slower than it can be; `seen` tells whether the fixed computation shows it."""

    def __init__(self, *, seen: bool = True, core_ms: float = CORE_MS) -> None:
        super().__init__()
        self.seen, self.core_ms, self.rng = seen, core_ms, np.random.default_rng(0)

    def load(self, model: bytes) -> LawfulModel:
        loaded = super().load(model)
        slower = self.rng.uniform(1.0, 1.2)
        core_ms = self.core_ms * slower if self.seen else math.nan
        loaded.times = lambda runs: Times(np.full(runs, loaded.total * slower), np.full(runs, True), core_ms)
        return loaded

"""What training and evaluation compute on: the GPU where there is one, in mixed precision where that is faster and as good."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def compute_device() -> torch.device:
    """The current GPU, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for what tolerates it, on GPUs that compute in it (8.0 and newer); needs no loss scaling. Else fp32."""
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

"""Tests that need a GPU."""

import pytest
import torch


def on_gpu(test):
    """Marks a test that needs one."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))

"""python tools/list_networks.py: which torchvision classification models trace, and why the others do not."""

from __future__ import annotations

import warnings

import torch
from torchvision import models

from latency import trace
from latency.errors import MillipruneError


def main() -> None:
    """One line a model: its genes, or the first thing that cannot be followed."""
    warnings.simplefilter("ignore")
    names = models.list_models(module=models)
    traced = 0
    for name in names:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("cpu" if name.startswith("regnet") else "meta"):  # shapes are enough, but regnets compute theirs
            module = models.get_model(name, weights=None, **options)
        try:
            network = trace(module, (1, 3, 224, 224), name=name)
        except MillipruneError as error:
            print(f"no   {name:22} {error}", flush=True)
        else:
            traced += 1
            print(f"yes  {name:22} {len(network.genes)} genes, {len(network.layers)} layers", flush=True)
    print(f"{traced} of {len(names)} trace")


if __name__ == "__main__":
    main()

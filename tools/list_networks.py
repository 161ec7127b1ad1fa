"""python tools/list_networks.py: which torchvision classification models trace, and why the others do not."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from latency.errors import MillipruneError, reported_by_command

Option = typer.Option


def main(
    network: Annotated[list[str] | None, Option(help="May be given several times (default: all of torchvision's).")] = None,
) -> None:
    """One line a model: its genes, or the first thing that cannot be followed."""
    with reported_by_command():
        from torchvision import models

        warnings.simplefilter("ignore")
        known = models.list_models(module=models)
        for name in network or []:
            if name not in known:
                raise MillipruneError(f"--network {name} given; expected one of torchvision's: {', '.join(known)}.")
        names = network or known
        traced = sum(_traces(name) for name in names)
        print(f"{traced} of {len(names)} trace")


def _traces(name: str) -> bool:
    """Whether a model traces; says so."""
    import torch
    from torchvision import models

    from latency import trace

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # shapes are enough, but regnets compute theirs
        module = models.get_model(name, weights=None, **options)
    try:
        network = trace(module, (1, 3, 224, 224), name=name)
    except MillipruneError as error:
        print(f"no   {name:22} {error}", flush=True)
        return False
    kept = f"; {len(network.unfollowed)} operations keep their channels" if network.unfollowed else ""
    print(f"yes  {name:22} {len(network.genes)} genes, {len(network.layers)} layers{kept}", flush=True)
    return True


if __name__ == "__main__":
    typer.run(main)

"""python tools/list_networks.py: which networks trace, what of them is not pruned, and why the others do not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from latency.errors import MillipruneError, reported_by_command
from search import options

if TYPE_CHECKING:
    from torch import nn

Option = typer.Option


def main(
    network: Annotated[
        list[str] | None,
        Option(help="mobilenet_v1, a torchvision model, or package.module:function; may be given several times, and then what "
               "keeps its channels is listed (default: all of torchvision's)."),
    ] = None,
    input_size: options.InputSize = 224,
) -> None:  # fmt: skip
    """One line a network: its genes, or the first thing that cannot be followed."""
    with reported_by_command():
        from torchvision import models

        warnings.simplefilter("ignore")
        known = models.list_models(module=models)
        names = network or known
        modules = ((name, _shapes_of(name) if name in known else _loaded(name)) for name in names)
        traced = sum(_traces(name, module, input_size, detailed=bool(network)) for name, module in modules)
        print(f"{traced} of {len(names)} trace")


def _shapes_of(name: str) -> nn.Module:
    """One of torchvision's, without weights: shapes are enough, but regnets compute theirs."""
    import torch
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return models.get_model(name, weights=None, **options)


def _loaded(name: str) -> nn.Module:
    from pruning.networks import load

    return load(name)


def _traces(name: str, module: nn.Module, size: int, *, detailed: bool) -> bool:
    """Whether a network traces; says so, and with `detailed` what of it is not pruned."""
    from latency import trace

    try:
        network = trace(module, (1, 3, size, size), name=name)
    except MillipruneError as error:
        print(f"no   {name:22} {error}", flush=True)
        return False
    kept = f"; {len(network.unfollowed)} operations keep their channels" if network.unfollowed else ""
    print(f"yes  {name:22} {len(network.genes)} genes, {len(network.layers)} layers{kept}", flush=True)
    for operation in network.unfollowed if detailed else ():
        print(f"       {operation}")
    return True


if __name__ == "__main__":
    typer.run(main)

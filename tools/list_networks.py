"""python tools/list_networks.py: which networks trace, what of them is not pruned, and why the others do not."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from latency.errors import MillipruneError, reported_by_command
from search import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

Option = typer.Option


def main(
    network: Annotated[
        list[str] | None,
        Option(help="mobilenet_v1, a torchvision model, or package.module:function; may be given several times, and then what "
               "keeps its channels is listed (default: all of a library's)."),
    ] = None,
    library: Annotated[str, Option(help="torchvision, or timm: one network of each of its files.")] = "torchvision",
    input_size: options.InputSize = 224,
) -> None:  # fmt: skip
    """One line a network: its genes, or the first thing that cannot be followed."""
    with reported_by_command():
        warnings.simplefilter("ignore")
        logging.disable()  # timm names models that it has renamed
        networks = _named(network, input_size) if network else _all_of(library, input_size)
        traced = [_traces(*one, detailed=bool(network)) for one in networks]
        print(f"{sum(traced)} of {len(traced)} trace")


def _named(names: list[str], size: int) -> Iterator[tuple[str, nn.Module, int]]:
    from pruning.networks import load

    for name in names:
        yield name, load(name), size


def _all_of(library: str, size: int) -> Iterator[tuple[str, nn.Module, int]]:
    libraries = {"torchvision": _of_torchvision, "timm": _of_timm}
    if library not in libraries:
        raise MillipruneError(f"library '{library}' is unknown; expected one of {', '.join(libraries)}.")
    return libraries[library](size)


def _of_torchvision(size: int) -> Iterator[tuple[str, nn.Module, int]]:
    """Without weights: shapes are enough, but regnets compute theirs."""
    import torch
    from torchvision import models

    for name in models.list_models(module=models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            module = models.get_model(name, weights=None, **options)
        yield name, module, size


def _of_timm(size: int) -> Iterator[tuple[str, nn.Module, int]]:
    """The first of each architecture, for images of the size it was made for, or of `size`. Some compute with their weights at
    once."""
    import torch

    try:
        import timm
    except ImportError as error:
        raise MillipruneError("timm is not installed; pip install timm.") from error
    for name in (timm.list_models(module=module)[0] for module in timm.list_modules()):
        try:
            with torch.device("meta"):
                module = timm.create_model(name)
        except (RuntimeError, NotImplementedError):
            module = timm.create_model(name)
        yield name, module, (timm.get_pretrained_cfg_value(name, "input_size") or (3, size, size))[1]


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

"""Which layers of a model are pruned when nobody names them: what training methods leave dense."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from nmcompile.errors import PatternError

FEW_CHANNELS = 4  # a first convolution that reads no more stays dense
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class LayerFacts:
    """What decides about one layer; `inputs` counts its input channels, all groups together."""

    name: str
    op: Literal["conv2d", "linear", "recurrent", "other"]
    inputs: int
    groups: int = 1


def left_out(
    layers: Sequence[LayerFacts], only: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, str]:
    """Why layers are left alone, by name; those that are not in it are eligible.

    Not eligible are depthwise convolutions (one weight per tap: nothing to skip), the first
    convolution if it reads at most 4 channels, and the last linear layer (the classifier). A layer
    named in `only` is eligible whatever it is.

    Args:
        layers: all convolutions and linear layers, in order.
        only: names or wildcards (`layer1.*`) of the only layers to take; None for all eligible.
        exclude: names or wildcards of layers to leave alone.

    Raises:
        PatternError: a name or wildcard fits no layer.
    """
    names = [layer.name for layer in layers]
    for wanted in (*(only or ()), *exclude):
        if not any(fnmatchcase(name, wanted) for name in names):
            shown = ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")
            raise PatternError(
                f"no layer is called {wanted}: expected one of {shown}; `nmc inspect` lists all"
            )
    first = next((layer.name for layer in layers if layer.op == "conv2d"), None)
    last = next((layer.name for layer in reversed(layers) if layer.op == "linear"), None)
    reasons: dict[str, str] = {}
    for layer in layers:
        if _matches(layer.name, exclude):
            reasons[layer.name] = "it is excluded"
        elif only is not None:
            if not _matches(layer.name, only):
                reasons[layer.name] = "it is not among the named layers"
        elif layer.op == "conv2d" and layer.groups == layer.inputs > 1:
            reasons[layer.name] = "it is a depthwise convolution"
        elif layer.name == first and layer.inputs <= FEW_CHANNELS:
            reasons[layer.name] = f"it is the first convolution and reads {layer.inputs} channels"
        elif layer.name == last:
            reasons[layer.name] = "it is the classifier"
    return reasons


def _matches(name: str, wanted: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in wanted)

"""The command that quantises models, and the options that `nmc compile` shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmcompile.cli.checks import check_data, check_model, check_written
from nmcompile.cli.guard import guarded, working
from nmcompile.cli.options import (
    JsonOption,
    ModelArgument,
    ShapeOption,
    find_model,
    parse_list,
    shapes_of,
)
from nmcompile.cli.output import print_facts, print_json
from nmcompile.tables import size

if TYPE_CHECKING:
    from nmcompile.images import Normalisation
    from nmcompile.quantization import Quantization

DataOption = Annotated[
    Path,
    typer.Option(
        help="What the model sees in use: a folder of images or of .npy files, or of one subfolder "
        "of them per class; or a .npz with an array for each input, and labels if known."
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(min=1, help="The most samples to take, spread evenly over the data; 256."),
]
StatisticsOption = Annotated[
    str | None,
    typer.Option(
        help="How ranges of activations are found: minmax (default), entropy or percentile."
    ),
]
MeanOption = Annotated[
    str,
    typer.Option(
        metavar="M[,M,M]",
        help="Taken from the pixels of images, which are cropped to the input's size and from 0 to "
        "1. By default ImageNet's for 3 channels, as in `nmc bench`, and 0 for one.",
    ),
]
StdOption = Annotated[
    str,
    typer.Option(
        metavar="S[,S,S]",
        help="What pixels are divided by after that. By default ImageNet's for 3 channels, and 1 "
        "for one.",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A layer to leave in float32, as `nmc inspect` names it; wildcards as in 'stem*'. May "
        "be repeated.",
    ),
]
MaxLossOption = Annotated[
    str,
    typer.Option(
        metavar="LOSS",
        help="Leave layers in float32, worst first, until the first output loses no more: 0.5% is "
        "the share of samples whose top class may become another, 30dB the signal-to-noise ratio "
        "to keep.",
    ),
]


def read_settings(
    samples: int | None,
    statistics: str | None,
    mean: str,
    std: str,
    keep_float: Sequence[str] | None,
    max_loss: str,
    rank: bool = False,
) -> Quantization | None:
    """What the options say; None where they say nothing.

    Raises:
        InputError: the largest loss or the normalisation is none.
    """
    from nmcompile.quantization import MaxLoss, Quantization

    said = {
        "samples": samples,
        "statistics": statistics,
        "normalisation": _normalisation(mean, std),
        "keep_float": keep_float,
        "max_loss": MaxLoss.parse(max_loss) if max_loss else None,
        "rank": rank,
    }
    decided: dict[str, Any] = {name: value for name, value in said.items() if value}
    return Quantization(**decided) if decided else None


def _normalisation(mean: str, std: str) -> Normalisation | None:
    from nmcompile.images import Normalisation

    if not mean and not std:
        return None
    if not (mean and std):
        raise typer.BadParameter(
            "images are normalised by both --mean and --std: expected both, found one",
            param_hint="--std" if mean else "--mean",
        )
    return Normalisation(_numbers("--mean", mean), _numbers("--std", std))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in parse_list(text))
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers such as 0.485,0.456,0.406, found {text!r}", param_hint=option
        ) from None


@guarded
def quantize_model(
    model: ModelArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The ONNX file to write; missing folders are made."),
    ],
    data: DataOption,
    samples: SamplesOption = None,
    statistics: StatisticsOption = None,
    mean: MeanOption = "",
    std: StdOption = "",
    keep_float: KeepOption = None,
    max_loss: MaxLossOption = "",
    rank: Annotated[
        bool, typer.Option("--rank", help="Quantise each layer alone, to see which hurts most.")
    ] = False,
    shape: ShapeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fold a model and quantise it to int8: weights whose zeros stay zeros, in ONNX's Q/DQ form."""
    check_model(model)
    check_written(output, model, ".onnx")
    check_data(data)
    from nmcompile.quantization import quantize

    settings = read_settings(samples, statistics, mean, std, keep_float, max_loss, rank)
    with working() as progress:
        progress("reading the model")
        result = quantize(
            find_model(model, shape),
            data,
            output=output,
            quantization=settings,
            shapes=shapes_of(shape),
            progress=progress,
        )
    if as_json:
        nbytes = output.stat().st_size
        print_json({"output": str(output), "bytes": nbytes, "report": result.report.to_dict()})
        return
    typer.echo(f"{result.report}\n")
    print_facts({"output": f"{output} ({size(output.stat().st_size)})"})

"""Operators of detectors that torch alone has not got, and how torch's exporter writes them.

Their results in torch are those of torchvision, whose functions they are written after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.onnx._internal.torchscript_exporter.utils import register_custom_op_symbolic
from torch.onnx.symbolic_helper import _parse_arg as _parse

OPSET = 17


@torch.library.custom_op("zoo::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Indices of boxes (n, 4) that no kept one of a higher score overlaps, best first.

    overlap: intersection over union above which the lower one goes.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        # Of boxes without an area the quotient is NaN: they stay.
        order = order[~(shared / (areas[best] + areas[order] - shared) > overlap)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("zoo::roi_align", mutates_args=())
def roi_align(x: Tensor, rois: Tensor, scale: float, size: int, samples: int) -> Tensor:
    """Means of samples x samples bilinear values in size x size bins of regions of a single image.

    x (1, channels, height, width), rois (n, 4) as x1, y1, x2, y2 before `scale`; returns
    (n, channels, size, size). Mask R-CNN (He et al., ICCV 2017), without its correction of half
    a pixel, as torchvision's Faster R-CNN has it.
    """
    height, width = x.shape[-2:]
    scaled = rois * scale
    sides = (scaled[:, 2:] - scaled[:, :2]).clamp(min=1.0)
    steps = (torch.arange(size * samples, dtype=x.dtype) + 0.5) / (size * samples)
    columns = scaled[:, 0:1] + sides[:, 0:1] * steps
    rows = scaled[:, 1:2] + sides[:, 1:2] * steps

    def weights(at: Tensor, extent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (at >= -1.0) & (at <= extent)
        at = at.clamp(0, extent - 1)
        low = at.floor().long().clamp(max=extent - 1)
        high = (low + 1).clamp(max=extent - 1)
        return low, high, (at - low) * inside, (1 - (at - low)) * inside

    top, bottom, down, up = weights(rows, height)
    left, right, across, back = weights(columns, width)
    image = x[0]

    def picked(y: Tensor, x_: Tensor) -> Tensor:
        return image[:, y[:, :, None], x_[:, None, :]]

    both = (
        picked(top, left) * (up[:, :, None] * back[:, None, :])
        + picked(top, right) * (up[:, :, None] * across[:, None, :])
        + picked(bottom, left) * (down[:, :, None] * back[:, None, :])
        + picked(bottom, right) * (down[:, :, None] * across[:, None, :])
    )
    return functional.avg_pool2d(both.transpose(0, 1), samples)


@roi_align.register_fake
def _(x: Tensor, rois: Tensor, scale: float, size: int, samples: int) -> Tensor:
    return x.new_empty((rois.shape[0], x.shape[1], size, size))


def _nms_symbolic(graph: Any, boxes: Any, scores: Any, overlap: Any) -> Any:
    """NonMaxSuppression of one image and class, and the last column of what it gives."""
    axes = graph.op("Constant", value_t=torch.tensor([0]))
    both = graph.op("Constant", value_t=torch.tensor([0, 1]))
    most = graph.op("Constant", value_t=torch.tensor([1 << 31]))
    limit = graph.op("Constant", value_t=torch.tensor([_parse(overlap, "f")]))
    found = graph.op(
        "NonMaxSuppression",
        graph.op("Unsqueeze", boxes, axes),
        graph.op("Unsqueeze", scores, both),
        most,
        limit,
    )
    column = graph.op("Constant", value_t=torch.tensor([2]))
    end = graph.op("Constant", value_t=torch.tensor([3]))
    one = graph.op("Constant", value_t=torch.tensor([1]))
    picked = graph.op("Slice", found, column, end, one)
    return graph.op("Squeeze", picked, one)


def _roi_align_symbolic(graph: Any, x: Any, rois: Any, scale: Any, size: Any, samples: Any) -> Any:
    shape = graph.op("Shape", rois)
    zero = graph.op("Constant", value_t=torch.tensor([0]))
    count = graph.op("Gather", shape, zero)
    images = graph.op("ConstantOfShape", count, value_t=torch.tensor([0]))
    return graph.op(
        "RoiAlign",
        x,
        rois,
        images,
        spatial_scale_f=_parse(scale, "f"),
        output_height_i=_parse(size, "i"),
        output_width_i=_parse(size, "i"),
        sampling_ratio_i=_parse(samples, "i"),
        mode_s="avg",
        coordinate_transformation_mode_s="output_half_pixel",
    )


register_custom_op_symbolic("zoo::nms", _nms_symbolic, OPSET)
register_custom_op_symbolic("zoo::roi_align", _roi_align_symbolic, OPSET)

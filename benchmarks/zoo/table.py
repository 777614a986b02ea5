"""The zoo: whole models by name, with their families, sizes, and how tests make them small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks import models
from benchmarks.zoo import borrowed, classifiers, detectors, pixels, sequences, yolo

Make = Callable[[], nn.Module]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A model.

    family: what it is like; the table of results is in their order.
    make: the model in the size in which it is measured.
    shape: of its input then.
    small: a small one of the same operators, and the shape of its input; None where another test
        has one.
    """

    family: str
    make: Make
    shape: Shape
    small: tuple[Make, Shape] | None = None

    def build(self, pattern: str = "dense") -> nn.Module:
        """The model with seeded weights of a pattern (as `models.sparsify` takes it), eval mode."""
        return seeded(self.make, pattern)


def seeded(make: Make, pattern: str = "dense") -> nn.Module:
    """What a factory makes, with seeded weights of a pattern, in eval mode."""
    torch.manual_seed(0)
    return models.sparsify(models.scramble(make()), pattern)


IMAGE, SMALL = (1, 3, 224, 224), (1, 3, 64, 64)

ZOO: dict[str, Entry] = {
    # residual
    "resnet18": Entry("residual", models.resnet18, IMAGE),
    "resnet50": Entry("residual", models.resnet50, IMAGE),
    "regnet_y": Entry("residual", borrowed.regnet_y, IMAGE),
    # plain and branching
    "vgg16": Entry(
        "plain", classifiers.vgg, IMAGE,
        (partial(classifiers.vgg, ((8, 1), (16, 2)), 56, 64, 10), (1, 3, 32, 28)),
    ),
    "squeezenet": Entry(
        "branches", classifiers.squeezenet, IMAGE,
        (partial(classifiers.squeezenet, (((8, 16),), ((16, 32),)), 10), SMALL),
    ),
    "googlenet": Entry(
        "branches", classifiers.googlenet, IMAGE,
        (partial(classifiers.googlenet, (((16, 8, 16, 8, 16, 16),),), 10), SMALL),
    ),
    "densenet121": Entry(
        "dense connections", classifiers.densenet, IMAGE,
        (partial(classifiers.densenet, (2, 2), 16, 10), SMALL),
    ),
    # mobile
    "mobilenet_v1": Entry("mobile", models.mobilenet_v1, IMAGE),
    "mobilenet_v2": Entry("mobile", models.mobilenet_v2, IMAGE),
    "mobilenet_v3": Entry(
        "mobile", classifiers.mobilenet_v3, IMAGE,
        (partial(classifiers.mobilenet_v3, classifiers.MOBILE[2:4] + classifiers.MOBILE[10:11],
                 64, 10), SMALL),
    ),
    "efficientnet_b0": Entry("mobile", borrowed.efficientnet_b0, IMAGE),
    "shufflenet_v2": Entry(
        "mobile", classifiers.shufflenet_v2, IMAGE,
        (partial(classifiers.shufflenet_v2, ((32, 2), (48, 2)), 64, 10), SMALL),
    ),
    "ghostnet": Entry(
        "mobile", classifiers.ghostnet, IMAGE,
        (partial(classifiers.ghostnet, classifiers.GHOST[:4], 64, 10), SMALL),
    ),
    # detection in one step
    "yolov8n": Entry(
        "one-step detection", yolo.yolov8, (1, 3, 640, 640),
        (partial(yolo.yolov8, 8, 1, 5), SMALL),
    ),
    "yolov8n_seg": Entry(
        "one-step detection", partial(yolo.yolov8, masks=32), (1, 3, 640, 640),
        (partial(yolo.yolov8, 8, 1, 5, 8), (1, 3, 64, 96)),
    ),
    "yolo11n": Entry(
        "one-step detection", yolo.yolo11, (1, 3, 640, 640),
        (partial(yolo.yolo11, 8, 1, 5), SMALL),
    ),
    "ssd": Entry(
        "one-step detection", detectors.ssd, (1, 3, 320, 320),
        (partial(detectors.ssd, 8, 4, 8, 64), SMALL),
    ),
    # detection in two steps
    "faster_rcnn": Entry(
        "two-step detection", detectors.faster_rcnn, (1, 3, 416, 416),
        (partial(detectors.faster_rcnn, (16, 16, 32, 32), (1, 1, 1, 1), False, 16, 32, 4, 12,
                 (96, 128)), (1, 3, 96, 128)),
    ),
    # segments
    "unet": Entry(
        "segments", pixels.unet, (1, 3, 256, 256),
        (partial(pixels.unet, (8, 16, 32)), (1, 3, 48, 32)),
    ),
    "deeplab_v3": Entry(
        "segments", pixels.deeplab_v3, (1, 3, 256, 256),
        (partial(pixels.deeplab_v3, (16, 16), (1, 1), 16), SMALL),
    ),
    "hrnet": Entry(
        "high resolution", pixels.hrnet, (1, 3, 256, 256),
        (partial(pixels.hrnet, 8, (1, 1), 1, 4), SMALL),
    ),
    "pose": Entry(
        "poses", pixels.pose, (1, 3, 256, 192),
        (partial(pixels.pose, (16, 32), (1, 1), 16, 5), SMALL),
    ),
    # text
    "dbnet": Entry(
        "text", pixels.dbnet, (1, 3, 480, 640),
        (partial(pixels.dbnet, (16, 16, 32, 32), (1, 1, 1, 1), 32), (1, 3, 64, 96)),
    ),
    "crnn": Entry(
        "text", sequences.crnn, (1, 1, 32, 320),
        (partial(sequences.crnn, (8, 16, 16, 32), 16, 37), (1, 1, 32, 64)),
    ),
    # images to images
    "edsr": Entry(
        "images to images", pixels.super_resolution, (1, 3, 128, 128),
        (partial(pixels.super_resolution, 16, 2), (1, 3, 24, 32)),
    ),
    "style_transfer": Entry(
        "images to images", pixels.style_transfer, (1, 3, 256, 256),
        (partial(pixels.style_transfer, 8, 1), (1, 3, 32, 48)),
    ),
    "raft": Entry(
        "flow", pixels.raft, (1, 6, 256, 320),
        (partial(pixels.raft, 16, 16, 2, 1, 2), (1, 6, 64, 96)),
    ),
    # sound and videos
    "keyword_spotter": Entry(
        "sound", sequences.keyword_spotter, (1, 1, 49, 10),
        (partial(sequences.keyword_spotter, 16, 2), (1, 1, 49, 10)),
    ),
    "temporal": Entry(
        "sound", sequences.temporal, (1, 80, 1000),
        (partial(sequences.temporal, 12, 16, 3, 5), (1, 12, 100)),
    ),
    "video": Entry(
        "videos", sequences.video, (1, 3, 8, 112, 112),
        (partial(sequences.video, (8, 16), 10), (1, 3, 4, 24, 32)),
    ),
    # with layer norm or attention
    "convnext_tiny": Entry("transformers", borrowed.convnext_tiny, IMAGE),
    "convnextv2_atto": Entry("transformers", borrowed.convnextv2_atto, IMAGE),
    "poolformer_s12": Entry("transformers", borrowed.poolformer_s12, IMAGE),
    "mobilevit_s": Entry("transformers", borrowed.mobilevit_s, (1, 3, 256, 256)),
    "swiftformer_xs": Entry("transformers", borrowed.swiftformer_xs, IMAGE),
    "levit_128s": Entry("transformers", borrowed.levit_128s, IMAGE),
    "swin_tiny": Entry("transformers", borrowed.swin_tiny, IMAGE),
    "vit_small": Entry("transformers", borrowed.vit_small, IMAGE),
    "segformer_b0": Entry("transformers", borrowed.segformer_b0, (1, 3, 512, 512)),
    "bert_small": Entry("transformers", borrowed.bert_small, (1, 128, 512)),
    "marian": Entry(
        "transformers", borrowed.marian, (1, 33, 512),
        (partial(borrowed.marian, 32, 1, 48, 50, 5), (1, 8, 32)),
    ),
}  # fmt: skip

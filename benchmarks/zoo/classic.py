"""The models of `make bench`, as `nmc bench` takes them."""

from __future__ import annotations

from torch import nn

from benchmarks import models


def resnet18() -> nn.Module:
    return models.randomise(models.resnet18())


def resnet50() -> nn.Module:
    return models.randomise(models.resnet50())


def mobilenet_v1() -> nn.Module:
    return models.randomise(models.mobilenet_v1())


def mobilenet_v2() -> nn.Module:
    return models.randomise(models.mobilenet_v2())

"""Whole models with seeded weights; `nmc bench benchmarks.zoo:resnet50` takes those of here."""

from benchmarks.zoo.classic import mobilenet_v1, mobilenet_v2, resnet18, resnet50

__all__ = ["mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"]

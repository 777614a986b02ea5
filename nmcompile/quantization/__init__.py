"""Quantising a float model on calibration data: onnxruntime's statistics, our proofs."""

from nmcompile.quantization.quantize import QuantizeResult, quantize
from nmcompile.quantization.report import LayerLoss, QuantizationReport
from nmcompile.quantization.settings import MaxLoss, Quantization

__all__ = [
    "LayerLoss",
    "MaxLoss",
    "Quantization",
    "QuantizationReport",
    "QuantizeResult",
    "quantize",
]

"""Reads, checks and runs artifacts; needs numpy, TVM's runtime, and onnxruntime if they do."""

if __name__ == "runtime":
    raise ImportError("import nmcompile.runtime, not runtime (run `pip install -e .` once)")

from nmcompile.runtime.format import FORMAT_VERSION, Artifact, read_artifact, write_artifact
from nmcompile.runtime.manifest import Manifest, ModelInfo, Producer, Section, TargetInfo
from nmcompile.runtime.native import configure_environment
from nmcompile.runtime.profile import LayerTime
from nmcompile.runtime.session import Session, load
from nmcompile.runtime.specs import Call, ParamSpec, TensorSpec
from nmcompile.runtime.variants import Variant

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "Call",
    "LayerTime",
    "Manifest",
    "ModelInfo",
    "ParamSpec",
    "Producer",
    "Section",
    "Session",
    "TargetInfo",
    "TensorSpec",
    "Variant",
    "configure_environment",
    "load",
    "read_artifact",
    "write_artifact",
]

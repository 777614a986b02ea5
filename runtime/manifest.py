"""The manifest of an artifact: what it says about itself, and its strict reading from JSON.

Every object is read with its exact set of keys and exact types, so a manifest either becomes a
`Manifest` whose every field can be trusted to be of its declared type, or one `ArtifactError`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from nmcompile.errors import ArtifactError
from nmcompile.runtime.specs import DTYPES, WIDE, Call, ParamSpec, TensorSpec
from nmcompile.runtime.steps import LIBRARY, Step, check_sections, check_steps, read_step
from nmcompile.runtime.strict_json import StrictObject, check_text, check_unique, parse
from nmcompile.runtime.variants import Variant, check_variants

WITHOUT, WITH_STEPS, WITH_VARIANTS, WITH_BOTH = 2, 3, 4, 5
"""Format versions: of one library, of steps, and of each of them for several shapes."""

STEPWISE = (WITH_STEPS, WITH_BOTH)

OF_A_VARIANT = ("entry", "inputs", "outputs", "calls", "workspace_bytes", "steps", "values")
"""Keys that stand in each variant, where there are several."""


@dataclass(frozen=True)
class Producer:
    """Versions of the tools that wrote the artifact.

    onnxruntime: "" where that was not at hand, or has nothing to do with it.
    """

    nmcompile: str
    tvm: str
    tvm_ffi: str
    onnxruntime: str = ""


@dataclass(frozen=True)
class TargetInfo:
    """What the machine must be: `cpu_features` are flag names as /proc/cpuinfo spells them."""

    kind: str
    name: str
    cpu_features: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The compiled model: its name and the sha256 of its source (hex), or "" if unknown."""

    name: str
    digest: str


@dataclass(frozen=True)
class Section:
    """Bytes `offset .. offset + length` of the data area, with one sha256 per chunk."""

    name: str
    offset: int
    length: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything an artifact says about itself.

    `params` are in the order in which the entry function takes them after the inputs, or, where
    `prepare` names a function, in the order in which that takes them: called once per load, it
    returns the tensors that the entry function takes in their stead. `calls` are in
    execution order; `layers` are free-form JSON objects. Whoever writes an artifact leaves
    `params` and `sections` empty: `write_artifact` fills them in.

    A model of which onnxruntime runs parts has `steps`, in execution order, and each of ours names
    its own `entry` and `prepare` and takes as many of the `params` as it says, behind those of the
    steps before it. `values` are the tensors that a library reads or makes and that are neither
    inputs nor outputs of the model.

    A model for several shapes of its inputs has `variants`, the first of which `inputs`, `outputs`,
    `entry`, `calls`, `workspace_bytes` and the flow in `layers` tell of. Where onnxruntime runs
    parts of it, each of the variants has `steps` and `values`, and the manifest none. `batched`
    are names of inputs with a row for each image of a batch, where images are computed by
    themselves, so that variants may run parts of a batch: the outputs have a row for each image,
    too.
    """

    producer: Producer
    target: TargetInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: ModelInfo
    layers: tuple[dict[str, Any], ...] = ()
    calls: tuple[Call, ...] = ()
    workspace_bytes: int = 0
    entry: str = "main"
    prepare: str = ""
    params: tuple[ParamSpec, ...] = ()
    sections: tuple[Section, ...] = ()
    steps: tuple[Step, ...] = ()
    values: tuple[TensorSpec, ...] = ()
    variants: tuple[Variant, ...] = ()
    batched: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The format version that it is written in."""
        if self.variants:
            return WITH_BOTH if any(form.steps for form in self.variants) else WITH_VARIANTS
        return WITH_STEPS if self.steps else WITHOUT

    @property
    def needs_onnxruntime(self) -> bool:
        """Whether that runs parts."""
        return self.version in STEPWISE

    @property
    def forms(self) -> tuple[Variant, ...]:
        """The variants; of a model for one shape, that one."""
        return self.variants or (
            Variant(
                self.entry,
                self.inputs,
                self.outputs,
                tuple(range(len(self.params))),
                self.calls,
                self.workspace_bytes,
                self.steps,
                self.values,
            ),
        )

    @property
    def plans(self) -> tuple[tuple[Step, ...], ...]:
        """The steps of each form; of one that is a library, that."""
        return tuple(form.steps or (self._whole(form),) for form in self.forms)

    @property
    def plan(self) -> tuple[Step, ...]:
        """The steps of the first form."""
        return self.plans[0]

    @property
    def by_section(self) -> Mapping[str, Step]:
        """By section but the weights, in the order of the file: the first step that names it."""
        found = dict[str, Step]()
        for plan in self.plans:
            for step in plan:
                found.setdefault(step.section, step)
        return found

    def _whole(self, form: Variant) -> Step:
        return Step(
            kind=LIBRARY,
            section=LIBRARY,
            inputs=tuple(spec.name for spec in form.inputs),
            outputs=tuple(spec.name for spec in form.outputs),
            entry=form.entry,
            prepare=self.prepare,
            params=len(self.params),
            weights=form.weights if self.variants else None,
        )


def to_fields(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it stands in a file, but for the format version, with tuples for lists."""
    fields = asdict(manifest)
    for form in (fields, *fields["variants"]):
        for spec in (*form["inputs"], *form["outputs"], *form["values"]):
            if spec.pop("any_shape"):
                spec["shape"] = None
    stepwise = manifest.version in STEPWISE
    useless = {"entry", "prepare"} if stepwise else {"steps", "values"}
    useless |= {*OF_A_VARIANT} if manifest.variants else {"variants", "batched"}
    for key in useless:
        del fields[key]
    if not stepwise:
        del fields["producer"]["onnxruntime"]
    for form in fields.get("variants", ()):
        for key in ("entry", "weights") if stepwise else ("steps", "values"):
            del form[key]
    for step in fields.get("steps", ()):
        del step["weights"]
    return fields


def encode(manifest: Manifest, version: int) -> bytes:
    """Return the manifest as UTF-8 JSON; equal manifests give equal bytes.

    Raises:
        ArtifactError: a layer holds something JSON cannot express, or a field breaks a rule that
            the reader enforces.
    """
    fields = to_fields(manifest) | {"format_version": version}
    try:
        text = json.dumps(fields, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"manifest of model {manifest.model.name!r} cannot be written as JSON: {error}; "
            "layer tables may hold only strings, finite numbers, booleans, lists and objects"
        ) from error
    encoded = text.encode()
    decode(encoded, f"manifest of model {manifest.model.name!r}", version)
    return encoded


def decode(data: bytes, where: str, version: int) -> Manifest:
    """Read a manifest and check every key, type and bound.

    Args:
        data: the JSON text, UTF-8.
        where: what to call it in messages.
        version: the format version its header announced.

    Raises:
        ArtifactError: names the first field that is wrong, what was expected and what was found.
    """
    value = parse(data, where)
    top = StrictObject(value, where)
    found = top.integer("format_version")
    if found != version:
        raise ArtifactError(f"{where}: expected format_version {version}, found {found}")
    stepwise = version in STEPWISE
    several = version >= WITH_VARIANTS
    read = partial(_form, stepwise=stepwise, several=several)
    variants = top.objects("variants", read) if several else ()
    if several and not variants:
        raise ArtifactError(f"{where}: expected variants, found none")
    form = variants[0] if variants else read(top)
    manifest = Manifest(
        producer=_producer(top.object("producer"), stepwise),
        target=_target(top.object("target")),
        entry=form.entry,
        prepare=top.string("prepare") if version in (WITHOUT, WITH_VARIANTS) else "",
        inputs=form.inputs,
        outputs=form.outputs,
        params=top.objects("params", _param),
        layers=top.objects("layers", lambda layer: layer.anything()),
        calls=form.calls,
        model=_model(top.object("model")),
        workspace_bytes=form.workspace_bytes,
        sections=top.objects("sections", _section),
        steps=() if several else form.steps,
        values=() if several else form.values,
        variants=variants,
        batched=top.strings("batched") if several else (),
    )
    top.end()
    check_text(value, where)
    check_unique(where, "inputs", [spec.name for spec in manifest.inputs])
    check_unique(where, "outputs", [spec.name for spec in manifest.outputs])
    check_unique(where, "params", [spec.name for spec in manifest.params])
    if stepwise:
        for index, each in enumerate(manifest.forms):
            check_steps(f"{where}: variants[{index}]" if several else where, each)
        check_sections(where, manifest.plans, len(manifest.params))
    if several:
        check_unique(where, "batched", list(manifest.batched))
        weights = None if stepwise or manifest.prepare else len(manifest.params)
        check_variants(where, variants, manifest.batched, weights)
    return manifest


def _form(item: StrictObject, stepwise: bool, several: bool) -> Variant:
    """A variant, or what a manifest of one shape has in its stead, which takes all the params."""
    return Variant(
        entry="" if stepwise else item.string("entry"),
        inputs=item.objects("inputs", _wide_input if stepwise else _tensor),
        outputs=item.objects("outputs", _wide_output if stepwise else _tensor),
        weights=item.integers("weights") if several and not stepwise else (),
        calls=item.objects("calls", _call),
        workspace_bytes=item.integer("workspace_bytes"),
        steps=item.objects("steps", partial(read_step, several=several)) if stepwise else (),
        values=item.objects("values", _tensor) if stepwise else (),
    )


def _producer(item: StrictObject, stepwise: bool) -> Producer:
    result = Producer(
        item.string("nmcompile"),
        item.string("tvm"),
        item.string("tvm_ffi"),
        item.string("onnxruntime") if stepwise else "",
    )
    item.end()
    return result


def _target(item: StrictObject) -> TargetInfo:
    result = TargetInfo(item.string("kind"), item.string("name"), item.strings("cpu_features"))
    item.end()
    return result


def _model(item: StrictObject) -> ModelInfo:
    result = ModelInfo(item.string("name"), item.string("digest"))
    item.end()
    return result


def _tensor(item: StrictObject) -> TensorSpec:
    return TensorSpec(item.string("name"), item.shape("shape"), item.one_of("dtype", DTYPES))


def _wide_input(item: StrictObject) -> TensorSpec:
    dtypes = (*DTYPES, *WIDE)
    return TensorSpec(item.string("name"), item.shape("shape"), item.one_of("dtype", dtypes))


def _wide_output(item: StrictObject) -> TensorSpec:
    any_shape = item.is_null("shape")
    shape = () if any_shape else item.shape("shape", may_be_open=True)
    dtype = item.one_of("dtype", (*DTYPES, *WIDE))
    return TensorSpec(item.string("name"), shape, dtype, any_shape)


def _call(item: StrictObject) -> Call:
    return Call(item.string("symbol"), item.string("layer"))


def _param(item: StrictObject) -> ParamSpec:
    spec = ParamSpec(
        name=item.string("name"),
        dtype=item.one_of("dtype", DTYPES),
        shape=item.shape("shape"),
        offset=item.integer("offset"),
        nbytes=item.integer("nbytes"),
    )
    expected = math.prod(spec.shape) * DTYPES[spec.dtype]
    if spec.nbytes != expected:
        item.fail("nbytes", f"{expected} for {spec.dtype} of shape {spec.shape}", str(spec.nbytes))
    return spec


def _section(item: StrictObject) -> Section:
    return Section(
        name=item.string("name"),
        offset=item.integer("offset"),
        length=item.integer("length"),
        sha256=item.strings("sha256"),
    )

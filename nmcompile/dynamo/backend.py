"""The backend of torch.compile: a graph that dynamo has captured, in the forms it is called in."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from nmcompile.dynamo.forms import Form, Graph, Values, make_form, torch_form
from nmcompile.dynamo.options import Options, read_options
from nmcompile.dynamo.reasons import BACKEND, NothingOursError, log, warn
from nmcompile.errors import DeviceError, InputError, NmcompileError, PatternError
from nmcompile.frontends.captured import arguments, needs_gradients


def nmcompile(
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> CapturedGraph:
    """What `torch.compile(model, backend="nmcompile")` calls for every graph it captures.

    Nothing is compiled before the graph is called: errors are those of that call.

    Args:
        module: the graph.
        examples: what it will be called with; symbols where that is to vary.
        options: see `nmcompile.dynamo.options.Options`.
        more: what torch.compile hands over else, which is unknown here.
    """
    return CapturedGraph(module, examples, options, more)


class CapturedGraph:
    """A graph in the forms that it was called in so far: shapes, and parameters.

    As many are compiled as dynamo would compile (`torch._dynamo.config.recompile_limit`); torch
    runs the graph in others.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        examples: Sequence[Any],
        options: Mapping[str, Any] | None,
        more: Mapping[str, Any],
    ) -> None:
        """Take over a graph; see `nmcompile`."""
        self._graph = Graph(module, arguments(module, examples))
        self._gradients = needs_gradients(module)
        self._given, self._more = options, more
        self._forms: tuple[Form, ...] = ()
        self._only: Form | None = None  # for every call, where the graph has no layers
        self._made = 0
        self._guard = threading.Lock()

    def __call__(self, *values: Any) -> Values:
        """Run the graph.

        Raises:
            InputError: an option is wrong, or the graph is not one of inference.
            PatternError: a layer breaks the pattern that is claimed.
            NmcompileError: with `strict`, no part of the graph can be compiled.
        """
        form = self._find(values)
        if form is None:
            with self._guard:
                form = self._find(values) or self._make(values)
        return form.call(self._graph, values)

    def _find(self, values: Values) -> Form | None:
        """The form for a call, unless its parameters have changed."""
        if self._only is not None:
            return self._only
        shapes = self._graph.shapes(values)
        for form in self._forms:
            if form.shapes == shapes and form.constants.are(values):
                return form if form.constants.hold(values) else None
        return None

    def _make(self, values: Values) -> Form:
        options = read_options(self._given, self._more)
        if self._gradients:
            raise InputError(
                f"{BACKEND} compiles for inference: expected no gradients, found parameters or "
                "inputs that require some; call the model within torch.inference_mode() or "
                "torch.no_grad(), or call model.requires_grad_(False)"
            )
        limit = torch._dynamo.config.recompile_limit
        if self._made >= limit:
            refusal: NmcompileError = DeviceError(
                f"{limit} forms of a graph (shapes, and parameters that have changed) are "
                "compiled; torch._dynamo.config.recompile_limit allows more"
            )
            return self._by_torch(options, values, refusal)
        try:
            form = make_form(self._graph, options, values)
        except (InputError, PatternError):
            raise
        except NmcompileError as error:
            form = self._by_torch(options, values, error)
        self._made += 1
        shapes = self._graph.shapes(values)
        others = [
            one
            for one in self._forms
            if not one.constants.gone and (one.shapes != shapes or not one.constants.are(values))
        ]
        self._forms = (*others, form)
        return form

    def _by_torch(self, options: Options, values: Values, reason: NmcompileError) -> Form:
        """The graph as torch runs it, with a warning, if that is allowed.

        What stands between breaks of a graph has no layers: that is torch's without more ado.

        Raises:
            NmcompileError: it is not.
        """
        if isinstance(reason, NothingOursError) and not reason.layers:
            log.info("left to torch: %s", reason)
            self._only = torch_form(self._graph, values)
            return self._only
        if options.strict:
            raise reason
        warn(str(reason))
        return torch_form(self._graph, values)

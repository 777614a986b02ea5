"""The form of the tables: an operator, the versions and dtypes that were verified, and limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Check = Callable[[Any, Any], str | None]
"""Takes the graph and the node; returns what was found where the limit does not hold."""


@dataclass(frozen=True)
class Limit:
    """A condition on a node.

    text: what is expected, to stand behind "expected" and in the documentation.
    check: whether that holds.
    """

    text: str
    check: Check


NOT_THERE = "expected an operator of docs/operators.md, found one that is not there"


@dataclass(frozen=True)
class Operator:
    """What is believed of an operator: TVM's importer is right wherever all of this holds.

    name: as its framework spells it.
    dtypes: numpy names of what its first input, or without inputs its output, may hold.
    limits: on attributes and inputs.
    newest: the last version of the operator that was verified; ONNX only.
    oldest: the first one.
    """

    name: str
    dtypes: frozenset[str]
    limits: tuple[Limit, ...] = ()
    newest: int = 0
    oldest: int = 1

    def doubt(self, graph: Any, node: Any, dtype: str | None) -> str | None:
        """Why a node of this operator is not believed in, as "expected ..., found ...", or None.

        Args:
            graph: the node's.
            node: as the framework has it.
            dtype: of what `dtypes` speaks of; "" where only the limits are asked.
        """
        if dtype != "" and dtype not in self.dtypes:
            return f"expected {' or '.join(sorted(self.dtypes))}, found {dtype}"
        for limit in self.limits:
            found = limit.check(graph, node)
            if found is not None:
                return f"expected {limit.text}, found {found}"
        return None

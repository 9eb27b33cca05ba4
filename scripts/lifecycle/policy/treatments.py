"""What happens to a column's value when its row is anonymised or its person is erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema

from scripts.lifecycle.policy import shapes
from scripts.lifecycle.policy.conditions import written


@dataclass(frozen=True)
class Treatment:
    """What happens to one column's value when its row is anonymised."""

    how: Literal["null", "constant", "pseudonym", "truncate_ip", "suppression"]
    constant: str | None = None


def _treatment(value: object) -> Treatment:
    if value is None:
        return Treatment("null")
    if value in ("pseudonym", "truncate_ip"):
        return Treatment(value)
    if isinstance(value, dict) and value.keys() == {"constant"} and isinstance(value["constant"], str | int):
        return Treatment("constant", written(value["constant"]))
    raise ValueError("is not a treatment: write null, pseudonym, truncate_ip or {constant: ...}")


def _erasure_treatment(value: object) -> Treatment:
    return Treatment("suppression") if value == "suppression" else _treatment(value)


TreatmentField = Annotated[Treatment, BeforeValidator(_treatment), WithJsonSchema(shapes.TREATMENT)]
ErasureTreatmentField = Annotated[
    Treatment, BeforeValidator(_erasure_treatment), WithJsonSchema(shapes.ERASURE_TREATMENT)
]

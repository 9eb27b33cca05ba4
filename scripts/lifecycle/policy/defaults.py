"""The section ``defaults:``: the keys of a policy that may be said once for all policies, each of them optional."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, create_model


def partly(model: type[BaseModel], keys: Iterable[str] | None = None, **instead: Any) -> Any:
    """Return a model of which every key may be left out.

    Args:
        model: The model that the keys are of.
        keys: The keys to take; None: all of them.
        instead: Another type for some of the keys.
    """
    fields: dict[str, Any] = {
        name: (instead.get(name, model.model_fields[name].rebuild_annotation()), None)
        for name in (model.model_fields if keys is None else keys)
    }
    made = create_model(f"{model.__name__}Defaults", __base__=model.__base__, **fields)
    made.__module__ = model.__module__
    made.__doc__ = f"The same keys as those of {model.__name__}; each of them may be left out."
    return made

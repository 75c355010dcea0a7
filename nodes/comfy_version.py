"""What differs between ComfyUI versions, in one place: schemas whose newer fields older versions do not know."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

from comfy_api.latest import io


def schema(**fields: object) -> io.Schema:
    """An `io.Schema` of those fields that this ComfyUI knows; unknown ones, such as `search_aliases`, are left out."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def socket(kind: Callable[..., io.Input], name: str, **extras: object) -> io.Input:
    """An input such as `socket(io.Int.Input, "steps", default=20, advanced=True)` without the extras that are too new."""
    known = inspect.signature(kind).parameters
    return kind(name, **{extra: value for extra, value in extras.items() if extra in known})

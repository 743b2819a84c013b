"""Geometry runs in full precision whatever the trunk around it runs in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Switch autocast off inside ``function`` and widen half-precision tensor arguments to float32.

    Coordinates of a 400-unit chain reach 500 angstrom: bfloat16 would place atoms to 2 angstrom. float32 and float64 arguments
    pass unchanged. Products of small matrices in this room are sums of elementwise products, so TF32 does not reach them either.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        wide_args: tuple[Any, ...] = tuple(_widen(value) for value in args)
        wide_kwargs: dict[str, Any] = {name: _widen(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*wide_args, **wide_kwargs)

    return wrapped


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value

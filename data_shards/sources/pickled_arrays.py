"""What pickled numpy arrays and torch tensors become: numpy arrays, checked against the bytes that came with them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import PolymerError

MAX_EMPTY_LENGTH = 2**32
_DTYPE = re.compile(r"[fiubSU][0-9]{0,9}")


@dataclass(frozen=True)
class Name:
    """A global of a pickle: a word, nothing more."""

    text: str


@dataclass(eq=False)
class Stored:
    """An object of a class that is not installed: the name of its class and what it was pickled with."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Attributes of a graph, of either layout that PyTorch Geometric has written (in `_store._mapping` since version 2)."""
        store = self.state.get("_store")
        inner = store.state.get("_mapping") if isinstance(store, Stored) else None
        return inner if isinstance(inner, dict) else self.state


@dataclass(eq=False)
class Dtype:
    """The type of an array; its byte order arrives after it is made."""

    value: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers under a tensor."""

    values: NDArray[Any]


def forbidden(detail: str) -> PolymerError:
    """The refusal of a pickle that asks for something else than data."""
    return PolymerError("", "forbidden-pickle", f"{detail}; only numbers, text, arrays and graphs are read, leave the record out")


def unreadable(detail: str) -> PolymerError:
    """A pickle that is broken."""
    return PolymerError("", "unreadable-pickle", f"the record is no whole pickle ({detail}); copy the file again or leave the record out")


def plain_dtype(text: Any, *_: Any) -> Dtype:
    """numpy.dtype: a number, a truth value or text; objects and compounds are refused."""
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise forbidden(f"an array of type {str(text)[:40]!r}")
    return Dtype(np.dtype(text))


def with_byte_order(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """State of a pickled numpy.dtype."""
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|") or any(x is not None for x in state[2:5]):
        raise forbidden("an array of a compound type")
    return dtype if state[1] == "|" else dtype.newbyteorder(state[1])


def _shape(shape: Any, dtype: np.dtype[Any], num_bytes: int) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise unreadable("an array with a strange shape")
    if math.prod(shape) * dtype.itemsize != num_bytes or not dtype.itemsize:
        raise unreadable(f"an array that claims {math.prod(shape) * dtype.itemsize} bytes and brings {num_bytes}")
    return shape


def empty_array(kind: Any, *_: Any) -> NDArray[Any]:
    """numpy.core.multiarray._reconstruct: an array that `fill` completes."""
    if kind != Name("numpy.ndarray"):
        raise forbidden("an array of a class of its own")
    return np.empty(0, dtype=np.int8)


def fill(target: NDArray[Any], state: Any) -> None:
    """State of a pickled array: version, shape, type, column-major, bytes."""
    _, shape, dtype, column_major, content = state
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
        raise forbidden("an array of objects")
    checked = _shape(shape, dtype.value, len(content))
    target.__setstate__((1, checked, dtype.value, bool(column_major), content))  # type: ignore[arg-type]  # the stub wants numpy's own bool


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """numpy.core.numeric._frombuffer, of pickle protocol 5."""
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise forbidden("an array of objects")
    return np.frombuffer(content, dtype=dtype.value).reshape(_shape(shape, dtype.value, len(content)), order=order)


def scalar(dtype: Any, content: Any) -> Any:
    """numpy.core.multiarray.scalar."""
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
        raise forbidden("a number of an unknown type")
    return np.frombuffer(content, dtype=dtype.value).reshape(_shape((), dtype.value, len(content)))[()]


def encoded(text: Any, coding: Any) -> bytes:
    """_codecs.encode, by which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise forbidden("text in a strange coding")
    return text.encode("latin-1")


def no_bytes(*arguments: Any) -> bytes:
    """bytes() without arguments, by which protocols 0 to 2 write no bytes."""
    if arguments:
        raise forbidden("calls 'bytes'")
    return b""


def ordered(*arguments: Any) -> dict[Any, Any]:
    """collections.OrderedDict, empty; entries follow as operations."""
    if arguments and arguments != ([],):
        raise forbidden("an OrderedDict with content")
    return {}


def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """A torch tensor as an array. A tensor that shows some numbers of its storage more than once is not read."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise forbidden("a tensor of something else than numbers")
    numbers = (offset, *shape, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) > 8:
        raise unreadable("a tensor with a strange shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype=storage.values.dtype) if max(shape) <= MAX_EMPTY_LENGTH else np.zeros(0)
    if last >= len(storage.values) or math.prod(shape) > len(storage.values):
        raise unreadable(f"a tensor of shape {shape} over {len(storage.values)} numbers")
    step = storage.values.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(storage.values[offset:], shape, [step * k for k in stride], writeable=False)
    return np.array(view)

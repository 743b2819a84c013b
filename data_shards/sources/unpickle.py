"""Pickles read as data: no code of theirs is run, whatever they hold.

The standard library splits a pickle into its operations; this file carries them out on numbers, strings, lists, tuples and dictionaries.
A name of a class or a function stays a name: it is never looked up, imported or called. Those that stand for data have a reader here that
builds the data itself: numpy arrays, torch tensors (torch is not needed) and the graph objects of PyTorch Geometric (`Stored`).
Every other name ends the reading with the reason ``forbidden-pickle`` and is named in the message.

Bounds: bytes, number of operations, and every array must be as large as the bytes that came with it, so memory stays within a small
multiple of the record. Memo numbers are keys of a dictionary and keys of dictionaries are strings or whole numbers, so neither a huge
memo number nor nested keys cost anything.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from data_shards.errors import PolymerError
from data_shards.sources.pickled_arrays import (
    Dtype,
    Name,
    Storage,
    Stored,
    empty_array,
    encoded,
    fill,
    forbidden,
    from_buffer,
    no_bytes,
    ordered,
    plain_dtype,
    scalar,
    tensor,
    unreadable,
    with_byte_order,
)

MAX_PICKLE_BYTES = 256 * 2**20
MAX_OPERATIONS = 4_000_000
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first number of a torch file of the older format
TORCH_PROTOCOL = 1001

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_GRAPHS = frozenset(
    f"torch_geometric.data.{name}"
    for name in (
        "Data",
        "data.Data",
        "data.DataEdgeAttr",
        "data.DataTensorAttr",
        "feature_store.TensorAttr",
        "graph_store.EdgeAttr",
        "storage.BaseStorage",
        "storage.EdgeStorage",
        "storage.GlobalStorage",
        "storage.NodeStorage",
    )
)
_ONLY_NAMED = frozenset({"numpy.ndarray", "builtins.object", "__builtin__.object"} | {f"torch.{name}" for name in _STORAGES})


def unpickle(data: bytes) -> Any:
    """The object that a pickle describes, built from plain data.

    Args:
        data: the pickle, any protocol.

    Returns:
        Numbers, strings, bytes, lists, tuples, dictionaries, numpy arrays (also for torch tensors) and Stored.

    Raises:
        PolymerError: reason forbidden-pickle, unreadable-pickle or too-large.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise PolymerError("", "too-large", f"the record has {len(data)} bytes, must be <= {MAX_PICKLE_BYTES}; leave it out")
    try:
        return _Machine(io.BytesIO(data), nested=False).run()
    except PolymerError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, MemoryError, RecursionError) as error:
        raise unreadable((str(error).splitlines() or [type(error).__name__])[0][:120]) from None


class _Mark:
    """Place of a MARK on the stack."""


class _Machine:
    """One run over one pickle."""

    def __init__(self, file: io.BytesIO, *, nested: bool) -> None:
        self.file, self.nested = file, nested
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(self.file)):
            if count > MAX_OPERATIONS:
                raise PolymerError("", "too-large", f"the record has more than {MAX_OPERATIONS} operations, the bound; leave it out")
            name = operation.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name == "STOP":
                return self._pop()
            elif name in _STEPS:
                _STEPS[name](self, argument)
            else:
                raise forbidden(f"operation {name} is not data")
        raise unreadable("it has no end")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise unreadable("a mark where a value should be")
        return value

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)][::-1]
        self.stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise forbidden(f"items are added to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise forbidden(f"items are set in a {type(target).__name__}")
        target.update(_pairs(items))

    def _global(self, text: str) -> None:
        if text not in _READERS and text not in _GRAPHS and text not in _ONLY_NAMED:
            raise forbidden(f"names {text[:120]!r}")
        self.stack.append(Name(text))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise unreadable("a global without a name")
        self._global(f"{module}.{name}")

    def _reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple) or called.text not in _READERS:
            raise forbidden(f"calls {called.text if isinstance(called, Name) else type(called).__name__!r}")
        if self.nested and called.text == "torch.storage._load_from_bytes":
            raise forbidden("a torch file lies in a torch file")
        self.stack.append(_READERS[called.text](*arguments))

    def _new(self) -> None:
        arguments, called = self._pop(), self._pop()
        if not isinstance(called, Name) or called.text not in _GRAPHS or arguments != ():
            raise forbidden(f"makes a {called.text if isinstance(called, Name) else type(called).__name__}")
        self.stack.append(Stored(called.text))

    def _build(self) -> None:
        state, target = self._pop(), self.stack[-1]
        if isinstance(target, Stored) and isinstance(state, dict):
            target.state.update(state)
        elif isinstance(target, Dtype):
            target.value = with_byte_order(target.value, state)
        elif isinstance(target, np.ndarray):
            fill(target, state)
        elif not (isinstance(target, dict) and state in (None, {})):  # an OrderedDict may come with an empty state
            raise forbidden(f"sets the state of a {type(target).__name__}")

    def _persistent(self) -> None:
        """A storage of a torch file: ('storage', type, key, device, size[, view]). Its bytes follow the pickles."""
        identity = self._pop()
        if not self.nested:
            raise forbidden("refers to an object outside of the record")
        kind, dtype, key, _, size = identity[:5]
        view = identity[5] if len(identity) > 5 else None
        name = dtype.text.rpartition(".")[2] if isinstance(dtype, Name) else ""
        if kind != "storage" or name not in _STORAGES or not isinstance(key, str) or type(size) is not int or view is not None:
            raise forbidden("a torch file with something else than one plain storage")
        self.stack.append((key, np.dtype(_STORAGES[name]), size))


_VALUE_NAMES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
)
_VALUES = frozenset(_VALUE_NAMES.split())  # operations that put their own argument on the stack
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m._to_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "LIST": lambda m, _: m.stack.append(m._to_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m._to_mark())),
    "DICT": lambda m, _: m.stack.append(_pairs(m._to_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "APPEND": lambda m, _: m._append([m._pop()]),
    "APPENDS": lambda m, _: m._append(m._to_mark()),
    "SETITEM": lambda m, _: m._set_items([m._pop(), m._pop()][::-1]),
    "SETITEMS": lambda m, _: m._set_items(m._to_mark()),
    "PUT": lambda m, n: m.memo.__setitem__(n, m.stack[-1]),
    "BINPUT": lambda m, n: m.memo.__setitem__(n, m.stack[-1]),
    "LONG_BINPUT": lambda m, n: m.memo.__setitem__(n, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GET": lambda m, n: m.stack.append(m.memo[n]),
    "BINGET": lambda m, n: m.stack.append(m.memo[n]),
    "LONG_BINGET": lambda m, n: m.stack.append(m.memo[n]),
    "GLOBAL": lambda m, text: m._global(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "REDUCE": lambda m, _: m._reduce(),
    "NEWOBJ": lambda m, _: m._new(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent(),
}


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise unreadable("a key without a value")
    if not all(isinstance(key, str | int) for key in items[::2]):
        raise forbidden("a dictionary has keys that are neither text nor whole numbers")
    return dict(zip(items[::2], items[1::2], strict=True))


def _torch_storage(content: Any) -> Storage:
    """A storage as torch pickles it: a whole torch file of the older format. Three numbers or tables, the storage, its key, its bytes."""
    if not isinstance(content, bytes):
        raise unreadable("a tensor without bytes")
    file = io.BytesIO(content)
    magic, protocol, system = (_Machine(file, nested=True).run() for _ in range(3))
    if magic != TORCH_MAGIC or protocol != TORCH_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise unreadable("a tensor in another format than torch's older one, little-endian")
    found = _Machine(file, nested=True).run()
    keys = _Machine(file, nested=True).run()
    if not isinstance(found, tuple) or keys != [found[0]]:
        raise unreadable("a tensor whose storage has another key")
    _, dtype, size = found
    rest = content[file.tell() :]
    if int.from_bytes(rest[:8], "little") != size or len(rest) != 8 + size * dtype.itemsize:
        raise unreadable(f"a tensor that claims {size} numbers and brings {max(len(rest) - 8, 0)} bytes")
    return Storage(np.frombuffer(rest, dtype=dtype, offset=8))


def _reconstructor(kind: Any, base: Any, state: Any) -> Stored:
    """An object as protocols 0 and 1 write it."""
    if not isinstance(kind, Name) or kind.text not in _GRAPHS or base not in (Name("builtins.object"), Name("__builtin__.object")) or state:
        raise forbidden("makes an object of another class")
    return Stored(kind.text)


_READERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": encoded,
    "builtins.bytes": no_bytes,
    "__builtin__.bytes": no_bytes,
    "collections.OrderedDict": ordered,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "numpy.dtype": plain_dtype,
    **{f"numpy.{core}.multiarray._reconstruct": empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": from_buffer for core in ("core", "_core")},
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch.storage._load_from_bytes": _torch_storage,
}

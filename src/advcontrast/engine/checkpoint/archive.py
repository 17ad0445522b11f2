"""States in files of ``torch.save``: a check before writing, and a parser that builds only tensors and containers."""

import math
import os
import pickletools
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor, nn

from ..._checks import complaint, type_name
from ..._digest import digest

_OWNER = "Checkpoint"
_PLAIN = (bool, float, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_BITS = 2000  # of an int; a longer one has an opcode of its own
_DEEPEST = 100
_MOST_DIMENSIONS = 32
_CHUNK = 1 << 20
_PACKED = {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}  # torch.save has no names for them
_MEMOIZED = {"EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"}  # at once, by the pickler
_NOT_AGAIN = {"REDUCE", "BINPUT", "LONG_BINPUT", "PROTO"}  # after a value of the memo: arguments are always new
_CALLS = {
    "__builtin__": ("bytes",),
    "_codecs": ("encode",),
    "collections": ("Counter", "OrderedDict"),
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_parameter", "_rebuild_tensor_v2", "_rebuild_tensor_v3"),
}
_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexDoubleStorage": torch.complex128,
    "torch ComplexFloatStorage": torch.complex64,
    "torch.storage UntypedStorage": torch.uint8,
}


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return the state to write: containers are copied, and tensors that repeat values are expanded.

    ``where`` is the name of ``value`` in messages, ``depth`` the number of containers around it.

    Raises:
        TypeError: a value that :func:`read` would not accept.
        ValueError: an int of too many bits, or containers that are nested too deeply.
    """
    if depth > _DEEPEST:
        expected, got = f"state to be nested at most {_DEEPEST} deep", "more, or a container that holds itself"
        raise ValueError(complaint(_OWNER, expected, got, "Save its parts under separate keys"))
    if type(value) in _PLAIN and not (type(value) is torch.Size and len(value) > _MOST_DIMENSIONS):
        return value
    if type(value) is int:
        if value.bit_length() > _BITS:
            expected, got = f"{where} to be an int of at most {_BITS} bits", f"one of {value.bit_length()}"
            raise ValueError(complaint(_OWNER, expected, got, "Save it as a string"))
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if type(value) in (list, tuple):
        return type(value)(plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
    if type(value) not in (dict, OrderedDict, Counter):
        expected = f"{where} to be a tensor, number, string, None, or a list, tuple or dict of them"
        raise TypeError(complaint(_OWNER, expected, type_name(value), "Convert it, with str() or .item() for example"))
    if others := [key for key in value if not _is_key(key)]:
        expected = f"keys of {where} to be strings, numbers, None, or tuples of them"
        raise TypeError(complaint(_OWNER, expected, type(others[0]).__name__, "Convert them, with str() for example"))
    entries = type(value)(
        {
            plain(key, f"a key of {where}", depth + 1): plain(item, f"{where}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    )
    if type(value) is OrderedDict and (attributes := vars(value)):
        if attributes.keys() != {"_metadata"}:
            raise TypeError(complaint(_OWNER, f"{where} without attributes", ", ".join(attributes), "Save entries"))
        entries._metadata = plain(attributes["_metadata"], f"{where}._metadata", depth + 1)  # of load_state_dict
    return entries


def _is_key(value: Any) -> bool:
    """Return whether a dict may have this key. Nested tuples that repeat each other take exponential time to hash."""
    parts = value if type(value) is tuple else (value,)
    return all(type(part) in (*_PLAIN, int) for part in parts)


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    got = None
    if type(value) not in (Tensor, nn.Parameter):
        got = type(value).__name__
    elif vars(value):
        got = f"one with the attribute {next(iter(vars(value)))!r}"
    elif value.is_nested:
        got = "a nested one"
    elif value.layout != torch.strided or value.is_quantized or str(value.dtype) in _PACKED:
        got = f"one of {value.dtype} and {value.layout}"
    elif value.is_meta:
        got = "one on the meta device"
    elif value.dim() > _MOST_DIMENSIONS:
        got = f"one of {value.dim()} dimensions"
    elif value.numel() and _end(int(value.storage_offset()), value.shape, value.stride()) > _room(value):
        got = "one whose memory was released"
    if got is not None:
        expected = f"{where} to be a dense Tensor or nn.Parameter with values, without attributes"
        raise TypeError(complaint(_OWNER, expected, got, "Convert it, with .detach().to_dense() for example"))
    if value.is_conj() or value.is_neg():
        value = value.resolve_conj().resolve_neg()
    repeats = value.numel() > _room(value)
    return value.detach().clone(memory_format=torch.contiguous_format) if repeats else value


def _room(tensor: Tensor) -> int:
    """Return how many entries the storage of a tensor has."""
    return tensor.untyped_storage().nbytes() // tensor.itemsize


def _end(offset: int, size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many entries a storage must have for a tensor that is not empty."""
    return 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def same(a: Any, b: Any) -> bool:
    """Return whether two states are bit-identical."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return digest(a) == digest(b)
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # tells 0.0 from -0.0


def read(file: IO[bytes], device: str = "cpu") -> Any:
    """Read a state that :func:`plain` returned and ``torch.save`` wrote, to a device; ``"meta"`` reads no values.

    The memory that this takes is bounded by the size of the file, not by the sizes stated in it.

    Raises:
        ValueError: the file holds anything else. Damaged bytes may raise errors of other types.
        MemoryError: it is too large for this machine.
    """
    return _Parser(file, device).run()


class _Name(str):
    """Name of a call, without its module."""


@dataclass(frozen=True, slots=True)
class _Storage:
    data: Tensor
    dtype: torch.dtype


class _Arguments(tuple[Any, ...]):
    """Tuple that holds a name or a storage."""


_INTERNAL = (_Name, _Storage, _Arguments)


class _Parser:
    """Interpreter of the opcodes of pickle protocol 2 that ``torch.save`` writes, and no others."""

    def __init__(self, file: IO[bytes], device: str) -> None:
        self._file, self._device = file, device
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("an archive that unpacks to more than its size")
        file.seek(0)
        if file.read(4) != b"PK\3\4":
            raise ValueError("an archive preceded by other data")
        self._entries = {entry.filename: entry for entry in entries}
        if self._record("byteorder") != sys.byteorder.encode():
            raise ValueError("tensors in another byte order")
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._storages: dict[str, Tensor] = {}

    def run(self) -> Any:
        """Return the value of the pickle in the archive."""
        program = self._record("data.pkl")
        self._left = len(program)  # characters that may still be encoded
        before = ""
        for opcode, argument, _ in pickletools.genops(program):
            if (before in _MEMOIZED and not opcode.name.endswith("BINPUT")) or (
                before.endswith("BINGET") and opcode.name in _NOT_AGAIN
            ):
                raise ValueError("a pickle that was not written by torch.save")
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
            before = opcode.name
        return self._visible(self._stack.pop())

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" if argument == len(self._memo):
                self._memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET" if not isinstance(self._memo[argument], (list, dict)):
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[opcode]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_tuple(self._cut(len(stack) - int(opcode[-1]))))
            case "TUPLE":
                stack.append(_tuple(self._cut(self._marks.pop())))
            case "APPEND" | "APPENDS":
                items = self._cut(self._marks.pop() if opcode == "APPENDS" else len(stack) - 1)
                self._top(list).extend(map(self._visible, items))
            case "SETITEM" | "SETITEMS":
                items = self._cut(self._marks.pop() if opcode == "SETITEMS" else len(stack) - 2)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    if not _is_key(key):
                        raise ValueError(f"a dict with a {type_name(key)} as key")
                    self._top(dict)[key] = self._visible(value)
            case "GLOBAL":
                stack.append(_named(argument))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            case "BUILD":
                match stack.pop():
                    case {"_metadata": metadata, **others} if not others:
                        self._top(OrderedDict)._metadata = metadata
                    case _:
                        raise ValueError("attributes of something other than a state dict")
            case "PROTO" if argument == 2:
                pass
            case _:
                raise ValueError(f"a pickle with {opcode} {argument}, which is not part of a state")

    def _cut(self, start: int) -> list[Any]:
        """Pop the stack down to ``start``."""
        if start < 0:
            raise ValueError("a pickle that pops more than its stack holds")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"a pickle that fills a {type_name(self._stack[-1])}")
        return self._stack[-1]

    def _visible(self, value: Any) -> Any:
        """Require a value that a state may hold."""
        if isinstance(value, _INTERNAL):
            raise ValueError(f"a state that holds a {type(value).__name__}")
        return value

    def _call(self, name: Any, arguments: Any) -> Any:
        match name, arguments:
            case "OrderedDict", ():
                return OrderedDict()
            case "Counter", (dict() as counts,):
                return Counter(counts)
            case "Size", (tuple() as size,) if len(size) <= _MOST_DIMENSIONS:
                return torch.Size(size)
            case "device", (str(),) | (str(), int()):
                return torch.device(*arguments)
            case "bytes", ():
                return b""
            case "encode", (str() as text, "latin1") if len(text) <= self._left:
                self._left -= len(text)
                return text.encode("latin1")
            case "_rebuild_tensor_v2", (_Storage() as storage, *place, bool() as wanted, OrderedDict()):
                return _tensor(storage.data, storage.dtype, *place).requires_grad_(wanted)
            case "_rebuild_tensor_v3", (
                _Storage() as storage,
                *place,
                bool() as wanted,
                OrderedDict(),
                torch.dtype() as dtype,
            ):
                return _tensor(storage.data, dtype, *place).requires_grad_(wanted)
            case "_rebuild_parameter", (Tensor() as data, bool() as wanted, OrderedDict()):
                return nn.Parameter(data, wanted)
        raise ValueError(f"a call of {name}, or arguments of it, that are not part of a state")

    def _storage(self, identity: Any) -> _Storage:
        """Read the values of tensors once, for all that share them."""
        match identity:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int()) if key.isdecimal():
                if key not in self._storages:
                    self._storages[key] = self._values(key)
                return _Storage(self._storages[key], dtype)
        raise ValueError("a reference to something other than a storage")

    def _values(self, key: str) -> Tensor:
        size = self._find(f"data/{key}")
        try:
            values = torch.empty(size, dtype=torch.uint8, device=self._device)
        except RuntimeError as error:
            raise MemoryError(str(error)) from error
        if self._device != "meta":
            for start in range(0, size, _CHUNK):
                part = values[start : start + _CHUNK]
                # frombuffer raises where the file ends before the record.
                part.copy_(torch.frombuffer(bytearray(self._file.read(len(part))), dtype=torch.uint8, count=len(part)))
        return values

    def _record(self, name: str) -> bytes:
        return self._file.read(self._find(name))

    def _find(self, name: str) -> int:
        """Seek to the start of a record, and return its size."""
        entry = self._entries.get(f"archive/{name}")
        if entry is None:
            raise ValueError(f"an archive without a record {name}")
        self._file.seek(entry.header_offset)
        lengths = struct.unpack("<HH", self._file.read(30)[26:])  # of the name and the padding after it
        self._file.seek(sum(lengths), os.SEEK_CUR)
        return entry.file_size


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    return (_Arguments if any(isinstance(item, _INTERNAL) for item in items) else tuple)(items)


def _named(name: str) -> _Name | torch.dtype:
    """Return the call, the dtype, or the dtype of the storage of a name."""
    module, _, attribute = name.partition(" ")
    if attribute in _CALLS.get(module, ()):
        return _Name(attribute)
    if name in _STORAGES:
        return _STORAGES[name]
    found = vars(torch).get(attribute) if module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"the name {name.replace(' ', '.')}, which is not part of a state")
    return found


def _tensor(data: Tensor, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return a tensor that lies inside its storage and has no more entries than it."""
    whole = all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride))
    if not whole or not len(size) == len(stride) <= _MOST_DIMENSIONS:
        raise ValueError("a tensor of impossible size")
    count, room = math.prod(size), data.numel() // dtype.itemsize
    if count > room or (count and _end(offset, size, stride) > room):
        raise ValueError(f"a tensor of {count} entries on a storage of {room}")
    return torch.empty(0, dtype=dtype, device=data.device).set_(data.untyped_storage(), offset, size, stride)

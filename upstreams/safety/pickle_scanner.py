"""Follow a pickle step by step without making anything: what it asks for, and how much of everything."""

from __future__ import annotations

import math
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from upstreams.safety.allow_list import ADVICE, RefusedError, inert, printable

MOST_STEPS = 2_000_000
MOST_ODD_KEYS = 10_000  # that are neither strings nor numbers of a list
COPIES = 16  # of a file's size that all its tensors together may have, and
SMALL = 64 << 20  # bytes that they may have in any case: a few repeated buffers in a tiny file
REBUILT = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
PARAMETERS = {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
TENSORS = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"}
SETS = {"builtins.set", "collections.Counter", "collections.OrderedDict"}
SMALL_VALUES = {"torch.Size", "torch.device", "torch.serialization._get_layout", "builtins.complex"}
CALLED = REBUILT | PARAMETERS | SETS | SMALL_VALUES | {SUBCLASSED, "_codecs.encode", "builtins.bytearray"}
STORAGES = {
    "BFloat16": 2,
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "ComplexDouble": 16,
    "ComplexFloat": 8,
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "Int": 4,
    "Long": 8,
    "Short": 2,
    "Untyped": 1,
}  # bytes of an element
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?_?(\w+)Storage")
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}


class Name(str):
    """Full name of a class or function that a pickle asks for."""


@dataclass(frozen=True)
class Made:
    """What a call of that name would give."""

    name: str


@dataclass(frozen=True)
class Storage:
    bytes: int
    itemsize: int


class Rehearsal:
    """Runs a pickle on values that stand for its objects.

    records: bytes of each storage in a zip archive by key; None for the older format, where storages follow.
    size: bytes of the whole file.
    Raises RefusedError at the first thing that weights do not need.
    """

    def __init__(self, records: Mapping[str, int] | None, size: int) -> None:
        self.records, self.size = records, size
        self.names: set[str] = set()
        self.steps = self.stored = self.shown = self.odd_keys = 0
        self.storages: dict[str, int] = {}  # bytes by key

    def run(self, stream: IO[bytes]) -> Any:
        """Follow one pickle to its end, and give what stands for its result."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.newer = False
        for operation, argument, _ in pickletools.genops(stream):
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise RefusedError(f"holds a pickle of more steps than weights need; {ADVICE}")
            if operation.name == "STOP":
                break
            self.step(operation.name, argument)
        if self.newer:
            raise RefusedError(
                f"is pickled with protocol 4, and weights are read safely from protocol 2 only; {ADVICE}"
            )
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self.stack.append(argument)
        elif name in VALUES:
            self.stack.append(VALUES[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif method := getattr(self, f"do_{name.lower()}", None):
            method(argument)
        else:
            self.newer_step(name, argument)

    def newer_step(self, name: str, argument: Any) -> None:
        """As protocol 4 writes: followed only to name what it asks for."""
        self.newer = True
        if name in ("SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES8"):
            self.stack.append(argument)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name == "STACK_GLOBAL":
            name, module = self.stack.pop(), self.stack.pop()
            self.do_global(f"{module} {name}")
        elif name != "FRAME":
            if name == "INST":
                self.do_global(argument)
            raise RefusedError(f"is pickled in a way (opcode {name}) that weights never are; {ADVICE}")

    def do_proto(self, _: Any) -> None:
        pass

    def do_global(self, asked: str) -> None:
        module, _, name = asked.partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = Name(f"{module}.{name}")
        if full not in CALLED | TENSORS and not inert(full) and not is_dtype(full) and not itemsize(full):
            raise wants(full)
        self.names.add(str(full))
        self.stack.append(full)

    def do_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append(Made("builtins.dict"))

    def do_empty_set(self, _: Any) -> None:
        self.stack.append(Made("builtins.set"))

    def do_append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def do_appends(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # others are lists by another name, and torch judges them
            self.stack[-1].extend(items)

    def do_setitem(self, _: Any) -> None:
        self.check_keys(self.stack[-2:-1])
        del self.stack[-2:]

    def do_setitems(self, _: Any) -> None:
        self.check_keys(self.marked()[::2])

    def do_tuple(self, _: Any) -> None:
        items = self.marked()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def do_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def do_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def do_reduce(self, _: Any) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def do_newobj(self, _: Any) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not (inert(name) or name in ("collections.OrderedDict", "torch.Size")):
            raise wants(name)
        self.stack.append(self.call(name, args))

    def do_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        attributes = target == Made("collections.OrderedDict") and state == Made("builtins.dict")
        if not attributes and not (isinstance(target, Made) and inert(target.name)):
            raise wants(getattr(target, "name", type(target).__name__) + ".__setstate__")

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))

    def call(self, name: Any, args: Any) -> Any:
        """What a call would give, where it is one that may be made."""
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise wants(name)
        if name in REBUILT:
            return self.tensor(args)
        if name == SUBCLASSED and isinstance(args[0], Name) and args[0] in REBUILT:
            return self.call(args[0], args[2])
        if name in PARAMETERS and args[0] == Made("torch.Tensor"):
            return args[0]
        return self.value(name, args)

    def value(self, name: Name, args: tuple[Any, ...]) -> Made:
        """Small values and containers, whose arguments must be what pickles of these are."""
        if name in SETS:
            self.check_members(name, args)
        elif name in ("_codecs.encode", "builtins.bytearray"):  # other encodings can grow without end, sizes too
            text = args and isinstance(args[0], str) and args[1:] in (("latin1",), ("latin-1",))
            if not text and args not in ((), (Made("_codecs.encode"),)):
                raise wants(name)
        elif name in SMALL_VALUES:
            if not all(isinstance(arg, (int, float, str, tuple)) for arg in args):
                raise wants(name)
        elif not inert(name):
            raise wants(name)
        return Made(name)

    def check_members(self, name: str, args: tuple[Any, ...]) -> None:
        """As `check_keys`, for what sets and dictionaries are made of: a list of keys, or of pairs of key and value."""
        pairs = name == "collections.OrderedDict"
        for given in args:
            if isinstance(given, list):
                if pairs and not all(isinstance(item, (list, tuple)) and item for item in given):
                    raise wants(name)
                self.check_keys([item[0] if pairs else item for item in given])
            elif given not in (Made("builtins.dict"), Made("builtins.set")):
                raise wants(name)

    def check_keys(self, keys: list[Any]) -> None:
        """Raise RefusedError for keys whose hashes may take forever: long or nested tuples, colliding numbers."""
        for key in keys:
            if isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 60):
                continue
            self.odd_keys += 1
            nested = isinstance(key, tuple) and (len(key) > 16 or any(isinstance(part, tuple) for part in key))
            if nested or self.odd_keys > MOST_ODD_KEYS:
                raise RefusedError(f"has keys that no weights have; {ADVICE}")

    def storage(self, given: Any) -> Storage:
        """Bytes behind tensors, which must be in the file."""
        if not isinstance(given, tuple) or len(given) < 5:
            raise unwritten()
        kind, name, key, _, count, *view = given
        width = itemsize(name) if isinstance(name, Name) else 0
        if kind != "storage" or not width or not whole([count]) or not isinstance(key, str) or view not in ([], [None]):
            raise unwritten()
        size = count * width
        if self.records is not None and self.records.get(key) != size:
            held = self.records.get(key, "none")
            raise RefusedError(f"declares weights of {size} bytes where it holds {held}; download it again")
        if key not in self.storages:
            self.storages[key] = size
            self.stored += size
        if self.storages[key] != size or self.stored > self.size:
            raise RefusedError("declares more weights than it holds; download it again")
        return Storage(size, width)

    def tensor(self, args: tuple[Any, ...]) -> Made:
        """A dense tensor within its storage, of about the file's size at most."""
        storage, offset, shape, stride = args[:4]
        if not isinstance(storage, Storage) or not whole([offset, *shape, *stride]) or len(shape) != len(stride):
            raise unwritten()
        width = storage.itemsize if len(args) < 7 or not is_dtype(args[6]) else getattr(torch, args[6][6:]).itemsize
        count = math.prod(shape)
        end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
        self.shown += count * width
        if (count and end * width > storage.bytes) or self.shown > COPIES * self.size + SMALL:
            raise RefusedError("declares larger weights than it holds; download it again")
        return Made("torch.Tensor")


def unwritten() -> RefusedError:
    return RefusedError(f"describes its weights in a way that torch does not write; {ADVICE}")


def wants(name: Any) -> RefusedError:
    told = printable(name if isinstance(name, str) else getattr(name, "name", type(name).__name__))
    if told.startswith("torch._utils._rebuild"):
        return RefusedError(f"holds tensors that are not dense ({told}); {ADVICE}")
    return RefusedError(f"wants to run {told}, and weights need nothing run; {ADVICE}")


def itemsize(name: str) -> int:
    """Bytes of an element of a storage class, 0 for what is none."""
    found = STORAGE.fullmatch(name)
    return STORAGES.get(found.group(1), 0) if found else 0


def is_dtype(name: Any) -> bool:
    return isinstance(name, Name) and name[:6] == "torch." and isinstance(getattr(torch, name[6:], None), torch.dtype)


def whole(numbers: list[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)

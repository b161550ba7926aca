"""Interpret the opcodes of a pickle on placeholders, creating no object, before torch loads the same file.

What torch guarantees. `torch.load(weights_only=True)` (torch/_weights_only_unpickler.py, read in torch 2.13) imports
nothing: it looks names up in a fixed list of classes and functions plus `torch.serialization.safe_globals`, calls only
those, appends only to lists, sets items only of dicts, OrderedDicts and Counters, sets the state only of tensors,
parameters, OrderedDicts and listed classes, loads only storages by persistent id, and refuses every other opcode.
Arbitrary code is therefore torch's to prevent, and `loading.load_checkpoint` always loads through it.

What torch does not guarantee is an end in bounded time and memory, since it does not check the arguments of the calls
on its list. Plain `torch.load(weights_only=True)`, limited to 512 MiB more memory than the interpreter already had and
to 8 s per file, refuses 63 of the 89 hostile and broken files of tests/upstreams/hostile.py. It runs out of memory on 8
(such as `bytearray(10**12)` and storages larger than the file), exceeds the time on 6 (such as dictionary keys whose
hashes collide or take exponential time), and accepts 12 (such as tensors of terabytes with stride 0, and lists that
contain themselves).

What fickling does. fickling (Trail of Bits; PyPI, LGPL-3.0; read in version 0.1.12) decompiles a pickle into Python
source by symbolic execution, limits its own opcodes, stack and memo, and rates imports and calls by severity; its best
verdict is "likely safe". Its unpickler checks each imported name against an allow-list, then imports and calls the real
class. It is not used here because it does not compare the arguments of allowed calls with the size of the file, because
its allow-list is mainly for other packages (transformers, ultralytics) than those of speech checkpoints (omegaconf,
fairseq, s3prl), and because torch already has an allow-list. CVE-2026-14535 reports that its analysis by allow-list had
no effect up to version 0.1.11.

What is left to this module:

- Limits: number of opcodes, bytes of storages and of the tensors that view them, arguments of every call, and keys of
  dictionaries and sets. Torch has none of these.
- The names that a pickle refers to, so that torch can be given a stand-in (`allow_list.stand_in`) for each inert class.
- Rejection of sparse, quantized, nested and meta tensors, which torch accepts and no checkpoint of speech models needs.
- One sentence for users that names the function which a file asks for. For this reason alone protocol 4, which torch
  refuses by opcode number, is followed up to the first name that is not allowed.

Whether the target of an append or of a set-item is a container is left to torch.
"""

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
MOST_ODD_KEYS = 10_000  # keys that are neither strings nor integers from 0 to 2 ** 60 - 1
COPIES = 16  # all tensors together may take this many times the size of the file, since they may share storages,
SMALL = 64 << 20  # plus this many bytes, for repeated buffers in a very small file
REBUILT = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
PARAMETERS = {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
SUBCLASSED = "torch._tensor._rebuild_from_type_v2"
TENSORS = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"}
SETS = {"builtins.set", "collections.Counter", "collections.OrderedDict"}
SMALL_VALUES = {"torch.Size", "torch.device", "torch.serialization._get_layout", "builtins.complex"}
CALLED = REBUILT | PARAMETERS | SETS | SMALL_VALUES | {SUBCLASSED, "_codecs.encode", "builtins.bytearray"}
STORAGES = {  # bytes of an element by name of the storage class; quantized tensors are refused
    "UntypedStorage": 1,
    **{
        name: dtype.itemsize
        for dtype, name in torch.storage._dtype_to_storage_type_map().items()
        if not name.startswith("Q")
    },
}
STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?_?(\w+Storage)")
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}


class Name(str):
    """Full name of a class or function that a pickle refers to."""


@dataclass(frozen=True)
class CallResult:
    """Placeholder for the result of calling the function or class of this name."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Placeholder for a storage: its size and that of one element, in bytes."""

    bytes: int
    itemsize: int


class PickleScanner:
    """Interpreter of the pickle opcodes that works on placeholders and creates none of the pickled objects.

    records: bytes of each storage in a zip archive by key; None for the older format, where the storages follow the
    pickles.
    size: bytes of the whole file.
    Afterwards `names` holds the names that were referred to and `steps` the number of opcodes.
    Raises RefusedError at the first opcode, name, argument or size that weights do not need.
    """

    def __init__(self, records: Mapping[str, int] | None, size: int) -> None:
        self.records, self.size = records, size
        self.names: set[str] = set()
        self.steps = self.stored = self.viewed = self.odd_keys = 0
        self.storages: dict[str, int] = {}  # bytes by key

    def run(self, stream: IO[bytes]) -> Any:
        """Interpret one pickle up to its STOP opcode and return the placeholder for its result."""
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
        """Interpret an opcode of protocol 4, only so that a refusal can name what the file asks for."""
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

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = Name(f"{module}.{name}")
        if full not in CALLED | TENSORS and not inert(full) and not is_dtype(full) and not itemsize(full):
            raise code_request(full)
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
        self.stack.append(CallResult("builtins.dict"))

    def do_empty_set(self, _: Any) -> None:
        self.stack.append(CallResult("builtins.set"))

    def do_append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def do_appends(self, _: Any) -> None:
        self.extend(self.marked())

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):  # torch refuses to append to anything but a list
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
            raise code_request(name)
        self.stack.append(self.call(name, args))

    def do_build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        attributes = target == CallResult("collections.OrderedDict") and state == CallResult("builtins.dict")
        if not attributes and not (isinstance(target, CallResult) and inert(target.name)):
            raise code_request(getattr(target, "name", type(target).__name__) + ".__setstate__")

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))

    def call(self, name: Any, args: Any) -> Any:
        """Return the placeholder for the result of a call; raises RefusedError unless the call is allowed."""
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise code_request(name)
        if name in REBUILT:
            return self.tensor(args)
        if name == SUBCLASSED and isinstance(args[0], Name) and args[0] in REBUILT:
            return self.call(args[0], args[2])
        if name in PARAMETERS and args[0] == CallResult("torch.Tensor"):
            return args[0]
        return self.value(name, args)

    def value(self, name: Name, args: tuple[Any, ...]) -> CallResult:
        """Return the placeholder for a small value or container; raises RefusedError for unusual arguments."""
        if name in SETS:
            self.check_members(name, args)
        elif name in ("_codecs.encode", "builtins.bytearray"):  # other codecs, or sizes, take any amount of memory
            text = args and isinstance(args[0], str) and args[1:] in (("latin1",), ("latin-1",))
            if not text and args not in ((), (CallResult("_codecs.encode"),)):
                raise code_request(name)
        elif name in SMALL_VALUES:
            if not all(isinstance(arg, (int, float, str, tuple)) for arg in args):
                raise code_request(name)
        elif not inert(name):
            raise code_request(name)
        return CallResult(name)

    def check_members(self, name: str, args: tuple[Any, ...]) -> None:
        """Apply `check_keys` to the argument of a set or dictionary: a list of keys, or of (key, value) pairs."""
        pairs = name == "collections.OrderedDict"
        for members in args:
            if isinstance(members, list):
                if pairs and not all(isinstance(item, (list, tuple)) and item for item in members):
                    raise code_request(name)
                self.check_keys([item[0] if pairs else item for item in members])
            elif members not in (CallResult("builtins.dict"), CallResult("builtins.set")):
                raise code_request(name)

    def check_keys(self, keys: list[Any]) -> None:
        """Raise RefusedError for keys that may be slow to hash: long or nested tuples, or many odd numbers."""
        for key in keys:
            if isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 60):
                continue
            self.odd_keys += 1
            nested = isinstance(key, tuple) and (len(key) > 16 or any(isinstance(part, tuple) for part in key))
            if nested or self.odd_keys > MOST_ODD_KEYS:
                raise RefusedError(f"has keys that no weights have; {ADVICE}")

    def storage(self, persistent_id: Any) -> Storage:
        """Return the placeholder for a storage; raises RefusedError unless the file holds all of its bytes."""
        if not isinstance(persistent_id, tuple) or len(persistent_id) < 5:
            raise unknown_layout()
        kind, name, key, _, count, *view = persistent_id
        width = itemsize(name) if isinstance(name, Name) else 0
        if (
            kind != "storage"
            or not width
            or not are_sizes([count])
            or not isinstance(key, str)
            or view not in ([], [None])
        ):
            raise unknown_layout()
        size = count * width
        if self.records is not None and self.records.get(key) != size:
            stored = self.records.get(key, "none")
            raise RefusedError(f"declares weights of {size} bytes where it holds {stored}; download it again")
        if key not in self.storages:
            self.storages[key] = size
            self.stored += size
        if self.storages[key] != size or self.stored > self.size:
            raise RefusedError("declares more weights than it holds; download it again")
        return Storage(size, width)

    def tensor(self, args: tuple[Any, ...]) -> CallResult:
        """Return the placeholder for a dense tensor.

        Raises RefusedError for a tensor that extends beyond its storage, or makes all tensors together too large.
        """
        storage, offset, shape, stride = args[:4]
        if not isinstance(storage, Storage) or not are_sizes([offset, *shape, *stride]) or len(shape) != len(stride):
            raise unknown_layout()
        width = storage.itemsize if len(args) < 7 or not is_dtype(args[6]) else getattr(torch, args[6][6:]).itemsize
        count = math.prod(shape)
        end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
        self.viewed += count * width
        if (count and end * width > storage.bytes) or self.viewed > COPIES * self.size + SMALL:
            raise RefusedError("declares larger weights than it holds; download it again")
        return CallResult("torch.Tensor")


def unknown_layout() -> RefusedError:
    """Return the error for a storage or tensor whose description torch.save would not write."""
    return RefusedError(f"describes its weights in a way that torch does not write; {ADVICE}")


def code_request(name: Any) -> RefusedError:
    """Return the error for a name that is not allowed, or an allowed one that is called with unusual arguments."""
    text = printable(name if isinstance(name, str) else getattr(name, "name", type(name).__name__))
    if text.startswith("torch._utils._rebuild"):
        return RefusedError(f"holds tensors that are not dense ({text}); {ADVICE}")
    return RefusedError(f"wants to run {text}, and weights need nothing run; {ADVICE}")


def itemsize(name: str) -> int:
    """Return the bytes of one element of a storage class, or 0 if the name is not that of a storage class."""
    match = STORAGE.fullmatch(name)
    return STORAGES.get(match.group(1), 0) if match else 0


def is_dtype(name: Any) -> bool:
    return isinstance(name, Name) and name[:6] == "torch." and isinstance(getattr(torch, name[6:], None), torch.dtype)


def are_sizes(numbers: list[Any]) -> bool:
    """Whether all are integers from 0 to 2 ** 48 - 1."""
    return all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)

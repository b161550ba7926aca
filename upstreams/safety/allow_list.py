"""The allow-list of classes that a checkpoint may refer to, and the inert stand-ins that replace them.

A stand-in stores the arguments and the state of an object and executes nothing. `plain_value` then converts the loaded
content to plain values and tensors.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from upstreams.base import UpstreamError

CONTAINERS = {  # pickled empty and filled afterwards: the name, and the plain container that is filled instead
    "collections.defaultdict": dict,
    "collections.deque": list,
    "easydict.EasyDict": dict,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "lightning.pytorch.utilities.parsing.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
}
NAMES = {
    "argparse.Namespace",
    "operator.getitem",  # how typing pickles Dict[str, int]
    "_operator.getitem",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "uuid.UUID",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{name}" for name in ("bool", "bool_", "dtype", "ndarray", "str_", "float16", "float32", "float64")),
    *(f"numpy.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"numpy.random._pickle.__{name}_ctor" for name in ("bit_generator", "generator", "randomstate")),
    *CONTAINERS,
    *(
        f"builtins.{name}"
        for name in ("bool", "bytes", "dict", "Ellipsis", "float", "int", "list", "object", "str", "tuple", "type")
    ),
}
CLASSES = (  # prefixes of training packages that store configurations, dictionaries and records beside the weights
    "examples.",  # fairseq's
    "fairseq.",
    "hydra.",
    "lightning.",
    "lightning_fabric.",
    "numpy.dtypes.",
    "omegaconf.",
    "optimizers.",  # s3prl's
    "pathlib.",
    "pyannote.",
    "pytorch_lightning.",
    "s3prl.",
    "sentencepiece.",
    "speechbrain.",
    "transformers.",
    "typing.",
    "utility.",  # s3prl's
)
SCALARS = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.layout)
CLASS_NAME = re.compile(r"\._?[A-Z]\w*$")  # names of classes; configurations do not refer to functions
NUMBER = re.compile(r"[<>|=]?[biufc](1|2|4|8|16)|\?|bool")  # numpy's names of number types
FEW_VALUES, DEEPEST = 100_000, 100
ADVICE = "save its state dict with safetensors.torch.save_file where you trust it, and give that file"


class RefusedError(UpstreamError):
    """The fault of a checkpoint and the remedy, to which the caller adds the name of the file."""


def printable(text: str, most: int = 120) -> str:
    """Return untrusted text on one line of at most `most` characters, with unprintable characters replaced by "?"."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def short_repr(value: Any, most: int = 120) -> str:
    """Return the repr of an untrusted value on one line of at most `most` characters."""
    try:
        return printable(repr(value), most)
    except (ValueError, RecursionError):  # thousands of digits, or of lists in lists
        return f"a {type(value).__name__} too long to be shown"


def short_list(names: Iterable[str], most: int = 4) -> str:
    """Return the first `most` of some untrusted names in sorted order, on one line, and the number of the others."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(map(printable, ordered[:most])) + rest


def describe_misfits(
    missing: Iterable[str], surplus: Iterable[str], misshapen: Iterable[str], unlike: Iterable[str] = ()
) -> str:
    """Return a list of the weights that do not fit a model, by kind of fault and name; "" if all fit."""
    faults = {
        "missing": [*missing],
        "of no use": [*surplus],
        "of another shape": [*misshapen],
        "of another kind of numbers": [*unlike],
    }
    return "; ".join(f"{fault}: {short_list(names)}" for fault, names in faults.items() if names)


class StandIn:
    """A replacement for an object of a class that is not imported: full name, constructor arguments and state."""

    name: ClassVar[str] = ""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> StandIn:  # not __init__, which some pickles never call
        instance = super().__new__(cls)
        instance.args, instance.state = args, None
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<stand-in for {self.name}>"


def inert(name: str) -> bool:
    """Whether a checkpoint may refer to this full name, for which a stand-in is used."""
    return name in NAMES or (name.startswith(CLASSES) and CLASS_NAME.search(name) is not None)


def stand_in(name: str) -> Any:
    """Return the replacement for a class or function of this full name; the original is neither imported nor called."""
    if name in CONTAINERS:
        return type("Empty", (), {"name": name, "__new__": lambda cls, *args, make=CONTAINERS[name]: make()})
    return type("StandIn", (StandIn,), {"name": name})


def plain_value(value: Any, most: int = FEW_VALUES) -> Any:
    """Return loaded content as a tree of plain values and detached tensors.

    Namespaces are kept. Nodes of omegaconf become dicts and lists; numbers and arrays of numpy become Python numbers
    and tensors; a member of an enumeration becomes its value, a path its text, and a class its name. Objects of other
    classes stay instances of `StandIn`.

    most: the largest number of values, where those of shared parts count each time.
    Raises RefusedError for content that is cyclic, nested too deeply or too large, and for objects of other types.
    """
    return PlainConversion(most).convert(value, 0)


class PlainConversion:
    """One conversion by `plain_value`; it counts values, since content with shared or cyclic parts can be endless."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.open: set[int] = set()  # ids of the stand-ins that are being converted

    def convert(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise RefusedError(f"holds values nested without end or too deeply; {ADVICE}")
        if type(value) in SCALARS:
            return value
        if isinstance(value, Tensor):
            return Tensor.detach(value)  # a new tensor, without hooks and attributes
        if isinstance(value, StandIn):
            return self.convert_stand_in(value, depth + 1)
        return self.convert_container(value, depth + 1)

    def convert_container(self, value: Any, depth: int) -> Any:
        if type(value) in (dict, OrderedDict, Counter):
            return {self.key(key, depth): self.convert(item, depth) for key, item in dict.items(value)}
        if type(value) in (list, tuple, set):
            return type(value)(self.convert(item, depth) for item in value)
        if type(value) is torch.Size:
            return tuple(value)
        if isinstance(value, type):
            return getattr(value, "name", f"{value.__module__}.{value.__qualname__}")
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise RefusedError(f"holds a {kind}, which has no place in weights; {ADVICE}")

    def key(self, key: Any, depth: int) -> Any:
        key = self.convert(key, depth)
        return key if type(key) in SCALARS or isinstance(key, tuple) else str(key)

    def convert_stand_in(self, value: StandIn, depth: int) -> Any:
        if id(value) in self.open:
            return value.name
        self.open.add(id(value))
        try:
            return self.convert_state(value, depth)
        finally:
            self.open.discard(id(value))

    def convert_state(self, value: StandIn, depth: int) -> Any:
        name = value.name
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        if name == "argparse.Namespace":
            return argparse.Namespace(**{str(key): self.convert(item, depth) for key, item in dict.items(state)})
        if name.startswith("omegaconf."):
            return self.convert_node(state, depth)
        args = tuple(self.convert(item, depth) for item in value.args)
        if name == "builtins.bytes" and not args:  # how protocol 2 writes empty bytes
            return b""
        if name.startswith("pathlib."):
            return str(PurePosixPath(*map(str, args)))
        if name.startswith("numpy."):
            return convert_numpy(name, args, self.convert(value.state, depth))
        if len(args) == 1 and type(args[0]) in (str, int) and value.state is None:
            return args[0]
        copy = type(value)(*args)
        copy.state = self.convert(value.state, depth)
        return copy

    def convert_node(self, state: dict[Any, Any], depth: int) -> Any:
        """Return the content of an omegaconf DictConfig, ListConfig or value node, without its parents and types."""
        for key in ("_content", "content", "_val", "val"):
            if key in state:
                return self.convert(state[key], depth)
        return None


def convert_numpy(name: str, args: tuple[Any, ...], state: Any) -> Any:
    """Return the number, tensor or name of a dtype that numpy pickled, without calling numpy's own reconstruction."""
    if name == "numpy.dtype":
        order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else ""
        return f"{order}{args[0]}" if args and isinstance(args[0], str) else name
    if name.endswith(".scalar") and len(args) == 2:
        return numpy_array(args[0], (), args[1]).item()
    if name.endswith("._reconstruct") and isinstance(state, tuple) and len(state) == 5:
        return torch.from_numpy(numpy_array(state[2], state[1], state[4], "F" if state[3] else "C"))
    return name


def numpy_array(dtype: Any, shape: Any, content: Any, order: Any = "C") -> Any:
    """Return an array of plain numbers from its pickled bytes; raises RefusedError for other dtypes or a wrong size."""
    import numpy

    if not isinstance(dtype, str) or not NUMBER.fullmatch(dtype) or not isinstance(content, bytes):
        raise RefusedError(f"holds a numpy array of objects, which need code to be read; {ADVICE}")
    try:
        native = numpy.dtype(dtype).newbyteorder("=")
        return numpy.frombuffer(content, dtype).reshape(shape, order=order).astype(native)
    except (TypeError, ValueError) as error:
        raise RefusedError("holds a numpy array whose size is not that of its content; download it again") from error

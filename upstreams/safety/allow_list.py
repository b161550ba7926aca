"""What stands in for the classes of strangers: keeps what it is given, can do nothing, and is made plain afterwards."""

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

CONTAINERS = {  # pickled as an empty one that is filled: name to what is filled in its place
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
    "operator.getitem",  # typing's way to pickle Dict[str, int]
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
CLASSES = (  # in packages of training programs whose configurations, dictionaries and records lie beside the weights
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
CLASS_NAME = re.compile(r"\._?[A-Z]\w*$")  # functions are not asked for by configurations
NUMBER = re.compile(r"[<>|=]?[biufc](1|2|4|8|16)|\?|bool")  # numpy's names of plain numbers
FEW_VALUES, DEEPEST = 100_000, 100
ADVICE = "save its state dict with safetensors.torch.save_file where you trust it, and give that file"


class RefusedError(UpstreamError):
    """What is wrong with a checkpoint and what to do, said without the name of its file."""


def printable(text: str, most: int = 120) -> str:
    """A stranger's text on one line, without what terminals obey."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: Any, most: int = 120) -> str:
    """A stranger's value as Python writes it, on one line."""
    try:
        return printable(repr(value), most)
    except (ValueError, RecursionError):  # thousands of digits, or of lists in lists
        return f"a {type(value).__name__} too long to be shown"


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first of a stranger's names, on one line, and how many more there are."""
    told = sorted(names)
    return ", ".join(map(printable, told[:most])) + (f" and {len(told) - most} more" if len(told) > most else "")


def misfits(
    missing: Iterable[str], surplus: Iterable[str], misshapen: Iterable[str], unlike: Iterable[str] = ()
) -> str:
    """What keeps weights from fitting a model, by their names; "" where all of them arrive."""
    faults = {
        "missing": [*missing],
        "of no use": [*surplus],
        "of another shape": [*misshapen],
        "of another kind of numbers": [*unlike],
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in faults.items() if names)


class StandIn:
    """An object of a class that is not imported: its full name, the arguments of its making, and its state."""

    name: ClassVar[str] = ""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> StandIn:  # which is all that some pickles call
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<stand-in for {self.name}>"


def inert(name: str) -> bool:
    """Whether something of this full name may be asked for, to be replaced by a stand-in."""
    return name in NAMES or (name.startswith(CLASSES) and CLASS_NAME.search(name) is not None)


def stand_in(name: str) -> Any:
    """What takes the place of a class, or of a function, which is then not called either."""
    if name in CONTAINERS:
        return type("Empty", (), {"name": name, "__new__": lambda cls, *args, make=CONTAINERS[name]: make()})
    return type("StandIn", (StandIn,), {"name": name})


def plain(value: Any, most: int = FEW_VALUES) -> Any:
    """The same as a tree of plain values and detached tensors; raises RefusedError for what has no end or no place.

    most: values that there may be, those of shared parts counted each time.

    Namespaces stay, omegaconf's nodes become dicts and lists, numpy's numbers and arrays Python's and torch's, an
    enumeration's member its value, a path its text, a class its name; other classes are left as `StandIn`.
    """
    return Plain(most).of(value, 0)


class Plain:
    """One conversion: what was met so far is counted, since shared and cyclic parts have no end as a tree."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.open: set[int] = set()  # stand-ins that are being converted

    def of(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise RefusedError(f"holds values nested without end or too deeply; {ADVICE}")
        if type(value) in SCALARS:
            return value
        if isinstance(value, Tensor):
            return Tensor.detach(value)  # a fresh one: hooks and attributes stay behind
        if isinstance(value, StandIn):
            return self.of_stand_in(value, depth + 1)
        return self.of_container(value, depth + 1)

    def of_container(self, value: Any, depth: int) -> Any:
        if type(value) in (dict, OrderedDict, Counter):
            return {self.key(key, depth): self.of(item, depth) for key, item in dict.items(value)}
        if type(value) in (list, tuple, set):
            return type(value)(self.of(item, depth) for item in value)
        if type(value) is torch.Size:
            return tuple(value)
        if isinstance(value, type):
            return getattr(value, "name", f"{value.__module__}.{value.__qualname__}")
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise RefusedError(f"holds a {kind}, which has no place in weights; {ADVICE}")

    def key(self, key: Any, depth: int) -> Any:
        key = self.of(key, depth)
        return key if type(key) in SCALARS or isinstance(key, tuple) else str(key)

    def of_stand_in(self, value: StandIn, depth: int) -> Any:
        if id(value) in self.open:
            return value.name
        self.open.add(id(value))
        try:
            return self.converted(value, depth)
        finally:
            self.open.discard(id(value))

    def converted(self, value: StandIn, depth: int) -> Any:
        name = value.name
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        if name == "argparse.Namespace":
            return argparse.Namespace(**{str(key): self.of(item, depth) for key, item in dict.items(state)})
        if name.startswith("omegaconf."):
            return self.of_node(state, depth)
        args = tuple(self.of(item, depth) for item in value.args)
        if name == "builtins.bytes" and not args:  # how protocol 2 writes none
            return b""
        if name.startswith("pathlib."):
            return str(PurePosixPath(*map(str, args)))
        if name.startswith("numpy."):
            return of_numpy(name, args, self.of(value.state, depth))
        if len(args) == 1 and type(args[0]) in (str, int) and value.state is None:
            return args[0]
        kept = type(value)(*args)
        kept.state = self.of(value.state, depth)
        return kept

    def of_node(self, state: dict[Any, Any], depth: int) -> Any:
        """Content of omegaconf's DictConfig, ListConfig or value; its links to parents and types are left out."""
        for key in ("_content", "content", "_val", "val"):
            if key in state:
                return self.of(state[key], depth)
        return None


def of_numpy(name: str, args: tuple[Any, ...], state: Any) -> Any:
    """A number, a tensor or a dtype's name, from what numpy pickles them as; never numpy's own reading of it."""
    if name == "numpy.dtype":
        order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else ""
        return f"{order}{args[0]}" if args and isinstance(args[0], str) else name
    if name.endswith(".scalar") and len(args) == 2:
        return array(args[0], (), args[1]).item()
    if name.endswith("._reconstruct") and isinstance(state, tuple) and len(state) == 5:
        found = array(state[2], state[1], state[4], "F" if state[3] else "C")
        return torch.from_numpy(found)
    return name


def array(dtype: Any, shape: Any, content: Any, order: Any = "C") -> Any:
    import numpy

    if not isinstance(dtype, str) or not NUMBER.fullmatch(dtype) or not isinstance(content, bytes):
        raise RefusedError(f"holds a numpy array of objects, which need code to be read; {ADVICE}")
    try:
        native = numpy.dtype(dtype).newbyteorder("=")
        return numpy.frombuffer(content, dtype).reshape(shape, order=order).astype(native)
    except (TypeError, ValueError) as error:
        raise RefusedError("holds a numpy array whose size is not that of its content; download it again") from error

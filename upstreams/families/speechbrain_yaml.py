"""Read SpeechBrain's hyperparams.yaml as data.

HyperPyYAML runs such a file as a program: tags like `!new:`, `!apply:` and `!name:` create or call whatever they name.
Here a tag is only a name with arguments. Nothing is imported, called or included; the caller decides which names it
accepts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from upstreams.base import UpstreamError
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable

LARGEST = 200_000  # bytes of a file; published files have about 2000
LONGEST = 10_000  # bits of a number; Python does not print numbers of more than 4300 digits
MOST = 1_000  # limit of characters in a text with references, and of entries in a list
DEEPEST = 50  # depth of references to references
NAME = re.compile(r"<([^<>]*)>")
SUM = re.compile(r"[-\d.eE+*() ]*\d[-\d.eE+*() ]*|\([-\d., ]*\)")  # a sum or product of numbers, or a tuple of numbers
UNNAMED = ("!ref", "!copy")


@dataclass(frozen=True, eq=False)
class Tagged:
    """A value with a custom tag: `!new:a.B {size: 4}` is Tagged("!new:a.B", {"size": 4}); one object per node."""

    tag: str
    content: Any

    @property
    def class_name(self) -> str:
        """The full name of the class of a `!new:` tag; the tag itself for other tags."""
        return self.tag.removeprefix("!new:")


class Loader(yaml.SafeLoader):
    """Loads YAML's plain types; a value with any other tag, including those of Python objects, becomes a `Tagged`."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merged mappings: a few lines can expand to billions of entries, and SpeechBrain's files have none."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "it merges mappings with <<", node.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse numbers that are too long for Python to print, such as long hexadecimal ones."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > LONGEST:
            raise yaml.constructor.ConstructorError(None, None, "it has an endless number", node.start_mark)
        return value


def construct_tagged(loader: yaml.SafeLoader, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(node.tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(node.tag, loader.construct_sequence(node, deep=True))
    return Tagged(node.tag, node.value)


Loader.add_constructor(None, construct_tagged)  # type: ignore[type-var]
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class Hyperparams:
    """The entries of a file; references between them are resolved when they are read.

    tree: the content of the file by key. reference: the model that the file belongs to, for messages.
    """

    def __init__(self, tree: dict[str, Any], reference: str) -> None:
        self.tree, self.reference = tree, reference
        self.resolved: dict[str, Any] = {}  # values of references by their text
        self.pending: set[str] = set()  # references that are being resolved

    def error(self, problem: str) -> UpstreamError:
        return UpstreamError(f"hyperparams.yaml of '{self.reference}' {printable(problem, 400)}")

    def value(self, key: str) -> Any:
        """Return the value of one entry, or None if it is absent."""
        return self.dereference(self.tree.get(key))

    def section(self, *keys: str) -> dict[str, Any]:
        """Return the mapping, or the arguments of the object, under nested keys; an empty dict if it is absent."""
        node: Any = self.tree
        for key in keys:
            node = self.dereference(node.get(key))
            node = node.content if isinstance(node, Tagged) else node
            if not isinstance(node, dict):
                return {}
        return {str(key): self.dereference(value) for key, value in node.items()}

    def arguments(self, node: Tagged) -> dict[str, Any]:
        """Return the named arguments of a `!new:`: numbers, texts, lists of them, or other tagged values."""
        if node.content in ("", None):
            return {}
        if not isinstance(node.content, dict):
            raise self.error(f"gives {node.class_name} its arguments without their names; write them as name: value")
        return {str(name): self.plain(value) for name, value in node.content.items()}

    def plain(self, node: Any) -> Any:
        """Return the value of an argument, with references resolved and arithmetic in texts evaluated."""
        value = self.dereference(node)
        if isinstance(value, str):
            return self.evaluate(value)
        if isinstance(value, list) and len(value) <= MOST:
            return [self.dereference(entry) for entry in value]
        return value

    def dereference(self, node: Any) -> Any:
        """Return the value of a reference, which may be a `Tagged` object; any other node is returned unchanged."""
        if not isinstance(node, Tagged) or node.tag not in UNNAMED:
            return node
        text = str(node.content)
        if text in self.resolved:
            return self.resolved[text]
        if text in self.pending or len(self.pending) >= DEEPEST:
            raise self.error(f"refers to '{text}' in a circle; write the value itself there")
        self.pending.add(text)
        whole = NAME.fullmatch(text)
        value = self.entry(whole[1]) if whole else self.evaluate(self.substitute(text))
        self.pending.discard(text)
        return self.resolved.setdefault(text, value)

    def entry(self, name: str) -> Any:
        """Return the value of the entry `key` or `key[inner]`."""
        node: Any = self.tree
        for key in re.findall(r"[^\[\]]+", name) or [name]:
            node = node.content if isinstance(node, Tagged) else node
            if not isinstance(node, dict) or key not in node:
                raise self.error(f"refers to <{name}>, which it does not have; take the file as it was published")
            node = self.dereference(node[key])
        return node

    def substitute(self, text: str) -> str:
        """Replace every <name> in a text with the value of that entry."""

        def value(match: re.Match[str]) -> str:
            entry = self.entry(match[1])
            if not isinstance(entry, (str, int, float)) or len(str(entry)) > MOST:
                raise self.error(f"writes <{match[1]}> into a text, and that is neither a number nor a short text")
            return str(entry)

        if len(text) > MOST:
            raise self.error(f"has a text of more than {MOST} characters with references in it")
        return NAME.sub(value, text)

    def evaluate(self, text: str) -> Any:
        """Return the number or list that a text describes as a sum, product or tuple; otherwise the text itself."""
        if len(text) > MOST or not SUM.fullmatch(text):
            return text
        try:
            value = checkpoints.literal_value(text)
        except UpstreamError:
            return text
        return list(value) if isinstance(value, tuple) else value


def read_hyperparams(path: Path, reference: str) -> Hyperparams:
    """Return the content of a hyperparams.yaml; raises UpstreamError if it is broken or is not such a file."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UpstreamError(f"hyperparams.yaml of '{reference}' has more than {LARGEST} bytes; it is no such file")
    try:
        tree = yaml.load(content, Loader=Loader)
    except Exception as error:  # untrusted content can raise any exception
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"hyperparams.yaml of '{reference}' is broken ({detail}); download it again") from error
    if not isinstance(tree, dict):
        raise UpstreamError(f"hyperparams.yaml of '{reference}' has no entries; download it again")
    return Hyperparams({str(key): value for key, value in tree.items()}, reference)

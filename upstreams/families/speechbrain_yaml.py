"""SpeechBrain's hyperparams.yaml, read as data.

To HyperPyYAML such a file is a program: `!new:`, `!apply:`, `!name:` and their like make or call whatever they name.
Here a tag is a name beside its arguments; nothing is imported, called or included, and who asks for a part decides
which names it knows.
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

LARGEST = 200_000  # bytes; published files have about 2000
LONGEST = 10_000  # bits of a number; Python writes none of more than 4300 digits
MOST = 1_000  # characters of a text with references, and entries of a list
DEEPEST = 50  # references to references
NAME = re.compile(r"<([^<>]*)>")
SUM = re.compile(r"[-\d.eE+*() ]*\d[-\d.eE+*() ]*|\([-\d., ]*\)")  # of numbers, or a tuple of them
UNNAMED = ("!ref", "!copy")


@dataclass(frozen=True, eq=False)
class Tagged:
    """A value with a tag of its own: `!new:a.B {size: 4}` is Tagged("!new:a.B", {"size": 4}); one object per node."""

    tag: str
    content: Any

    @property
    def made(self) -> str:
        """The class that it makes an object of, by its full name; else the tag."""
        return self.tag.removeprefix("!new:")


class Loader(yaml.SafeLoader):
    """YAML's plain types; every other tag, Python's own included, is kept as `Tagged`."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merged mappings, of which a few lines make billions of entries; SpeechBrain's files have none."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "it merges mappings with <<", node.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse numbers, in hexadecimal for one, that Python would not write as text."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > LONGEST:
            raise yaml.constructor.ConstructorError(None, None, "it has an endless number", node.start_mark)
        return value


def tagged(loader: yaml.SafeLoader, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(node.tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(node.tag, loader.construct_sequence(node, deep=True))
    return Tagged(node.tag, node.value)


Loader.add_constructor(None, tagged)  # type: ignore[type-var]
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class Hyperparams:
    """The entries of a file, references between them followed where they are asked for.

    tree: what the file holds by key. reference: whose it is, for messages.
    """

    def __init__(self, tree: dict[str, Any], reference: str) -> None:
        self.tree, self.reference = tree, reference
        self.known: dict[str, Any] = {}
        self.pending: set[str] = set()

    def error(self, told: str) -> UpstreamError:
        return UpstreamError(f"hyperparams.yaml of '{self.reference}' {printable(told, 400)}")

    def value(self, key: str) -> Any:
        """The value of one entry, None where there is none."""
        return self.followed(self.tree.get(key))

    def section(self, *keys: str) -> dict[str, Any]:
        """The mapping, or the arguments of the object, under nested keys; empty where there is none."""
        node: Any = self.tree
        for key in keys:
            node = self.followed(node.get(key))
            node = node.content if isinstance(node, Tagged) else node
            if not isinstance(node, dict):
                return {}
        return {str(key): self.followed(value) for key, value in node.items()}

    def arguments(self, node: Tagged) -> dict[str, Any]:
        """What a `!new:` passes by name: numbers, texts, lists of them, or other tagged values."""
        if node.content in ("", None):
            return {}
        if not isinstance(node.content, dict):
            raise self.error(f"gives {node.made} its arguments without their names; write them as name: value")
        return {str(name): self.plain(value) for name, value in node.content.items()}

    def plain(self, node: Any) -> Any:
        value = self.followed(node)
        if isinstance(value, str):
            return self.computed(value)
        if isinstance(value, list) and len(value) <= MOST:
            return [self.followed(entry) for entry in value]
        return value

    def followed(self, node: Any) -> Any:
        """What a reference stands for, the object itself where it is one; anything else as it is."""
        if not isinstance(node, Tagged) or node.tag not in UNNAMED:
            return node
        text = str(node.content)
        if text in self.known:
            return self.known[text]
        if text in self.pending or len(self.pending) >= DEEPEST:
            raise self.error(f"refers to '{text}' in a circle; write the value itself there")
        self.pending.add(text)
        whole = NAME.fullmatch(text)
        value = self.entry(whole[1]) if whole else self.computed(self.filled(text))
        self.pending.discard(text)
        return self.known.setdefault(text, value)

    def entry(self, name: str) -> Any:
        """The value of `key`, or of `key[inner]`."""
        node: Any = self.tree
        for key in re.findall(r"[^\[\]]+", name) or [name]:
            node = node.content if isinstance(node, Tagged) else node
            if not isinstance(node, dict) or key not in node:
                raise self.error(f"refers to <{name}>, which it does not have; take the file as it was published")
            node = self.followed(node[key])
        return node

    def filled(self, text: str) -> str:
        """Text with the values of the entries that it names in place of their names."""

        def value(match: re.Match[str]) -> str:
            found = self.entry(match[1])
            if not isinstance(found, (str, int, float)) or len(str(found)) > MOST:
                raise self.error(f"writes <{match[1]}> into a text, and that is neither a number nor a short text")
            return str(found)

        if len(text) > MOST:
            raise self.error(f"has a text of more than {MOST} characters with references in it")
        return NAME.sub(value, text)

    def computed(self, text: str) -> Any:
        """The number or tuple that a text writes as a sum or product; the text where it writes none."""
        if len(text) > MOST or not SUM.fullmatch(text):
            return text
        try:
            value = checkpoints.literal(text)
        except UpstreamError:
            return text
        return list(value) if isinstance(value, tuple) else value


def read(path: Path, reference: str) -> Hyperparams:
    """The content of a hyperparams.yaml; raises UpstreamError where it is broken, or no such file."""
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UpstreamError(f"hyperparams.yaml of '{reference}' has more than {LARGEST} bytes; it is no such file")
    try:
        tree = yaml.load(content, Loader=Loader)
    except Exception as error:  # a stranger's bytes can make it raise anything
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"hyperparams.yaml of '{reference}' is broken ({detail}); download it again") from error
    if not isinstance(tree, dict):
        raise UpstreamError(f"hyperparams.yaml of '{reference}' has no entries; download it again")
    return Hyperparams({str(key): value for key, value in tree.items()}, reference)

"""Reading YAML files, and editing their text so that only the requested bytes change."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from dreambooth_core.errors import SettingsError


def read_yaml(path: Path) -> Any:
    """Load a YAML 1.2 file, in which 5e-6 is a number. Raises SettingsError."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} does not exist in {path.parent}",
            hint="run from the project's folder, or write one with `dreambooth preset use pocket`",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid YAML", got=str(error)) from None


def parse_yaml(text: str) -> Any:
    """Load YAML 1.2 from text."""
    return _yaml().load(text)


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def replace_value(text: str, keys: Sequence[str], value: int) -> str:
    """Replace the number at `keys`, such as ("versions", "cache")."""
    _, node = _find(text, keys)
    return f"{text[: node.start_mark.index]}{value}{text[node.end_mark.index :]}"


def replace_section(text: str, key: str, other: str) -> str:
    """Replace a top-level section by that of another file's text, comments included."""
    start, end = _section(text, key)
    other_start, other_end = _section(other, key)
    section = other[other_start:other_end]
    if end < len(text) and not section.endswith("\n"):
        section += "\n"
    return text[:start] + section + text[end:]


def add_entry(text: str, section: str, name: str, value: dict[str, Any]) -> str:
    """Append an entry to a top-level mapping."""
    return _append(text, section, {name: value})


def add_item(text: str, section: str, item: dict[str, Any]) -> str:
    """Append an item to a top-level list."""
    return _append(text, section, [item])


def _append(text: str, section: str, entry: dict[str, Any] | list[Any]) -> str:
    key, node = _find(text, [section])
    assert isinstance(node, CollectionNode)
    if node.flow_style and node.value:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip()}, {_flow(entry)}{text[end:]}"
    newline = "\r\n" if "\r\n" in text else "\n"
    if node.flow_style:
        block, column = _block(entry), key.start_mark.column + 2
        before, after = text[: node.start_mark.index].rstrip(), text[node.end_mark.index :]
        return before + newline + _indented(block, column, newline) + after
    last = len(text[: _last_leaf(node).end_mark.index].rstrip())  # an empty value ends later
    end = text.find("\n", last)
    before, after = (text, "") if end < 0 else (text[:end].removesuffix("\r"), text[end + 1 :])
    block = _indented(_block(entry), node.start_mark.column, newline)
    return before + newline + block + (newline if end >= 0 else "") + after


def _find(text: str, keys: Sequence[str]) -> tuple[Node, Node]:
    """The nodes of the last key and of its value. Raises SettingsError if a key is missing."""
    key = value = _root(text)
    for name in keys:
        entries: list[tuple[Node, Node]] = value.value if isinstance(value, MappingNode) else []
        found = [(key, value) for key, value in entries if key.value == name]
        if not found:
            raise SettingsError("missing", key=".".join(keys))
        key, value = found[0]
    return key, value


def _root(text: str) -> Node:
    return _yaml().compose(text)


def _section(text: str, key: str) -> tuple[int, int]:
    """Where a top-level section starts, and where the next one does."""
    start = _find(text, [key])[0].start_mark.index
    starts: list[int] = [key.start_mark.index for key, _ in _root(text).value]
    return start, min((at for at in starts if at > start), default=len(text))


def _last_leaf(node: Node) -> Node:
    """The last scalar or flow collection of a block: its end mark is exact."""
    while isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, MappingNode) else last
    return node


def _block(value: Any) -> str:
    text = io.StringIO()
    _yaml().dump(value, text)
    return text.getvalue().rstrip("\n")


def _flow(value: Any) -> str:
    yaml = _yaml()
    yaml.default_flow_style = True
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue().strip()[1:-1]


def _indented(block: str, column: int, newline: str) -> str:
    return textwrap.indent(block, " " * column).replace("\n", newline)


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096
    yaml.allow_unicode = True
    return yaml

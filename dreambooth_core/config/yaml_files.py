"""Reading YAML files, and editing them without changing any other byte."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dreambooth_core.errors import SettingsError

_MAX_VALUES = 100_000

_Node = Any
"""A node of ruamel's tree, which is untyped: `id`, `value`, `start_mark`, `end_mark`."""


def read_yaml(path: Path) -> Any:
    """Load a YAML 1.2 file, where 5e-6 is a number. Raises SettingsError."""
    return parse_yaml(read_text(path), name=path.name)


def read_text(path: Path) -> str:
    """The text of a file, with its line ends. Raises SettingsError."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} does not exist in {path.parent}",
            hint="run from the project's folder, or make a new one: `dreambooth init FOLDER`",
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read", got=error.strerror) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name} is not UTF-8 text", got=str(error)) from None


def parse_yaml(text: str, *, name: str = "the text") -> Any:
    """Load YAML 1.2 from text. Raises SettingsError that calls the text by its name."""
    try:
        value = _yaml().load(text)
        if _num_values(value, {}) > _MAX_VALUES:
            raise ValueError(f"its aliases expand to more than {_MAX_VALUES:,} values")
        return value
    except (YAMLError, ValueError, KeyError) as error:  # a date such as 2024-13-45 is a ValueError
        raise SettingsError(f"{name} is not valid YAML", got=str(error)) from None
    except RecursionError:
        raise SettingsError(f"{name} is not valid YAML", got="too many nested values") from None


def _num_values(value: Any, known: dict[int, int]) -> int:
    """Count the values in a tree with each alias expanded. Raises ValueError if it has a loop.

    Ten lines can stand for a billion values, and an error message would spell them all out.
    """
    parts = _parts(value)
    if not parts:
        return 1
    key = id(value)
    if key not in known:
        known[key] = 0  # not counted yet
        known[key] = 1 + sum(_num_values(part, known) for part in parts)
    if known[key] == 0:
        raise ValueError("an alias stands inside the value that it stands for")
    return known[key]


def _parts(value: Any) -> list[Any]:
    """The keys and values of a mapping, the items of a list; none of another value."""
    if isinstance(value, dict):
        pairs = mapping(value)
        return [*pairs, *pairs.values()]
    return cast("list[Any]", value) if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping unchanged, and an empty one for any other value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def replace_value(text: str, keys: Sequence[str], value: int) -> str:
    """Replace the number at `keys`, such as ("versions", "cache")."""
    _, node = _find(text, keys)
    return f"{text[: node.start_mark.index]}{value}{text[node.end_mark.index :]}"


def value_text(text: str, keys: Sequence[str]) -> str:
    """The text of the value at `keys`, as it stands in the file."""
    _, node = _find(text, keys)
    return text[node.start_mark.index : _end_of(node)]


def replace_text(text: str, keys: Sequence[str], value: str) -> str:
    """Replace the text of the value at `keys`; the inverse takes what `value_text` gave."""
    key, node = _find(text, keys)
    if node.start_mark.index == node.end_mark.index:  # nothing behind the colon
        colon = text.index(":", key.end_mark.index) + 1
        return f"{text[:colon]} {value}{text[colon:]}"
    return text[: node.start_mark.index] + value + text[_end_of(node) :]


def set_value(text: str, keys: Sequence[str], value: Any) -> str:
    """Set the value at `keys`, on one line; a missing last key is appended to its block.

    Raises SettingsError if there is no such block.
    """
    *parents, last = keys
    _, block = _find(text, parents)
    if block.id != "mapping":
        raise SettingsError("missing", key=".".join(keys))
    if not any(key.value == last for key, _ in block.value):
        text = _append(text, parents, {last: None})
    return replace_text(_without_block(text, keys), keys, _scalar(value))


def set_section(text: str, keys: Sequence[str], values: dict[str, Any]) -> str:
    """Set a section that may be null to a block of values. Raises SettingsError like set_value."""
    text = set_value(text, keys, {})
    for name, value in values.items():
        text = set_value(text, [*keys, name], value)
    return text


def _without_block(text: str, keys: Sequence[str]) -> str:
    """The text with null behind the key, in place of the lines of a block."""
    key, node = _find(text, keys)
    if node.id == "scalar" or node.flow_style:
        return text
    colon = text.index(":", key.end_mark.index) + 1
    line, last = text.index("\n", colon), text.find("\n", _end_of(node))
    return f"{text[:colon]} null{text[colon:line]}{text[last:] if last >= 0 else ''}"


def rename_key(text: str, keys: Sequence[str], name: str) -> str:
    """Give the last key another name, with its value and comments in place."""
    key, _ = _find(text, keys)
    return text[: key.start_mark.index] + _scalar(name) + text[key.end_mark.index :]


def flow_text(value: dict[str, Any]) -> str:
    """A mapping on one line, such as {train: {max_train_steps: 100}}."""
    return f"{{{_flow(value)}}}"


def replace_section(text: str, key: str, other: str) -> str:
    """Replace a top-level section by that of another text, with its comments."""
    start, end = _section(text, key)
    other_start, other_end = _section(other, key)
    section = other[other_start:other_end]
    if end < len(text) and not section.endswith("\n"):
        section += "\n"
    return text[:start] + section + text[end:]


def add_entry(text: str, section: str, name: str, value: dict[str, Any]) -> str:
    """Append an entry to a top-level mapping."""
    return _append(text, [section], {name: value})


def add_item(text: str, section: str, item: dict[str, Any]) -> str:
    """Append an item to a top-level list."""
    return _append(text, [section], [item])


def with_comments(text: str, comment_of: Callable[[str], str | None]) -> str:
    """Put a comment behind each key of a block that `comment_of` knows, by its dotted key.

    It replaces the comment there. Comments on lines of their own stay.
    """
    lines = text.splitlines(keepends=True)
    for key, line, column in _key_ends(_root(text), ""):
        comment = comment_of(key)
        if comment is not None:
            code, end = lines[line][:column], lines[line].rstrip("\r\n")
            lines[line] = f"{code}  # {comment}{lines[line][len(end) :]}"
    return "".join(lines)


def _key_ends(node: _Node, prefix: str) -> Iterator[tuple[str, int, int]]:
    """The dotted key of every setting in a block, and where its code ends: line and column."""
    entries: list[tuple[_Node, _Node]] = node.value
    for key, value in entries:
        is_block = value.id == "mapping" and not value.flow_style
        mark = key.end_mark if is_block else value.end_mark
        yield f"{prefix}{key.value}", mark.line, mark.column + is_block  # the colon
        if is_block:
            yield from _key_ends(value, f"{prefix}{key.value}.")


def remove_entry(text: str, section: str, name: str) -> str:
    """Remove an entry of a top-level mapping. Raises SettingsError if there is none."""
    _find(text, [section, name])
    names = [key.value for key, _ in _find(text, [section])[1].value]
    return _remove(text, section, names.index(name))


def remove_item(text: str, section: str, item: dict[str, Any]) -> str:
    """Remove an item of a top-level list; the text as it is if the list has no such item."""
    items: list[Any] = parse_yaml(text).get(section) or []
    if item not in items:
        return text
    return _remove(text, section, items.index(item))


def _remove(text: str, section: str, index: int) -> str:
    """Remove one entry of a mapping or a list; an emptied one becomes `{}` or `[]`."""
    header, node = _find(text, [section])
    is_mapping = node.id == "mapping"
    spans = [(entry if is_mapping else (entry, entry)) for entry in node.value]
    starts: list[int] = [key.start_mark.index for key, _ in spans]
    ends = [_end_after(key, value) for key, value in spans]
    if node.flow_style and index == 0:
        return text[: starts[0]] + text[(*starts[1:], ends[0])[0] :]
    if node.flow_style:
        return text[: ends[index - 1]] + text[ends[index] :]
    start, after = text.rfind("\n", 0, starts[index]) + 1, text.find("\n", ends[index])
    rest = text[:start] + ("" if after < 0 else text[after + 1 :])
    if len(spans) > 1:
        return rest
    colon = text.index(":", header.end_mark.index) + 1
    return f"{rest[:colon]} {'{}' if is_mapping else '[]'}{rest[colon:]}"


def _end_after(key: _Node, value: _Node) -> int:
    is_empty = value.start_mark.index == value.end_mark.index
    return key.end_mark.index if is_empty else _end_of(value)


def _append(text: str, keys: Sequence[str], entry: dict[str, Any] | list[Any]) -> str:
    key, node = _find(text, keys)
    newline = "\r\n" if "\r\n" in text else "\n"
    if node.flow_style and node.value:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip()}, {_flow(entry)}{text[end:]}"
    if node.flow_style:  # {} or []: insert the entry below this line
        text = text[: node.start_mark.index].rstrip() + text[node.end_mark.index :]
        last, column = key.end_mark.index, key.start_mark.column + 2
    else:
        last, column = _end_of(node), node.start_mark.column
    end = text.find("\n", last)
    end = len(text) if end < 0 else end + 1
    before = text[:end] if text[:end].endswith("\n") else text[:end] + newline
    block = textwrap.indent(_block(entry), " " * column).replace("\n", newline)
    return before + block + text[end:]


def _find(text: str, keys: Sequence[str]) -> tuple[_Node, _Node]:
    """The nodes of the last key and of its value. Raises SettingsError if a key is missing."""
    key: _Node = None
    value: _Node = _root(text)
    for name in keys:
        entries: list[tuple[_Node, _Node]] = value.value if value.id == "mapping" else []
        position = next((i for i, entry in enumerate(entries) if entry[0].value == name), None)
        if position is None:
            raise SettingsError("missing", key=".".join(keys))
        key, value = entries[position]
    return key, value


def _root(text: str) -> _Node:
    return _yaml().compose(text)


def _section(text: str, key: str) -> tuple[int, int]:
    """The start of a top-level section, and the start of the next one."""
    start: int = _find(text, [key])[0].start_mark.index
    starts: list[int] = [key.start_mark.index for key, _ in _root(text).value]
    return start, min((at for at in starts if at > start), default=len(text))


def _end_of(node: _Node) -> int:
    """The end of the last scalar or flow collection of a block.

    The end mark of a block comes after the comments below it, and so does that of an empty value.
    """
    key: _Node = node
    while node.id != "scalar" and not node.flow_style and node.value:
        last = node.value[-1]
        key, node = last if node.id == "mapping" else (last, last)
    is_empty = node.start_mark.index == node.end_mark.index
    return key.end_mark.index if is_empty else node.end_mark.index


def _block(value: Any) -> str:
    text = io.StringIO()
    _yaml().dump(value, text)
    return text.getvalue()


def _flow(value: Any) -> str:
    yaml, text = _yaml(), io.StringIO()
    yaml.default_flow_style = True
    yaml.representer.add_representer(_Quoted, _Quoted.represent)
    yaml.dump(_quoted(value), text)
    return text.getvalue().strip()[1:-1]


def _scalar(value: Any) -> str:
    """A value on one line, in quotes if it needs them."""
    return _flow({"x": value}).removeprefix("x:").strip()


class _Quoted(str):
    """A text that is written in quotes."""

    __slots__ = ()

    @staticmethod
    def represent(representer: Any, text: _Quoted) -> Any:
        """The node of the text."""
        return representer.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')


def _quoted(value: Any) -> Any:
    """The value with quotes around texts with a colon, as in models:/NAME@champion.

    DVC's parser refuses a plain one between braces.
    """
    if isinstance(value, dict):
        return {key: _quoted(inner) for key, inner in mapping(value).items()}
    if isinstance(value, list):
        return [_quoted(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    return _Quoted(value) if isinstance(value, str) and ":" in value else value


def _yaml() -> Any:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096
    yaml.allow_unicode = True
    return yaml

"""A YAML file written by a person, read so that nothing in it can hang or fill the machine.

What is not plain keys and values of a sensible size is refused in a line: text without end, nesting
without bottom (an alias may refer to itself), aliases that multiply, merge keys (which
multiply within the parser), numbers of thousands of digits, a key given twice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from mechanisms.errors import BadInput

MOST_TEXT = 2**17
"""Characters. The largest bundled scenario has two thousand."""
DEEPEST = 32
MOST_ENTRIES = 20_000
LARGEST = 2**63 - 1
RESOLVED = 16
"""How many times longer and fuller a scenario may be with every default written out."""
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
)
"""As people write them: to YAML 1.1, and so to PyYAML, 1e-1 and -.2 are text."""
_SECOND = "expected a single document in the stream"  # the parser's words
_PARSING = (
    *(yaml.YAMLError, RecursionError),
    # what the parser's own conversions raise: dates, numbers and tags that are none
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)


def read_yaml(path: Path, *, resolved: bool = False) -> dict[Any, Any]:
    """Keys and values of a YAML file; none where it is empty.

    Args:
        path: of the file.
        resolved: it is a scenario as a run wrote it, with its defaults.

    Raises:
        BadInput: one line that names the file and, where the parser knows it, the line.
    """
    times = RESOLVED if resolved else 1
    try:
        given = yaml.load(_text(path, times * MOST_TEXT), _Loader)  # a SafeLoader
        _check(given, DEEPEST, [times * MOST_ENTRIES])
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give a file") from None
    except (UnicodeDecodeError, ReaderError):
        raise BadInput(f"{path}: holds what is no text; save it as plain text in UTF-8") from None
    except _PARSING as error:
        if getattr(error, "context", None) == _SECOND:
            raise BadInput(f"{path}: holds a second document, after ---; give one") from None
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{line}: not valid YAML; check indentation and quotes") from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        what = {str: "text", list: "a list"}.get(type(given), "a single value")
        raise BadInput(f"{path}: holds {what}; give keys and values")
    return given


def as_yaml(given: dict[str, Any]) -> str:
    """Plain data as a YAML file that `read_yaml` reads back as it is."""
    return yaml.dump(given, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice: the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise BadInput(f"line {line}: a merge key (<<) is not read; write its keys out")
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise BadInput(f"line {line}: key {key.value!r:.60} is given twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_timestamp(self, node: yaml.Node) -> Any:
        line = node.start_mark.line + 1
        raise BadInput(f"line {line}: {node.value!r:.60} is read as a date; put text in quotes")


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)
for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _text(path: Path, most: int) -> str:
    with path.open(encoding="utf-8") as file:
        text = file.read(most + 1)  # of a device there may be no end
    if len(text) > most:
        raise BadInput(f"holds more than {most} characters; give a scenario")
    return text


def _check(given: Any, depth: int, left: list[int]) -> None:
    """Refuse what is nested too deep or holds too much, aliases counted wherever they stand."""
    left[0] -= 1
    if depth == 0:
        raise BadInput(f"is nested more than {DEEPEST} deep; an alias may refer to itself")
    if left[0] < 0:
        raise BadInput("holds too many entries, aliases included; give fewer")
    if isinstance(given, int) and abs(given) > LARGEST:
        raise BadInput(f"holds a whole number beyond {LARGEST}; give a smaller one")
    parts = given if isinstance(given, list | tuple | set) else ()
    for part in (*given.keys(), *given.values()) if isinstance(given, dict) else parts:
        _check(part, depth - 1, left)

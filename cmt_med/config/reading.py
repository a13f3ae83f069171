"""Experiments as plain YAML, without any code in it.

Unknown, duplicate or ill-typed keys are errors that name the key, its line and the nearest right spelling.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import INFERENCE_NAMES, Detection, Experiment, Inference, Instances, Section

MAX_CONFIG_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and aliases, and reads ``1e-3`` as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 leaves out floats without a dot or a signed exponent, reads 1:30 as 90 and yes/no/on/off as booleans; YAML 1.2's
# core schema, which people expect, does not.
_CORE = {
    "tag:yaml.org,2002:float": (
        re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$", re.I),
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?\d+$"), "-+0123456789"),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|false)$", re.I), "tTfF"),
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|)$", re.I), ["~", "n", "N", ""]),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda loader, node: int(node.value),  # 012 is twelve, not octal ten
)

_Section = TypeVar("_Section", Inference, Instances, Detection)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read and check an experiment.

    Args:
        path: the YAML file.
        overrides: ``a.b=value`` items, values in YAML, which replace or add keys.

    Raises:
        ConfigError: naming key, line and the nearest right spelling.
    """
    text = _read(path)
    tree, lines = _parse(text, str(path))
    for item in overrides:
        _override(tree, lines, item)
    experiment = _validate(tree, lines, str(path))
    if lines.get(("data", "manifest"), "").startswith("--set "):  # as all paths on the command line
        return experiment
    found = _listed_beside(experiment.data.manifest, path)
    return experiment.model_copy(update={"data": experiment.data.model_copy(update={"manifest": found})})


def _listed_beside(manifest: str, config: Path) -> str:
    """The case list that a config names: in the current folder, or else in the config's own, which may have been moved with it.

    Raises:
        ConfigError: if there is one in each of them.
    """
    here, beside = Path(manifest), config.absolute().parent / manifest
    if here.is_absolute() or not beside.exists() or (here.exists() and here.samefile(beside)):
        return manifest
    if here.exists():
        raise ConfigError(
            "the config names two case lists", where=f"data.manifest: {manifest}",
            why=f"one lies in the current folder, {here.absolute()}, and another beside the config, {beside}",
            fix="say which is meant: --set data.manifest=PATH, or run from another folder",
        )  # fmt: skip
    return str(beside)


def changed_inference(settings: Inference, overrides: Iterable[str]) -> Inference:
    """A model's settings with ``KEY=VALUE`` items, values in YAML, such as ``min_region_mm3.ET=100`` or ``thresholds={}``.

    Raises:
        ConfigError: naming the key.
    """
    items = [f"inference.{item.removeprefix('inference.')}" for item in overrides]
    return _changed("inference", settings, items, example="min_region_mm3.ET=100")


def changed_instances(settings: Instances, overrides: Iterable[str]) -> Instances:
    """A model's section ``instances`` with items such as ``instances.min_object_mm3=20``.

    Raises:
        ConfigError: naming the key.
    """
    return _changed("instances", settings, overrides, example="instances.min_object_mm3=20")


def changed_detection(settings: Detection, overrides: Iterable[str]) -> Detection:
    """A model's section ``detection`` with items such as ``detection.min_score=0.3``.

    Raises:
        ConfigError: naming the key.
    """
    return _changed("detection", settings, overrides, example="detection.min_score=0.3")


def _changed(name: str, settings: _Section, items: Iterable[str], *, example: str) -> _Section:
    """A section of a config with ``NAME.KEY=VALUE`` items."""
    tree: dict[str, Any] = {name: settings.model_dump()}
    lines: dict[tuple[str, ...], str] = {}
    for item in items:
        _override(tree, lines, item, example=example)
    try:
        return type(settings).model_validate(tree[name])
    except ValidationError as error:
        raise _explained(error, lines, "--set", (name,)) from error


def dump_config(experiment: Experiment) -> str:
    """The resolved experiment as YAML."""
    return yaml.safe_dump(experiment.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def changed_settings(path: Path, experiment: Experiment) -> list[str]:
    """The keys in which an experiment differs from one that :func:`dump_config` wrote; none if that cannot be read."""
    try:
        before = load_config(path).model_dump()
    except ConfigError:
        return []
    flat = [dict(_leaves(content)) for content in (before, experiment.model_dump())]
    return [key for key in sorted(flat[0].keys() | flat[1].keys()) if flat[0].get(key) != flat[1].get(key)]


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(
                "the config is too large", where=str(path), why=f"{size} bytes, at most {MAX_CONFIG_BYTES} are read"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the config cannot be read", where=str(path), why=error.strerror or str(error), fix="check --config"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the config is not UTF-8 text", where=str(path), why="names could be misread", fix="save it as UTF-8"
        ) from error


def _parse(text: str, source: str) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            "the config is not valid YAML",
            where=f"{source}, line {mark.line + 1}" if mark else source,
            why=str(getattr(error, "problem", None) or error),
            fix="correct that line",
        ) from error
    except (RecursionError, ValueError) as error:
        raise ConfigError("the config is not valid YAML", where=source, why=str(error)) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            "the config is not a mapping",
            where=source,
            why="settings are KEY: VALUE lines, in sections",
            fix="start from a file in configs/",
        )
    lines: dict[tuple[str, ...], str] = {}
    _collect_lines(node, (), source, lines)
    return tree, lines


def _collect_lines(node: Any, path: tuple[str, ...], source: str, lines: dict[tuple[str, ...], str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = f"{source}, line {key.start_mark.line + 1}"
            _collect_lines(value, here, source, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = f"{source}, line {value.start_mark.line + 1}"
            _collect_lines(value, here, source, lines)


def _override(
    tree: dict[str, Any], lines: dict[tuple[str, ...], str], item: str, *, example: str = "optimizer.lr=3e-4"
) -> None:
    key, separator, text = item.partition("=")
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise ConfigError(
            "--set needs key=value",
            where=repr(item),
            why="it says neither which key nor what it becomes",
            fix=f"write for example --set {example}",
        )
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ConfigError("--set has a value that is not YAML", where=repr(item), why=why) from error
    target: Any = tree
    for part in path[:-1]:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
            continue
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
        target = target[part] if isinstance(target, dict) else None
        if not isinstance(target, dict | list):
            raise ConfigError("--set goes below a value", where=repr(item), why=f"{part} has no keys")
    if isinstance(target, list):
        if not (path[-1].isdigit() and int(path[-1]) < len(target)):
            raise ConfigError(
                "--set names no item of a list",
                where=repr(item),
                why="its items go by number",
                fix=f"use 0 to {len(target) - 1}",
            )
        target[int(path[-1])] = value
    else:
        target[path[-1]] = value
    lines[path] = f"--set {item}"


RENAMED = {("inference", old): f"inference.{new}" for old, new in INFERENCE_NAMES.items()}
"""Older keys -> their present names."""


def _validate(tree: dict[str, Any], lines: dict[tuple[str, ...], str], source: str) -> Experiment:
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, lines, source) from error


def _explained(
    error: ValidationError, lines: dict[tuple[str, ...], str], source: str, within: tuple[str, ...] = ()
) -> ConfigError:
    """The first fault by key and line, with the nearest right spelling; keys lie ``within`` a section of the file."""
    first = error.errors()[0]
    # pydantic names the branches of a union, which are no keys of ours
    path = (*within, *(str(part) for part in first["loc"] if not str(part).startswith(("list[", "literal["))))
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), source)
    key = ".".join(path) or "the whole config"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden" and path in RENAMED:
        return ConfigError(
            f"the key {key} has another name now{more}", where=line, why="a name says what a number is, and in which unit",
            fix=f"write {RENAMED[path]}; it means the same",
        )  # fmt: skip
    if first["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1, 0.6)
        elsewhere = [".".join(p) for p in _all_keys() if p[-1] == path[-1] and not within]
        hint = (
            ".".join((*path[:-1], near[0]))
            if near
            else (f"{elsewhere[0]}, which is where it belongs" if elsewhere else "")
        )
        return ConfigError(
            f"unknown key {key}{more}",
            where=line,
            why="a key that nothing reads is usually a slip of the pen",
            fix=f"did you mean {hint}?" if hint else f"known keys here: {', '.join(known)}",
        )
    return ConfigError(
        f"wrong value for {key}{more}" if first["type"] != "missing" else f"missing key {key}{more}",
        where=line,
        why=first["msg"].removeprefix("Value error, "),
        fix=_advice(first, path, source),
    )


def _advice(first: ErrorDetails, path: tuple[str, ...], source: str) -> str:
    if first["type"] == "missing":
        if source.endswith(".json"):
            return "give the config (.yaml); this is named like a case list"
        return f"write {'.'.join(path)}: VALUE; files in configs/ are examples"
    if first["type"] == "value_error":
        return "change one of the keys that it names"
    return f"change {str(first['input'])[:100]!r}, which it was given"


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)


def _keys_at(path: tuple[str, ...]) -> list[str]:
    section: type[Section] | None = Experiment
    for part in path:
        if section is not None and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields) if section is not None else []


def _all_keys(section: type[Section] = Experiment, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        keys.append((*prefix, name))
        below = _section_of(field.annotation)
        if below is not None:
            keys.extend(_all_keys(below, (*prefix, name)))
    return keys

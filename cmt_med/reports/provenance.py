"""The provenance of a report: what was run, by which version and when, on which references, and what folds have in common."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cmt_med
from cmt_med.base.files import sha256


def describe_evaluation(options: Mapping[str, Any], references: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """The facts of one evaluation, with paths as they were given.

    Args:
        options: of the command, by name; a list is an option given several times, None one that was not given.
        references: a case list, or a folder.
        files: the label maps among them, by case.
    """
    parts = ["cmt-med", "evaluate"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            parts += [f"--{name.replace('_', '-')}", str(one)]
    return {
        "cmt_med": cmt_med.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(parts),
        "references": str(references),
        "references_sha256": sha256(references) if references.is_file() else sum_of_files(files),
    }


def sum_of_files(files: Mapping[str, Path]) -> str:
    """One SHA-256 for the names and contents of files, whatever their order."""
    sums = {path: sha256(path) if path.is_file() else "absent" for path in {*files.values()}}  # many may share one
    lines = [f"{sums[path]}  {name}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def shared_and_own(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Sections of several parts (folds) as one set: under a section's name what all parts say alike, then what is their own.

    Args:
        parts: part -> section -> name -> value.
    """
    found: dict[str, dict[str, Any]] = {}
    for section in dict.fromkeys(name for sections in parts.values() for name in sections):
        contents = {part: sections.get(section, {}) for part, sections in parts.items()}
        first = next(iter(contents.values()))
        alike = {k: v for k, v in first.items() if all(k in c and c[k] == v for c in contents.values())}
        own = {f"{section}, {part}": {k: v for k, v in c.items() if k not in alike} for part, c in contents.items()}
        found |= {name: content for name, content in ({section: alike} | own).items() if content}
    return found

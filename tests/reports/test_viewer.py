"""The bundled script and what it carries."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from tests.browser import require_browser

PACKAGES = json.loads((Path(__file__).parents[2] / "viewer/package-lock.json").read_text())["packages"]


def test_the_bundle_carries_the_licences_of_what_is_in_it() -> None:
    require_browser()
    assets = files("cmt_med.reports") / "assets"
    script, notices = ((assets / name).read_text(encoding="utf-8") for name in ("viewer.js", "LICENSES.txt"))
    assert script.startswith(f"/*!\n{notices}*/\n")
    sections = {part.split(" ")[0]: part for part in notices.split(f"\n{'-' * 78}\n\n")[1:]}
    assert {"@niivue/niivue", "fflate", "gl-matrix", "nifti-reader-js", "zarrita"} <= set(sections)
    for name, text in sections.items():
        assert text.startswith(f"{name} {PACKAGES[f'node_modules/{name}']['version']} (")
        assert "copyright" in text.lower(), name
        assert '"as is"' in " ".join(text.lower().split()), name

"""Data made safe inside a page: JSON for scripts, and what a policy calls an inline part."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def json_for_page(value: Any) -> str:
    """JSON for a ``script`` element: no ``<``, so that no text in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy_hash(content: str) -> str:
    """The name in a content-security-policy of one inline script or style: ``'sha256-...'``."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

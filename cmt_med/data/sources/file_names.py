"""The case and the role of a volume by the names of its file and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cmt_med.data.conventions.names import (
    LABEL_WORDS,
    MASK_WORDS,
    SEQUENCES,
    canonical_channel,
    case_and_word,
    place_of,
)
from cmt_med.data.volumes.endings import volume_stem

IMAGE, LABEL, MASK, BRAIN_MASK = "image", "label", "mask", "brainmask"
MODALITIES = ("ct", "mri", "pet")
"""Words that name a channel beside the MR sequences."""
_IMAGE_WORDS = ("image", "img", "volume", "vol")
_ROLE_FOLDER = re.compile(r"(image|label|mask|segmentation|annotation)s?(?:tr|ts|val)?\Z")

_DERIVED = re.compile(r"_(?:space|label|desc|res|den|seg|atlas)-[A-Za-z0-9]+")
"""What BIDS puts into the names of label maps beside those of their image."""

Key = tuple[tuple[str, ...], str]
"""What the files of a case share: the folders between it and the root, but for those of images or labels; and its name."""


def name_of(file: Path, root: Path, channels: Sequence[str] | None) -> tuple[Key, str]:
    """Case and role of a file: a channel, or a constant above (``IMAGE`` where it names no channel)."""
    stem = volume_stem(file)
    place = place_of(file, stem)
    several = channels if channels is not None and len(channels) > 1 else ()
    name, word = case_and_word(stem, place.resolve().name, {*SEQUENCES, *LABEL_WORDS, *MASK_WORDS, *several})
    within = place.relative_to(root).parts if place.is_relative_to(root) else ()
    above = _ROLE_FOLDER.match(root.resolve().name.lower())
    # A network is given what the user points at, and be it a folder called "masks".
    own = (root.resolve().name,) if channels is None or (above and above[1] == IMAGE) else ()
    folder = next(filter(None, (_ROLE_FOLDER.match(part.lower()) for part in reversed((*own, *within)))), None)
    parts = re.match(r"(.+)[_.-]([A-Za-z0-9]+)\Z", stem, re.DOTALL)
    if not word:
        last = parts[2].lower() if parts else ""
        if stem.lower() in (*_IMAGE_WORDS, *MODALITIES) and not folder:
            name, word = place.resolve().name, "" if stem.lower() in _IMAGE_WORDS else stem
        elif parts and (last in _IMAGE_WORDS or last in MODALITIES or last in (channels or ())):
            name, word = parts[1], "" if last in _IMAGE_WORDS and last not in (channels or ()) else last
        elif parts and folder and folder[1] == IMAGE and re.fullmatch(r"\d{4}", last):
            name, word = parts[1], last
        elif folder and folder[1] != IMAGE:
            word = MASK if folder[1] == MASK else LABEL
    role = _role(word, channels)
    if role in (LABEL, MASK) and name.startswith("sub-"):
        name = _DERIVED.sub("", name)
    return (_without_roles(within), name), role


def _role(word: str, channels: Sequence[str] | None) -> str:
    role = canonical_channel(word) if word else IMAGE
    if role in (channels or SEQUENCES) or role == BRAIN_MASK:
        return role
    return LABEL if role in LABEL_WORDS else MASK if role in MASK_WORDS else role


def _without_roles(folders: Sequence[str]) -> tuple[str, ...]:
    """The folders without those that part images from label maps: ``images``, ``labelsTr``, ``derivatives/NAME``."""
    kept: list[str] = []
    parts = iter(folders)
    for part in parts:
        if part.lower() == "derivatives":
            next(parts, None)
        elif not _ROLE_FOLDER.match(part.lower()):
            kept.append(part)
    return tuple(kept)


def role_for_network(role: str, channels: Sequence[str]) -> str | None:
    """Return the role of a file where a network needs ``channels``; None for what it has no use for."""
    if role in (*channels, BRAIN_MASK):
        return role
    # Beside images that name no sequence, "mask" may well be the label map.
    if role == MASK:
        return MASK if set(channels) <= set(SEQUENCES) else None
    if role == LABEL or len(channels) > 1 or role in SEQUENCES:
        return None  # another sequence is never taken for the network's
    if role in MODALITIES and channels[0] in (*MODALITIES, *SEQUENCES):
        return None
    return channels[0] if not role.isdigit() or int(role) == 0 else None


def patient_of_name(name: str) -> str:
    """The patient of a case: of BIDS the subject, whatever the session and the run; else the case itself."""
    subject = re.match(r"sub-[A-Za-z0-9]+(?=_)", name)
    return subject[0] if subject else name

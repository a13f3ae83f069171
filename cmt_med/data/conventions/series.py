"""The channel of a DICOM series by its modality, description and timing.

Source: DICOM PS3.3, C.7.3.1 (General Series), C.8.3.1 (MR Image): Repetition Time, Echo Time and Inversion Time in ms.
"""

from __future__ import annotations

import re

MODALITY = {"CT": "ct", "PT": "pet", "MR": "mri"}
_POST = {"post", "gd", "gad", "gado", "ce", "contrast", "km", "c", "t1c", "t1ce", "t1gd", "t1post"}
_PRE = {"pre", "native", "without", "wo", "t1pre", "t1n"}
_T1 = re.compile(r"t1|mprage|spgr|bravo|vibe")


def channel_of_series(
    modality: str, description: str, protocol: str = "", *, contrast: bool = False, inverted: bool = False, echo: float = 0.0,
    repetition: float = 0.0, inversion: float = 0.0,
) -> str:  # fmt: skip
    """Return the channel's usual name (``"t1ce"``, ``"flair"``, ``"ct"``, ``"adc"``), or the description as one word.

    Args:
        modality: ``"MR"``, ``"CT"``, ``"PT"``, ...
        description: of the series; what it says goes before the protocol and the timing.
        protocol: its name.
        contrast: whether a contrast agent is named.
        inverted: whether the sequence begins with an inversion.
        echo, repetition, inversion: times in ms, 0 if unknown.
    """
    if modality != "MR":
        return MODALITY.get(modality, modality.lower() or "image")
    for text in (description, protocol):
        found = _by_words(text.lower(), contrast=contrast)
        if found:
            return found
    if inverted and inversion > 1500 and echo > 60:
        return "flair"
    if 0 < repetition < 1200 and 0 < echo < 30:
        return "t1ce" if contrast else "t1"
    if repetition > 2000 and echo > 70:
        return "t2"
    return re.sub(r"[^a-z0-9]+", "_", description.lower()).strip("_")[:40] or "mri"


def _by_words(text: str, *, contrast: bool) -> str:
    words = set(re.findall(r"[a-z0-9+]+", text))
    if "adc" in words or "apparent" in text:
        return "adc"
    if "swi" in words or "t2*" in text or "t2star" in text:
        return "swi" if "swi" in words else "t2star"
    if words & {"dwi", "diff", "diffusion", "trace", "tracew"} or "diff" in text:
        return "dwi"
    if _T1.search(text):  # also T1 FLAIR
        after = contrast or bool(words & _POST) or "+c" in text.replace(" ", "") or "post" in text
        return "t1ce" if after and not words & _PRE and "pre" not in text else "t1"
    if "flair" in text or "dark" in words or "t2f" in words:
        return "flair"
    return "t2" if "t2" in text else ""

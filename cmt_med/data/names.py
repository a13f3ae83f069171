"""Channels and labels by name: one spelling for what data sets call differently.

Facts: BraTS 2018-2021 t1, t1ce, t2, flair; BraTS 2023-24 t1n, t1c, t2w, t2f; MSD Task01 FLAIR, T1w, t1gd, T2w.
"""

from __future__ import annotations

import re

_CHANNELS = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "fla"),
}
SEQUENCES = tuple(_CHANNELS)
LABEL_WORDS = ("seg", "dseg", "gt", "gtv", "label", "labels", "otmulticlass", "segmentation")
"""What label maps are called in file names."""
MASK_WORDS = ("mask", "brainmask")
_LABELS = {
    "background": ("background", "bg"),
    "NCR": ("ncr", "ncrnet", "netc", "necrosis", "nonenhancingtumor", "nonenhancingtumour", "necrotictumorcore"),
    "NET": ("net",),
    "ED": ("ed", "edema", "oedema", "snfh", "peritumoraledema"),
    "ET": ("et", "enhancingtumor", "enhancingtumour", "enhancing"),
    "RC": ("rc", "resectioncavity", "cavity"),
    "GTV": ("gtv", "grosstumorvolume", "grosstumourvolume"),
}
_CHANNEL_OF = {alias: name for name, aliases in _CHANNELS.items() for alias in aliases}
_LABEL_OF = {alias: name for name, aliases in _LABELS.items() for alias in aliases}
TUMOUR_LABELS = tuple(name for name in _LABELS if name != "background")


def canonical_channel(name: str) -> str:
    """The usual name of an MR sequence (``"T1Gd"`` -> ``"t1ce"``); other names in lower case."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return _CHANNEL_OF.get(key, name.lower())


def canonical_label(name: str) -> str:
    """The usual name of a tumour part (``"edema"`` -> ``"ED"``); other names in lower case."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return _LABEL_OF.get(key, name.lower())

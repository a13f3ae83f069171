"""Settings of label maps, which other tasks refuse."""

from __future__ import annotations

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Inference

USUAL = Inference()
OF_LABEL_MAPS = ("threshold", "thresholds", "min_region_mm3", "min_component_mm3", "confident", "choose")


def refuse_label_settings(settings: Inference, why: str, instead: str) -> None:
    """Raise for a setting of label maps that is not as usual.

    Args:
        settings: the section ``inference``.
        why: for the message.
        instead: keys to look at.

    Raises:
        ConfigError: naming the key.
    """
    for key in OF_LABEL_MAPS:
        if getattr(settings, key) != getattr(USUAL, key):
            raise ConfigError(
                "this setting is for label maps",
                where=f"inference.{key}",
                why=why,
                fix=f"leave inference.{key} out; see {instead}",
            )

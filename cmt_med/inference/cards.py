"""Cards made of models' cards: of an ensemble, in another convention's numbers, with other settings."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cmt_med.base.errors import ConfigError
from cmt_med.config.reading import changed_detection, changed_inference, changed_instances
from cmt_med.config.schema import Detection, Inference, Instances
from cmt_med.data.preprocessing.fingerprint import joint_fingerprint
from cmt_med.data.preprocessing.pipeline import takes_zeros
from cmt_med.inference.model import ModelCard, RegionCard

log = logging.getLogger(__name__)


def joint_card(cards: Sequence[ModelCard]) -> ModelCard:
    """The card of an ensemble: what its members share, and the checksum of all weights together.

    Raises:
        ConfigError: if members predict different targets, or number labels differently.
    """
    first = cards[0]
    if len(cards) == 1:
        return first
    for other in cards[1:]:
        if (other.labels, other.regions) != (first.labels, first.regions):
            raise ConfigError(
                "these models do not predict the same",
                where=f"{first.name}, {other.name}",
                why=f"{first.labels} with {sorted(first.targets)} against {other.labels} with {sorted(other.targets)}",
                fix="give --model only for networks that were trained on the same labels and regions",
            )
    objects = first.instances
    if any(card.instances != objects for card in cards):
        log.warning("these models find objects with different settings: the usual ones are used for their average")
        objects = Instances()
    boxes = first.detection
    if any(card.detection != boxes for card in cards):
        log.warning("these models keep boxes by different settings: the usual ones are used for their average")
        boxes = Detection()
    names = dict.fromkeys(card.name for card in cards)
    together = hashlib.sha256("".join(sorted(card.weights_sha256 for card in cards)).encode())
    notices = [str(card.provenance.get("notice") or "") for card in cards]
    provenance = {
        "demo": any(card.provenance.get("demo") for card in cards),
        "notice": next((notice for notice in notices if notice), ""),
        "members": [{"weights_sha256": card.weights_sha256} | card.provenance for card in cards],
    }
    channels = list(dict.fromkeys(name for card in cards for name in card.channels))
    preprocessing = dict(first.preprocessing)
    if not all(takes_zeros(card.preprocessing) for card in cards):  # all of them see every case
        preprocessing.pop("missing", None)
    settings = first.inference
    if any(_postprocessing_of(card.inference) != _postprocessing_of(settings) for card in cards):
        # Chosen for one network's probabilities, it need not fit those of several; and their order must not matter.
        log.warning("these models have different thresholds or post-processing: none of it is used for their average")
        settings = settings.model_copy(update=_postprocessing_of(Inference()))
    return first.model_copy(
        update={
            "name": " + ".join(names),
            "weights_sha256": together.hexdigest(),
            "channels": channels,
            "preprocessing": preprocessing,
            "training_data": joint_fingerprint([card.training_data for card in cards]),
            "trained_on": sorted({content for card in cards for content in card.trained_on}),
            "inference": settings,
            "instances": objects,
            "detection": boxes,
            "provenance": provenance,
            "validation": None,
        }
    )


def _postprocessing_of(settings: Inference) -> dict[str, Any]:
    """The settings that turn probabilities into labels."""
    return settings.model_dump(include={"threshold", "thresholds", "min_region_mm3", "min_component_mm3", "confident"})


def renumbered(card: ModelCard, labels: Mapping[str, int], convention: str = "") -> ModelCard:
    """The card of a model that writes another convention's numbers, matched by label name.

    A core without parts set apart (NCR) stands for NET where the other convention does not know that. The background has
    any name.

    Args:
        card: of the model.
        labels: name -> number.
        convention: whose numbers they are, if they are one's.

    Raises:
        ConfigError: if the other convention lacks a label that the model writes.
    """
    names = {value: name for name, value in card.labels.items()}
    known = dict(labels)
    if "NET" not in known and "NCR" in known:
        known["NET"] = known["NCR"]
    known |= {name: 0 for name, value in card.labels.items() if value == 0}
    missing = [name for name in card.labels if name not in known]
    if missing:
        raise ConfigError(
            f"the labels asked for have no {', '.join(missing)}",
            where=f"{', '.join(f'{name} {value}' for name, value in labels.items())}",
            why="what the model finds of it could not be written",
            fix="give the --convention that the model was trained with, or one that has the label",
        )
    value = {old: known[name] for old, name in names.items()}
    regions = None
    if card.regions is not None:
        regions = [
            RegionCard(name=r.name, values=sorted({value[v] for v in r.values}), write=value[r.write])
            for r in card.regions
        ]
    changed = {"labels": {name: known[name] for name in card.labels}, "regions": regions, "convention": convention}
    return card if changed["labels"] == card.labels else card.model_copy(update=changed)


def with_settings(cards: Sequence[ModelCard], overrides: Sequence[str]) -> list[ModelCard]:
    """Members of an ensemble, each with the same changes of its inference settings.

    Post-processing is the ensemble's: what members have in common, and then the changes.

    Args:
        cards: of the members.
        overrides: ``KEY=VALUE`` items.

    Raises:
        ConfigError: for a key or value that is none, or a region that the models do not predict.
    """
    if not overrides:
        return list(cards)
    settled = [item for item in overrides if re.match(r"(inference\.)?(window|choose)\b", item)]
    if settled:
        raise ConfigError(
            f"this was settled in training: {settled[0]}", where="--set",
            why="the network has learned windows of its own size, and settings are chosen on out-of-fold predictions",
            fix="leave it out, or train with another inference section",
        )  # fmt: skip
    joint = joint_card(cards)
    common, objects, boxes = _postprocessing_of(joint.inference), joint.instances, joint.detection
    if objects is not None:
        own = [item for item in overrides if item.startswith("instances.")]
        objects, overrides = changed_instances(objects, own), [item for item in overrides if item not in own]
    if boxes is not None:
        own = [item for item in overrides if item.startswith("detection.")]
        boxes, overrides = changed_detection(boxes, own), [item for item in overrides if item not in own]
    changed = []
    for card in cards:
        settings = changed_inference(card.inference.model_copy(update=common), overrides)
        card.outputs.check(settings)
        changed.append(card.model_copy(update={"inference": settings, "instances": objects, "detection": boxes}))
    return changed

"""Regions in the numbers of a data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cmt_med.base.errors import ConfigError
from cmt_med.config.schema import Region
from cmt_med.data.conventions.names import TUMOUR_LABELS, canonical_label


def region_values(regions: Sequence[Region], labels: dict[str, int]) -> list[tuple[str, list[int], int]]:
    """Each region as (name, label values, value to write) in a data set's own numbers.

    A tumour part of another year that this data set does not have (NET in BraTS 2021) is left out.

    Raises:
        ConfigError: for a label name that the data set does not know, a region without any label in it, or a label that
            is in no region.
    """
    resolved = []
    for region in regions:
        values = []
        for name in region.labels:
            canonical = _own_name(name, labels)
            if canonical in labels:
                values.append(labels[canonical])
            elif canonical not in TUMOUR_LABELS:
                raise _unknown_label(name, region, labels)
        write = _own_name(region.write, labels)
        if not values or write not in labels:
            raise _unknown_label(region.write if values else ", ".join(region.labels), region, labels)
        resolved.append((region.name, values, labels[write]))
    covered = {0, *(value for _, values, _ in resolved for value in values)}
    strange = [f"{name} = {value}" for name, value in labels.items() if value not in covered]
    if strange:
        raise ConfigError(
            f"no region contains the label {', '.join(strange)}",
            where="data.regions",
            why="its voxels would be learned and scored as background",
            fix=f"add it to a region, or correct its name in the case list; BraTS names are {', '.join(TUMOUR_LABELS)}",
        )
    return resolved


def _own_name(name: str, labels: Collection[str]) -> str:
    """A label as the data set calls it: a tumour part by its usual name, but for data of another organ, which keeps its own."""
    return name.lower() if name.lower() in labels else canonical_label(name)


def _unknown_label(name: str, region: Region, labels: dict[str, int]) -> ConfigError:
    return ConfigError(
        f"region {region.name} uses a label that the data set does not have",
        where=f"data.regions: {name}",
        why=f"the case list names {', '.join(labels) or 'no labels'}",
        fix="correct data.regions or the case list's labels",
    )

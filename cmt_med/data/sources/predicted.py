"""A folder of predictions: its label maps, its own description, and its targets in the numbers of a case list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cmt_med.base.errors import DataError
from cmt_med.data.manifest import Manifest
from cmt_med.data.volumes.endings import looks_like_picture, looks_like_volume, volume_stem
from cmt_med.data.volumes.streams import readable_name

RUN_FILE = "run.json"
_MAX_BYTES = 50_000_000  # a run.json of more is no run.json


class RunRecord(BaseModel):
    """The part of ``run.json`` that is relied on; what else ``infer`` writes is kept beside it.

    ``labels`` maps names to the values in the label maps, ``targets`` what is scored to such values; ``failed`` and
    ``cases`` are names, and None where nothing says which cases were asked for. ``trained_on`` are sums of the images that the
    model was trained on (:func:`cmt_med.data.volumes.sums.sum_of_sums`).
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    labels: dict[str, int] | None = None
    targets: dict[str, list[int]] | None = None
    failed: list[str] = []
    cases: list[str] | None = None
    task: str = "segmentation"
    channels: list[str] | None = None
    notice: str = ""
    convention: str = ""
    model: str | None = None
    trained_on: list[str] = []


def read_run(folder: Path) -> RunRecord | None:
    """Read ``run.json``; None where there is none.

    Raises:
        DataError: E_RUN, if it is damaged.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{RUN_FILE} is damaged", where=str(path), why=_reason(error), fix="run infer again", code="E_RUN"
        ) from error


def label_maps_in(folder: Path) -> dict[str, Path]:
    """Case name -> label map for what lies directly in a folder, as ``infer`` writes it; probabilities are left out.

    Raises:
        DataError: E_IO if it is no folder, E_MANIFEST if two files differ in their endings alone.
    """
    if not folder.is_dir():
        raise DataError("not a folder", where=readable_name(folder), fix="give a folder of label maps", code="E_IO")
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    files = [path for path in files if not volume_stem(path).endswith("_prob")]
    # Beside volumes, pictures are previews.
    maps = list(filter(looks_like_volume, files)) or list(filter(looks_like_picture, files))
    found: dict[str, Path] = {}
    for path in maps:
        name = volume_stem(path)
        if name in found:
            raise DataError(
                f"two label maps are of case {name!r}", where=f"{readable_name(found[name])}, {path.name}",
                why="which of them is meant cannot be known", fix="keep one", code="E_MANIFEST",
            )  # fmt: skip
        found[name] = path
    return found


def targets_in(manifest: Manifest, run: RunRecord, folder: Path) -> dict[str, list[int]]:
    """The targets of a folder's predictions in the numbers of a case list, matched by label name.

    A cavity (RC) that the model does not know is in none of its regions, by the challenge's own definition: it is left out.

    Returns:
        name -> values, without the targets that the case list has no label of.

    Raises:
        DataError: E_RUN, if ``run.json`` does not name labels and targets; E_LABEL, if the case list has other labels that
            the model does not know, or none that it does.
    """
    if run.labels is None or run.targets is None:
        raise DataError(
            f"{RUN_FILE} does not say what the label values mean", where=str(folder / RUN_FILE),
            why="labels of the case list are matched by name", fix="run infer again, or name what to score with --labels",
            code="E_RUN",
        )  # fmt: skip
    names = _names_of_values(run.labels)
    known = {name for shared in names.values() for name in shared}
    strange = [name for name in manifest.labels if name not in known and name != "RC"]
    if strange:
        raise DataError(
            f"the references have labels that the model does not know: {', '.join(strange)}",
            where=str(manifest.path),
            why=f"the model knows {', '.join(run.labels)}",
            fix="rename them in the case list's 'labels', or name what to score with --labels",
            code="E_LABEL",
        )
    found = {
        target: sorted({manifest.labels[n] for value in values for n in names.get(value, ()) if n in manifest.labels})
        for target, values in run.targets.items()
    }
    # NCR of a list without NET is both, and the other way round: a target with one of the model's two is part of that.
    halves = {run.labels[name] for name in ("NCR", "NET") if name in run.labels}
    whole = len({"NCR", "NET"} & manifest.labels.keys()) == 1

    def in_part(target: str, values: Sequence[int]) -> bool:
        return (target == "NET" and target not in manifest.labels) or (len(halves & set(values)) == 1 < len(halves))

    scored = {
        target: values
        for target, values in found.items()
        if values and not (whole and in_part(target, run.targets[target]))
    }
    if not scored:
        raise DataError(
            "the references have no label that the model knows", where=str(manifest.path),
            why=f"the case list names {', '.join(manifest.labels) or 'none'}; the model knows {', '.join(run.labels)}",
            fix="correct the case list's 'labels', or name what to score with --labels", code="E_LABEL",
        )  # fmt: skip
    return scored


def _names_of_values(labels: Mapping[str, int]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, value in labels.items():  # two may share a number: NCR and NET do in what a 2013 model writes for 2021
        names.setdefault(value, []).append(name)
        if name == "NCR" and "NET" not in labels:  # a core without parts set apart stands for both
            names[value].append("NET")
    return names


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])

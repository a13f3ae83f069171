"""An inference folder: a label map and a record for each case, resumable, where one bad case never stops the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_med.base.errors import CmtError, ConfigError, DataError, OutputError
from cmt_med.base.files import sha256, write_json
from cmt_med.base.text import counted, visible
from cmt_med.compute.limits import USUAL_LIMITS, Limits, bounded, is_out_of_memory
from cmt_med.compute.memory import bytes_free
from cmt_med.data.case import Case
from cmt_med.data.conventions.names import require_distinct
from cmt_med.data.preprocessing.fingerprint import case_statistics, unlike_training
from cmt_med.data.preprocessing.normalisation import background_value
from cmt_med.data.preprocessing.pipeline import seen_by, takes_zeros
from cmt_med.data.volumes.gate import Loaded, content_of, load_case
from cmt_med.data.volumes.written import write_volume
from cmt_med.inference.boxes import BoxEnsemble
from cmt_med.inference.dimensions import require_dimensions
from cmt_med.inference.masks import MaskEnsemble
from cmt_med.inference.model import ModelCard
from cmt_med.inference.objects import ObjectEnsemble
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.inference.prefetch import Prefetcher
from cmt_med.inference.results import Probabilities, Results, is_done, read_record, require_own
from cmt_med.inference.whole import WholeEnsemble

Engine = Ensemble | WholeEnsemble | BoxEnsemble
log = logging.getLogger(__name__)
AHEAD_BYTES = 1 << 28
"""Of images: while a larger case is computed, the next one is not read, nor is a larger one while another is computed. So what
a large case takes at the most is not added to."""


def engine_of(predictors: Sequence[Predictor], *, written: ModelCard | None = None) -> Engine:
    """Models together, as their task wants them.

    Args:
        predictors: at least one.
        written: the card in the numbers to write, where label maps are written; None for the models' own.

    Raises:
        ConfigError: if they predict different things.
    """
    if predictors[0].card.outputs.unlabelled:
        raise ConfigError(
            "this model was pretrained: it finds nothing yet", where=f"model {predictors[0].card.name}",
            why="it tells what hidden blocks of an image look like", fix="train a task that starts from it: network.pretrained",
        )  # fmt: skip
    if predictors[0].card.outputs.queries:
        return MaskEnsemble(predictors)
    if predictors[0].card.outputs.objects:
        return ObjectEnsemble(predictors)
    if predictors[0].card.outputs.boxes:
        return BoxEnsemble(predictors)
    if predictors[0].card.outputs.dense:
        return Ensemble(predictors, written=written)
    return WholeEnsemble(predictors)


def infer_cases(
    predictor: Engine,
    cases: Sequence[Case],
    folder: Path,
    *,
    probabilities: Probabilities = "none",
    banner: str = "",
    limits: Limits = USUAL_LIMITS,
    problems: Sequence[DataError] = (),
) -> list[dict[str, str]]:
    """Predict every case into ``folder``; finished cases of the same inputs, model and settings are kept.

    Args:
        predictor: the model or models.
        cases: to predict.
        folder: for the results.
        probabilities: whether ``CASE_prob.nii.gz`` is written, and how: uint8 keeps steps of 1/255.
        banner: written into every record, for phantom data.
        limits: what a case may take.
        problems: cases that were left out, and what else could not be read beside them; failures, too.

    Returns:
        The failures, which ``failures.json`` has, too.

    Raises:
        DataError: E_MANIFEST, if two cases would have results of one name.
        OutputError: if the folder cannot be written, or has files of those names that no earlier run has written.
    """
    require_distinct([case.name for case in cases], str(folder))
    require_own(folder, cases)
    failures: list[dict[str, str]] = []
    for problem in problems:
        failures.append({"case": problem.case or problem.where} | problem.as_dict())
        log.error("no case\n%s", problem.message())
    _name_others(folder, cases)
    asked = [*(case.name for case in cases), *(problem.case for problem in problems if problem.case)]
    _write_run(folder, predictor, asked, failures, banner, complete=False)
    read = partial(_read, predictor.card, folder, probabilities)
    ahead = Prefetcher(partial(read, bytes_free), partial(read, lambda: AHEAD_BYTES))
    for number, case in enumerate(cases, 1):
        following = cases[number] if number < len(cases) and limits.memory_gb is None else None
        try:
            with bounded(limits, case.name):
                done = _infer_case(predictor, case, folder, ahead, following, probabilities, banner)
            log.info("%d/%d %s: %s", number, len(cases), case.name, "done" if done else "kept from an earlier run")
        except OutputError:
            raise
        except CmtError as error:
            failures.append({"case": case.name} | error.as_dict())
            log.error("%d/%d %s failed\n%s", number, len(cases), case.name, error.message())
        except Exception as error:  # whatever a volume does to the libraries below, the others are still wanted
            memory = is_out_of_memory(error)
            fault = CmtError(
                "the case does not fit into memory" if memory else "a fault of cmt_med",
                where=case.name,
                why=str(error).splitlines()[0] if str(error) else type(error).__name__,
                fix="use a machine with more memory, or --device cpu" if memory else "report it with the log",
                code="E_MEMORY" if memory else "E_BUG",
            )
            failures.append({"case": case.name} | fault.as_dict())
            log.error("%d/%d %s failed\n%s", number, len(cases), case.name, fault.message(), exc_info=not memory)
    write_json(folder / "failures.json", failures)
    if isinstance(predictor, WholeEnsemble | ObjectEnsemble | BoxEnsemble):
        predictor.finish(folder, cases)
    _write_run(folder, predictor, asked, failures, banner, complete=True)
    return failures


def _name_others(folder: Path, cases: Sequence[Case]) -> None:
    """Say how many results of an earlier run, of cases that are not among these, stay in the folder."""
    names = {case.name for case in cases}
    others = [p for p in folder.glob("*.json") if p.stem not in names and p.name not in ("run.json", "failures.json")]
    count = sum(read_record(path).get("case") == path.stem for path in others)
    if count:
        log.warning(
            "%s: results of %s from an earlier run stay here, and are not part of this one", folder,
            counted(count, "other case"),
        )  # fmt: skip


def _write_run(
    folder: Path,
    predictor: Engine,
    asked: Sequence[str],
    failures: Sequence[Mapping[str, str]],
    banner: str,
    *,
    complete: bool,
) -> None:
    card = predictor.card
    write_json(
        folder / "run.json",
        {
            "complete": complete,
            "model": card.name,
            "task": card.task,
            "weights_sha256": card.weights_sha256,
            "labels": card.labels,
            "targets": card.targets,
            "convention": card.convention,
            "network": card.network,
            "channels": card.channels,
            "preprocessing": card.preprocessing,
            "settings": card.inference.model_dump(),
            **({"detection": card.detection.model_dump()} if card.detection is not None else {}),
            "provenance": card.provenance,
            "trained_on": card.trained_on,
            "cases": list(asked),
            "failed": [failure["case"] for failure in failures],
            "notice": banner,
        },
    )


@dataclass(frozen=True)
class _Read:
    """A case as it was found: what its results depend on, and its volumes, unless there are such results."""

    key: dict[str, Any]
    loaded: Loaded | None


def _read(
    card: ModelCard, folder: Path, probabilities: Probabilities, room: Callable[[], int | None], case: Case
) -> _Read:
    """Read a case whose images fit into ``room`` bytes, unless it has been segmented before."""
    inputs = {name: case.images[name][0] for name in card.channels if name in case.images}
    key: dict[str, Any] = {
        "input_sha256": {name: content_of(path, case) for name, path in inputs.items()},
        "input_plane": {name: case.images[name][1] for name in inputs},
        "mask_sha256": content_of(case.mask, case) if case.mask is not None else None,
        "weights_sha256": card.weights_sha256,
        "settings": card.inference.model_dump(),
        "preprocessing": card.preprocessing,
        "labels": card.labels,
        **({"instances": card.instances.model_dump()} if card.instances is not None else {}),
        **({"detection": card.detection.model_dump()} if card.detection is not None else {}),
        "regions": [region.model_dump() for region in card.regions] if card.regions is not None else None,
    }
    wanted: dict[str, Any] = {}
    if probabilities != "none" and card.outputs.dense and not card.outputs.boxes:
        wanted = {"probabilities": probabilities, "probability_channels": card.probability_channels}
    done = is_done(Results.of(case, folder), key | wanted, task=card.outputs)
    return _Read(
        key | wanted,
        None if done else load_case(case, card.channels, room=room(), zeros=takes_zeros(card.preprocessing)),
    )


def _source(card: ModelCard, case: Case) -> Path:
    """The file of the first of the model's channels that the case has."""
    return next(case.images[name][0] for name in card.channels if name in case.images)


def _infer_case(
    predictor: Engine,
    case: Case,
    folder: Path,
    ahead: Prefetcher[Case, _Read],
    following: Case | None,
    probabilities: Probabilities,
    banner: str,
) -> bool:
    """Tell whether there was something to do; the following case is read meanwhile."""
    results, card = Results.of(case, folder), predictor.card
    found = ahead.take(case)
    loaded = found.loaded
    if loaded is None:
        return False
    if following is not None and loaded.image.nbytes <= AHEAD_BYTES:
        ahead.begin(following)
    require_dimensions(card, case.name, _source(card, case), loaded.grid)
    for stale in results.files:  # of other inputs, another model or other settings
        stale.unlink(missing_ok=True)
    if isinstance(predictor, WholeEnsemble):
        said, volumes = predictor.answer(loaded), dict[str, float]()
    elif isinstance(predictor, BoxEnsemble):
        said, volumes = predictor.write(loaded, results, _source(card, case)), {}
    elif isinstance(predictor, ObjectEnsemble):
        said, volumes = predictor.write(loaded, results, _source(card, case), probabilities)
    else:
        said, volumes = _label_map(predictor, loaded, results, _source(card, case), probabilities)
    flags = [*loaded.flags, *said.pop("flags", ())]
    if card.training_data is not None:
        alone = seen_by(replace(loaded, label=None), card.preprocessing)
        seen = case_statistics(alone, card.channels, card.preprocessing["clip"])
        resampled = card.preprocessing["spacing"] is not None
        flags += unlike_training(seen, volumes, card.training_data, resampled=resampled)
    for flag in flags:
        log.warning("%s: %s", visible(case.name), flag)
    members = [member["weights_sha256"] for member in card.provenance.get("members", [])]
    background = {
        n: background_value(c) for n, c in zip(card.channels, loaded.image, strict=True) if n not in loaded.missing
    }
    about = {"case": case.name, "members": members, "flags": flags, "background": background, "notice": banner}
    write_json(results.record, found.key | said | about)
    return True


def _label_map(
    ensemble: Ensemble, loaded: Loaded, results: Results, source: Path, probabilities: Probabilities
) -> tuple[dict[str, Any], dict[str, float]]:
    """Write the label map of a case; returns what its record says, and the volume of each target in mL."""
    card, target = ensemble.card, results.of_slices(loaded.grid.shape[2])
    if probabilities == "none":
        labels, removed = ensemble.segment(loaded)
        write_volume(target, labels, loaded.grid, source)
    else:
        chances = ensemble.probabilities(loaded)
        labels, removed = ensemble.labels(chances, loaded.grid)
        write_volume(target, labels, loaded.grid, source)
        stored = np.dtype(probabilities)
        write_volume(results.chances, chances.movedim(0, -1).numpy(), loaded.grid, source, stored=stored)
    counts, voxel_ml = _counts(labels), float(np.prod(loaded.grid.spacing)) / 1000.0
    volumes = {name: float(counts[values].sum()) * voxel_ml for name, values in card.targets.items()}
    kept = probabilities != "none"
    return {
        "probabilities": probabilities,
        "probability_channels": card.probability_channels if kept else None,
        "output_sha256": sha256(target),
        "probabilities_sha256": sha256(results.chances) if kept else None,
        "volumes_ml": volumes,
        "removed": removed.as_dict(),
        "flags": [] if labels.any() else ["the mask is empty"],
    }, volumes


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count each value, (256,)."""
    return sum((np.bincount(part.ravel(), minlength=256) for part in labels), np.zeros(256, dtype=np.int64))

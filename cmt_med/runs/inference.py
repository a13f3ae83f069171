"""Label maps or classes of cases by trained models: ``cmt-med infer``."""

from __future__ import annotations

import logging
from pathlib import Path

from cmt_med.base.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, DataError
from cmt_med.base.files import locked, remove_leftovers, require_writable_folder
from cmt_med.base.text import counted
from cmt_med.compute.device import pick_device, use_threads
from cmt_med.compute.limits import Limits
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import CONVENTIONS, labels_by_name, named_convention
from cmt_med.data.conventions.names import disagreements
from cmt_med.data.phantom import BANNER
from cmt_med.data.sources import cases_for_network
from cmt_med.data.sources.by_channel import case_of_channels
from cmt_med.data.sources.dataset import Dataset
from cmt_med.inference.cards import joint_card, renumbered, with_settings
from cmt_med.inference.folder import engine_of, infer_cases
from cmt_med.inference.model import ModelCard, load_model, member_folders
from cmt_med.inference.predict import Predictor
from cmt_med.inference.results import Probabilities
from cmt_med.runs.trained import trained_network

log = logging.getLogger(__name__)


def infer_into(
    output: Path, *, model: list[Path], cases: Path | None = None, channel: list[str] | None = None, overlap: float | None = None,
    tta: str | None = None, probabilities: bool = False, settings: list[str] | None = None, convention: str | None = None,
    max_minutes: float = 120.0, max_memory: float | None = None, device: str = "auto", threads: int | None = None,
) -> int:  # fmt: skip
    """Segment cases into a folder, and return the exit code; arguments as of ``cmt-med infer``.

    Raises:
        ConfigError: for arguments that do not fit together; DataError: E_MODEL, E_CONVENTION, or if there are no cases;
        OutputError: if the folder cannot be written.
    """
    use_threads(threads)
    members = [load_model(folder) for path in model for folder in member_folders(path)]
    if tta not in (None, "none", "flips"):
        raise ConfigError(
            f"--tta {tta} is unknown",
            where="--tta",
            why="it names how cases are turned for averaging",
            fix="use none or flips",
        )
    options = [f"{name}={value}" for name, value in (("overlap", overlap), ("tta", tta)) if value is not None]
    cards = with_settings([card for card, _ in members], [*options, *(settings or [])])
    members = [(card, weights) for card, (_, weights) in zip(cards, members, strict=True)]
    channels = joint_card(cards).channels
    if (cases is None) == (not channel):
        raise ConfigError("give either --input or --channel NAME=FILE items", where="the command line",
                          why="one of them says what is segmented, and both could contradict each other",
                          fix="leave one out")  # fmt: skip
    if cases is not None:
        found = cases_for_network(cases, channels)
    else:
        found = Dataset("files", cases=[_from_options(channel or [], channels)])
    written = _written(joint_card(cards), found, convention)
    require_writable_folder(output)
    predictors = [Predictor(trained_network(c, w), c, pick_device(device)) for c, w in members]
    ensemble = engine_of(predictors, written=written)
    if probabilities and ensemble.card.outputs.queries:
        raise ConfigError(
            "this model has no maps of probabilities", where="--probabilities", why="its queries have a mask each",
            fix="leave it out; objects.csv has the probability of each object",
        )  # fmt: skip
    banner = BANNER if ensemble.card.provenance.get("demo") else ""
    if banner:
        log.warning("%s: the model was trained on synthetic volumes", banner)
    log.info(
        "%s; %s: %s",
        counted(len(members), "network"),
        "labels written" if ensemble.card.outputs.dense and not ensemble.card.outputs.boxes else "classes",
        ", ".join(f"{n} {v}" for n, v in ensemble.card.labels.items()),
    )
    kept: Probabilities = "float32" if probabilities else "none"
    limits = Limits(max_minutes, max_memory)
    with locked(output):
        remove_leftovers(output)
        failures = infer_cases(
            ensemble, found.cases, output, probabilities=kept, banner=banner, limits=limits, problems=found.problems
        )
    count = len(found.cases) + len(found.problems)
    task = ensemble.card.outputs
    what = "searched for objects" if task.boxes else "segmented" if task.dense else "classified"
    print(f"{count - len(failures)} of {counted(count, 'case')} {what} in {output}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _written(card: ModelCard, found: Dataset, convention: str | None) -> ModelCard:
    """The card in the numbers to write: those asked for, or the input's, as its list or its case names tell.

    Raises:
        ConfigError: if those asked for lack a label that the model finds.
        DataError: E_CONVENTION, if nobody asked, the input's lack one, and a number would have two meanings.
    """
    names = [case.name for case in found.cases]
    if convention is not None and not card.writes_labels:
        raise ConfigError(
            "--convention is for label maps", where=f"--convention {convention}", why=f"the model's task is {card.task}",
            fix="leave it out",
        )  # fmt: skip
    if convention is not None:
        chosen = named_convention(convention, names)
        return renumbered(card, chosen.labels, chosen.name)
    stated = found.labels or (CONVENTIONS[found.convention].labels if found.convention else {})
    labels = stated or labels_by_name(names)
    if labels is None or not card.writes_labels:
        return card
    try:
        return renumbered(card, labels)
    except ConfigError as error:
        other = disagreements(card.labels, labels)
        if other:
            own = CONVENTIONS[card.convention].labels if card.convention in CONVENTIONS else {}
            listed = ", ".join(f"{value} {name}" for name, value in labels.items() if value)
            raise DataError(
                f"the input's numbers have no place for all that the model finds: {error.what}", where=f"labels {listed}",
                why=f"in the model's own numbers {', '.join(other)}: one number would have two meanings",
                fix=f"write the model's own numbers with --convention {card.convention}" if card.labels.keys() <= own.keys()
                else "give a case list whose 'labels' have the model's names, or none", code="E_CONVENTION",
            ) from error  # fmt: skip
        log.warning("labels are written in the model's own numbers: %s", error.what)
        return card


def _from_options(items: list[str], channels: list[str]) -> Case:
    files = {}
    for item in items:
        name, separator, file = item.partition("=")
        if not (name and separator and file):
            raise ConfigError(
                "--channel needs NAME=FILE",
                where=repr(item),
                why="channels go by name, never by position",
                fix="write for example --channel t1ce=x.nii.gz",
            )
        if name in files:
            raise ConfigError(
                f"--channel {name} is given twice",
                where=repr(item),
                why="one file would replace the other",
                fix="give each channel once",
            )
        files[name] = Path(file)
    return case_of_channels(files, channels)

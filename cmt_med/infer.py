"""``cmt-med infer``: segment cases with a trained model."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.cli import Debug, pick_device, run_command, use_threads
from cmt_med.data.brats import labels_by_name, named_convention
from cmt_med.data.discover import Found, case_of_channels, find_cases
from cmt_med.data.manifest import Case, load_manifest
from cmt_med.data.phantom import BANNER
from cmt_med.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError
from cmt_med.files import locked, remove_leftovers, require_writable_folder
from cmt_med.inference.caps import Caps
from cmt_med.inference.folder import Probabilities, infer_cases
from cmt_med.inference.model import ModelCard, joint_card, load_model, member_folders, renumbered
from cmt_med.inference.predict import Ensemble, Predictor
from cmt_med.trained import trained_network

log = logging.getLogger(__name__)


def infer(
    model: Annotated[
        list[Path], typer.Option(help="A run folder, or the model/ folder in it; several are averaged, as are folds.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the label maps.")],
    input: Annotated[
        Path | None,
        typer.Option(
            help="A case, a folder of cases, or a case list (.json); a CASE_mask beside MR channels is the foreground."
        ),
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="NAME=FILE, once per channel, instead of --input.")] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0.0, max=0.95, help="Overlap of windows; default: the model's.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(help="none, or flips: average over the mirrorings seen in training.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write CASE_prob.nii.gz.")] = False,
    convention: Annotated[
        str | None, typer.Option(help="Write the labels in the numbers of, e.g., brats2023; default: the input's.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(min=0.01, help="Time that one case may take.")] = 120.0,
    max_memory: Annotated[
        float | None, typer.Option(min=0.01, help="GB that one case may take, on a CPU; default: what is left.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    debug: Debug = False,
) -> int:
    """Segment cases with a trained model.

    For each case, writes OUTPUT/CASE.nii.gz (labels on exactly the input's grid) and OUTPUT/CASE.json (checksums,
    volumes in mL, flags). Finished cases are kept when the same command runs again. Exit code 2 if some cases failed;
    OUTPUT/failures.json names them.
    """
    use_threads(threads)
    members = [load_model(folder) for path in model for folder in member_folders(path)]
    if tta not in (None, "none", "flips"):
        raise ConfigError(f"--tta {tta} is unknown", where="--tta", fix="use none or flips")
    changes = {name: value for name, value in (("overlap", overlap), ("tta", tta)) if value is not None}
    members = [(c.model_copy(update={"inference": c.inference.model_copy(update=changes)}), w) for c, w in members]
    channels = joint_card([card for card, _ in members]).channels
    if (input is None) == (not channel):
        raise ConfigError("give either --input or --channel NAME=FILE items", where="command line")
    found = find_cases(input, channels) if input is not None else Found([_from_options(channel or [], channels)])
    labels = _labels_of(input, found.cases, convention)
    if labels is not None:
        members = [(_renumbered(card, labels, asked=convention is not None), weights) for card, weights in members]
    require_writable_folder(output)
    ensemble = Ensemble([Predictor(trained_network(c, w), c, pick_device(device)) for c, w in members])
    banner = BANNER if ensemble.card.provenance.get("demo") else ""
    if banner:
        log.warning("%s: the model was trained on synthetic volumes", banner)
    log.info(
        "%d networks; labels written: %s", len(members), ", ".join(f"{n} {v}" for n, v in ensemble.card.labels.items())
    )
    kept: Probabilities = "float32" if probabilities else "none"
    caps = Caps(max_minutes, max_memory)
    with locked(output):
        remove_leftovers(output)
        failures = infer_cases(
            ensemble, found.cases, output, probabilities=kept, banner=banner, caps=caps, problems=found.problems
        )
    count = len(found.cases) + len(found.problems)
    print(f"{count - len(failures)} of {count} cases segmented in {output}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _labels_of(path: Path | None, cases: list[Case], convention: str | None) -> dict[str, int] | None:
    """Label names and numbers of the data set that the input belongs to; None where nothing tells."""
    if convention is not None:
        return named_convention(convention, [case.name for case in cases]).labels
    if path is not None and path.suffix.lower() == ".json":
        return load_manifest(path).labels or None
    return labels_by_name([case.name for case in cases])


def _renumbered(card: ModelCard, labels: dict[str, int], *, asked: bool) -> ModelCard:
    """The card with the input's numbers; the model's own where they do not fit and nobody asked for them."""
    try:
        return renumbered(card, labels)
    except ConfigError as error:
        if asked:
            raise
        log.warning("labels are written in the model's own numbers: %s", error.what)
        return card


def _from_options(items: list[str], channels: list[str]) -> Case:
    files = {}
    for item in items:
        name, separator, file = item.partition("=")
        if not (name and separator and file):
            raise ConfigError(
                "--channel needs NAME=FILE", where=repr(item), fix="write for example --channel t1ce=x.nii.gz"
            )
        if name in files:
            raise ConfigError(f"--channel {name} is given twice", where=repr(item), fix="give each channel once")
        files[name] = Path(file)
    return case_of_channels(files, channels)


def main() -> int:
    """Run the command."""
    return run_command(infer)


if __name__ == "__main__":
    sys.exit(main())

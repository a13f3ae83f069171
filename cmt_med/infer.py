"""``cmt-med infer``: segment cases with a trained model."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from cmt_med.cli import Debug, pick_device, run_command, use_threads
from cmt_med.data.discover import case_of_channels, find_cases
from cmt_med.data.phantom import BANNER
from cmt_med.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError
from cmt_med.files import require_writable_folder
from cmt_med.inference.folder import infer_cases
from cmt_med.inference.model import load_model
from cmt_med.inference.predict import Predictor
from cmt_med.networks import build_network

log = logging.getLogger(__name__)


def infer(
    model: Annotated[Path, typer.Option(help="A run folder, or the model/ folder in it.")],
    output: Annotated[Path, typer.Option(help="Folder for the label maps.")],
    input: Annotated[Path | None, typer.Option(help="A case, a folder of cases, or a case list (.json).")] = None,
    channel: Annotated[list[str] | None, typer.Option(help="NAME=FILE, once per channel, instead of --input.")] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0.0, max=0.95, help="Overlap of windows; default: the model's.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(help="none, or flips: average over the mirrorings seen in training.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write CASE_prob.nii.gz.")] = False,
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
    card, weights = load_model(model)
    if tta not in (None, "none", "flips"):
        raise ConfigError(f"--tta {tta} is unknown", where="--tta", fix="use none or flips")
    changes = {name: value for name, value in (("overlap", overlap), ("tta", tta)) if value is not None}
    card = card.model_copy(update={"inference": card.inference.model_copy(update=changes)})
    if (input is None) == (not channel):
        raise ConfigError("give either --input or --channel NAME=FILE items", where="command line")
    cases = find_cases(input, card.channels) if input is not None else [_from_options(channel or [], card.channels)]
    require_writable_folder(output)
    network = build_network(**card.network)
    network.load_state_dict(weights, strict=True)
    banner = BANNER if card.provenance.get("demo") else ""
    if banner:
        log.warning("%s: the model was trained on synthetic volumes", banner)
    predictor = Predictor(network, card, pick_device(device))
    failures = infer_cases(predictor, cases, output, probabilities=probabilities, banner=banner)
    print(f"{len(cases) - len(failures)} of {len(cases)} cases segmented in {output}")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _from_options(items: list[str], channels: list[str]):  # type: ignore[no-untyped-def]
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

"""Predictions of a run's own cases, scored as their task wants it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmt_med.config.detection import Detection
from cmt_med.data.case import Case
from cmt_med.data.conventions.brats import lesions_of
from cmt_med.inference.model import ModelCard
from cmt_med.inference.results import predictions_in
from cmt_med.reports.answers import AnswerEvaluation, ScoredAnswers
from cmt_med.reports.boxes import BoxEvaluation
from cmt_med.reports.objects import ObjectEvaluation
from cmt_med.reports.publish import Evaluation, Scored
from cmt_med.reports.scores import empty_rule_of
from cmt_med.tasks.task import box_task, object_task, whole_image_task


def scored_cases(
    card: ModelCard, folders: Mapping[str, Path], cases: Mapping[str, Case], convention: str, banner: str
) -> Scored | ScoredAnswers:
    """Score each case.

    Args:
        card: of the model, or of one of several on the same targets.
        folders: case name -> the inference folder that has its prediction.
        cases: by name; those without a target are left out.
        convention: of the data set, for its rules.
        banner: for phantom data.
    """
    if not card.outputs.dense:
        return AnswerEvaluation(whole_image_task(card.outputs), folders, cases, banner).score()
    if card.outputs.boxes:
        return BoxEvaluation(box_task(card.outputs), folders, cases, banner, card.detection or Detection()).score()
    if card.outputs.objects:
        maps = {folder: predictions_in(folder) for folder in set(folders.values())}
        predicted = {name: maps[folder][name] for name, folder in folders.items() if name in maps[folder]}
        return ObjectEvaluation(object_task(card.outputs), folders, cases, banner, predicted).score()
    references = {name: case.label for name, case in cases.items() if case.label is not None}
    found = {folder: predictions_in(folder) for folder in set(folders.values())}
    predictions = {name: found[folders[name]][name] for name in references if name in found[folders[name]]}
    return Evaluation(
        predictions, references, card.targets, cases, empty_rule_of(convention), lesions_of(convention), banner=banner
    ).score()

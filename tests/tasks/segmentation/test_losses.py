"""Losses by hand, and over two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from monai.losses.dice import DiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from monai.networks.utils import one_hot

from cmt_med.tasks.segmentation.labels import Classes
from cmt_med.tasks.segmentation.losses import SMOOTH, Kind, batch_dice_loss, class_loss, region_loss, segmentation_loss
from cmt_med.tasks.segmentation.target import Target
from cmt_med.tasks.segmentation.task import Segmentation


def test_batch_dice_by_hand() -> None:
    p = torch.tensor([[[0.5, 1.0, 0.0, 0.0]], [[0.5, 0.0, 0.0, 0.0]]])  # (B=2, K=1, 4)
    t = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    assert batch_dice_loss(p, t).item() == pytest.approx(1 - 2 * 1.5 / (2.0 + 2.0), abs=1e-5)


def test_class_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])  # (1, 2, 2): p(class 1) = 1/2, 1/4
    labels = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    dice = 1 - 2 * 0.5 / (0.75 + 1)
    cross_entropy = -(math.log(0.5) + math.log(0.75)) / 2
    assert class_loss(logits, labels).item() == pytest.approx(dice + cross_entropy, abs=1e-4)


def test_region_loss_by_hand() -> None:
    logits = torch.zeros(1, 2, 2)
    regions = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    dice = 1 - ((2 * 1.0 / (1 + 2)) + (2 * 0.5 / (1 + 1))) / 2
    assert region_loss(logits, regions).item() == pytest.approx(dice + math.log(2), abs=1e-4)


def test_label_values_become_channels() -> None:
    labels = torch.tensor([[[0, 1, 2, 4]]])
    perfect = torch.full((1, 3, 4), -30.0)
    for channel, values in enumerate([(1, 2, 4), (1, 4), (4,)]):
        perfect[0, channel][torch.isin(labels[0, 0], torch.tensor(values))] = 30.0
    assert segmentation_loss([(1, 2, 4), (1, 4), (4,)], region_loss)(perfect, labels).item() == pytest.approx(
        0, abs=1e-4
    )
    classes = 30.0 * torch.eye(4)[None]
    assert segmentation_loss([(0,), (1,), (2,), (4,)], class_loss)(classes, labels).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_numbers_as_monai(seed: int) -> None:
    """MONAI's losses, written by others, where the two mean the same; its Tversky has other signs of alpha and beta."""
    torch.manual_seed(seed)
    logits, labels = 2 * torch.randn(2, 3, 5, 6, 4), torch.randint(0, 3, (2, 1, 5, 6, 4))
    classes = one_hot(labels, 3)
    tversky = TverskyLoss(
        include_background=False, softmax=True, alpha=0.3, beta=0.7, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH
    )
    focal = FocalLoss(use_softmax=True, gamma=2.0, reduction="none")(logits, classes).sum(1).mean()
    dice = DiceLoss(include_background=False, softmax=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)(
        logits, classes
    )
    entropy = torch.nn.functional.cross_entropy(logits, labels[:, 0])
    assert class_loss(logits, classes, "tversky").item() == pytest.approx(tversky(logits, classes).item(), abs=1e-5)
    assert class_loss(logits, classes, "dice_focal").item() == pytest.approx((dice + focal).item(), abs=1e-5)
    assert class_loss(logits, classes, "ce").item() == pytest.approx(entropy.item(), abs=1e-5)
    assert class_loss(logits, classes).item() == pytest.approx((dice + entropy).item(), abs=1e-5)
    regions = (torch.rand(2, 3, 5, 6, 4) > 0.6).float()
    overlapping = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    its_dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)(logits, regions)
    its_focal = FocalLoss(gamma=2.0, reduction="mean")(logits, regions)
    assert region_loss(logits, regions, "tversky").item() == pytest.approx(
        overlapping(logits, regions).item(), abs=1e-5
    )
    assert region_loss(logits, regions, "dice_focal").item() == pytest.approx((its_dice + its_focal).item(), abs=1e-5)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(logits, regions)
    assert region_loss(logits, regions, "ce").item() == pytest.approx(binary.item(), abs=1e-5)


def test_the_config_chooses_the_loss() -> None:
    logits, label = torch.randn(2, 2, 6, 6), torch.randint(0, 2, (2, 1, 6, 6))
    scheme, labels = Classes([Target("one", (1,), 1)]), {"background": 0, "one": 1}
    values = {kind: Segmentation(scheme, labels, kind).loss(logits, {"label": label}).item() for kind in get_args(Kind)}
    assert len({round(value, 6) for value in values.values()}) == len(values) == 4
    for kind, value in values.items():
        assert value == pytest.approx(class_loss(logits, one_hot(label, 2), kind).item(), abs=1e-6)


def test_deep_supervision_weights_scales_and_averages_their_targets() -> None:
    loss = segmentation_loss([(0,), (1,)], class_loss)
    labels = torch.randint(0, 2, (1, 1, 8, 8, 8))
    fine, coarse = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 2, 4, 4, 4)
    ones = labels.reshape(4, 2, 4, 2, 4, 2).float().mean((1, 3, 5))[None, None]
    expected = (loss(fine, labels) + 0.5 * class_loss(coarse, torch.cat([1 - ones, ones], 1))) / 1.5
    assert loss([fine, coarse], labels).item() == pytest.approx(expected.item(), rel=1e-5)


IGNORE = 7
SCHEMES = {"classes": ([(0,), (1,), (2,)], class_loss), "regions": ([(1, 2), (2,), (1,)], region_loss)}


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_nobody_has_annotated_has_no_part(scheme: str, kind: Kind) -> None:
    """The loss is that of the other voxels alone, and the ignored ones have no gradient."""
    channels, single = SCHEMES[scheme]
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 40, requires_grad=True), torch.randint(0, 3, (2, 1, 40))
    hidden = labels.clone()
    hidden[..., 25:] = IGNORE
    loss = segmentation_loss(channels, partial(single, kind=kind), ignore=IGNORE)
    cut = segmentation_loss(channels, partial(single, kind=kind))(logits[..., :25], labels[..., :25])
    found = loss(logits, hidden)
    assert found.item() == pytest.approx(cut.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient[..., :25].abs().max() > 1e-4
    assert torch.equal(gradient[..., 25:], torch.zeros(2, 3, 15))
    assert loss(logits, labels).item() == pytest.approx(
        segmentation_loss(channels, partial(single, kind=kind))(logits, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_a_batch_that_nobody_has_annotated_the_loss_is_zero(scheme: str, kind: Kind) -> None:
    channels, single = SCHEMES[scheme]
    scales = [torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)]
    found = segmentation_loss(channels, partial(single, kind=kind), ignore=IGNORE)(
        [*scales], torch.full((2, 1, 8, 8), IGNORE, dtype=torch.uint8)
    )
    assert found.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(found, scales))


def test_coarse_positions_count_by_what_is_annotated_in_them() -> None:
    """Two positions of four voxels: three of the first are known, two of them 1; of the second one, a 0."""
    labels = torch.tensor([[[1, 1, 0, IGNORE, IGNORE, IGNORE, IGNORE, 0]]])
    chances = torch.tensor([[[0.5, 0.2], [0.5, 0.8]]])
    found = segmentation_loss([(0,), (1,)], partial(class_loss, kind="ce"), ignore=IGNORE)(chances.log(), labels)
    first = -(1 / 3 * math.log(0.5) + 2 / 3 * math.log(0.5))
    assert found.item() == pytest.approx((3 / 4 * first - 1 / 4 * math.log(0.2)) / (3 / 4 + 1 / 4), rel=1e-5)
    both = segmentation_loss([(0,), (1,)], class_loss, ignore=IGNORE)(chances.log(), labels)
    # Σ w p t = 3/4 · 1/2 · 2/3, Σ w p = 3/4 · 1/2 + 1/4 · 8/10, Σ w t = 3/4 · 2/3
    dice = 1 - 2 * 0.25 / (0.375 + 0.2 + 0.5)
    assert both.item() == pytest.approx(found.item() + dice, rel=1e-4)


def of_values(*cases: tuple[int, ...]) -> torch.Tensor:
    """The label values that cases annotate, beside the background."""
    table = torch.zeros(len(cases), 256, dtype=torch.bool)
    for row, values in zip(table, cases, strict=True):
        row[[0, *values]] = True
    return table


def test_a_class_that_a_case_does_not_annotate_is_background() -> None:
    """Of two cases with p = 0.2, 0.5, 0.3, the second annotates class 1 alone: its background has 0.2 + 0.3."""
    logits = torch.tensor([[[0.2], [0.5], [0.3]]]).log().repeat(2, 1, 1)
    labels = torch.tensor([[[0]], [[0]]])
    found = segmentation_loss([(0,), (1,), (2,)], partial(class_loss, kind="ce"))(
        logits, labels, of_values((1, 2), (1,))
    )
    assert found.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2, rel=1e-5)
    both = segmentation_loss([(0,), (1,), (2,)], class_loss)(logits, labels, of_values((1, 2), (1,)))
    # nothing is there: of both classes, all of p is wrong; class 2 is looked for in the first case alone
    assert both.item() == pytest.approx(found.item() + 1.0, rel=1e-4)
    right = segmentation_loss([(0,), (1,), (2,)], class_loss)(
        logits, labels.new_tensor([[[2]], [[1]]]), of_values((1, 2), (1,))
    )
    dice = ((1 - 2 * 0.5 / (1.0 + 1)) + (1 - 2 * 0.3 / (0.3 + 1))) / 2
    assert right.item() == pytest.approx(dice - (math.log(0.3) + math.log(0.5)) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_case_of_one_class_is_learned_as_a_set_of_that_class(kind: Kind) -> None:
    """The loss, and its gradient for the merged classes together, are those of background against the class."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 30, requires_grad=True), 2 * torch.randint(0, 2, (2, 1, 30))
    loss = segmentation_loss([(0,), (1,), (2,), (3,)], partial(class_loss, kind=kind))
    found = loss(logits, labels, of_values((2,), (2,)))
    two = torch.stack([logits[:, [0, 1, 3]].logsumexp(1), logits[:, 2]], 1)
    plain = segmentation_loss([(0,), (2,)], partial(class_loss, kind=kind))(two, labels)
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(value, logits, retain_graph=True) for value in (found, plain)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    everything = loss(logits, labels, of_values((1, 2, 3), (1, 2, 3)))
    assert everything.item() == pytest.approx(loss(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_region_is_learned_where_all_of_its_labels_are_annotated(kind: Kind) -> None:
    """Regions 1+2, 2 and 1: a case that annotates 2 alone teaches the second, and another one of all teaches the rest."""
    channels, single = SCHEMES["regions"]
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 30, requires_grad=True), 2 * torch.randint(0, 2, (2, 1, 30))
    loss = segmentation_loss(channels, partial(single, kind=kind))
    (gradient,) = torch.autograd.grad(loss(logits, labels, of_values((2,), (1, 2))), logits)
    assert not gradient[0, [0, 2]].any()
    assert all(gradient[case, channel].any() for case, channel in ((0, 1), (1, 0), (1, 1), (1, 2)))
    alone = segmentation_loss([(2,)], partial(single, kind=kind))(logits[:1, 1:2], labels[:1])
    assert loss(logits[:1], labels[:1], of_values((2,))).item() == pytest.approx(alone.item(), rel=1e-5)


def test_ignored_voxels_of_a_partial_case() -> None:
    """Both at once, on two scales: what is ignored is left out, and the rest is merged."""
    torch.manual_seed(0)
    scales, labels = [torch.randn(1, 3, 8), torch.randn(1, 3, 4)], torch.tensor([[[0, 1, 0, 1, 7, 7, 7, 7]]])
    both = segmentation_loss([(0,), (1,), (2,)], class_loss, ignore=7)(scales, labels, of_values((1,)))
    merged = [torch.stack([s[:, [0, 2]].logsumexp(1), s[:, 1]], 1)[..., : s.shape[2] // 2] for s in scales]
    plain = segmentation_loss([(0,), (1,)], class_loss)(merged, labels[..., :4])
    assert both.item() == pytest.approx(plain.item(), rel=1e-5)


_RANK = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from cmt_med.networks import build_network
from cmt_med.tasks.segmentation.losses import class_loss, region_loss, segmentation_loss
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
network = build_network("cmt_unetr", spatial_dims=3, in_channels=1, num_classes=3, stem_channels=8, dims=(16, 24),
    depths=(1, 1), head_dim=8, attention=("lightweight",) * 2, kv_strides=(2, 1), drop_path=0.0, deep_supervision=True).train()
images, labels = torch.randn(4, 1, 16, 16, 16), torch.randint(0, 3, (4, 1, 16, 16, 16))
regions = [(1, 2), (2,), (1,)]
hidden = labels.clone()
hidden[1:, :, 3:] = 7  # of the first image all is annotated: ranks know of different amounts
losses = {"classes": segmentation_loss([(0,), (1,), (2,)], class_loss), "regions": segmentation_loss(regions, region_loss)}
losses |= {"ignore": segmentation_loss([(0,), (1,), (2,)], class_loss, ignore=7)}
known = torch.ones(4, 256, dtype=torch.bool)
known[1::2, 2] = False  # the second rank never sees this label
for name in ("classes", "regions"):
    losses[name + "-partial"] = losses[name]
wrapped = DistributedDataParallel(network)
for name, loss in losses.items():
    wrapped.zero_grad()
    given = (hidden if name == "ignore" else labels, *([known] if "partial" in name else []))
    loss(wrapped(images[rank::2]), *(one[rank::2] for one in given)).backward()
    if rank == 0:
        torch.save({k: p.grad for k, p in network.named_parameters()}, f"{sys.argv[1]}/{name}-two.pt")
del wrapped  # it speaks to the other rank until it is gone
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    for name, loss in losses.items():
        network.zero_grad()
        given = (hidden if name == "ignore" else labels, *([known] if "partial" in name else []))
        loss(network(images), *given).backward()
        torch.save({k: p.grad for k, p in network.named_parameters()}, f"{sys.argv[1]}/{name}-one.pt")
"""


def test_two_ranks_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("classes", "regions", "ignore", "classes-partial", "regions-partial"):
        two, one = (torch.load(tmp_path / f"{name}-{n}.pt", weights_only=True) for n in ("two", "one"))
        largest = max(float(g.abs().max()) for g in one.values())
        assert largest > 1e-3
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5 * largest)

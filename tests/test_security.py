"""What an attacker can send is refused by the commands that would read it, and nothing of it is run, unpacked or allocated."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmt_med.base.files import sha256
from tests.data.made import IMAGE, nifti
from tests.helpers import tiny_config, tiny_dataset
from tests.hostile import NAMES
from tests.inference.models import save_random_model
from tests.processes import command

ROOM = 3 << 30
"""Bytes that a command may reserve beside what it has loaded: threads and decoders need some, an attack wants far more."""


class _Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trace}'",)


def _refused(tmp_path: Path, code: int, error: str, verb: str, *arguments: object) -> str:
    """Run a command that must refuse its input and touch nothing around; returns what it said."""
    with command(verb, *arguments, log=tmp_path / "log", memory=ROOM) as running:
        assert running.wait() == code, running.said()
        said = running.said()
    assert "Traceback" not in said
    assert error in said
    (tmp_path / "log").unlink()
    assert not list(tmp_path.parent.glob("escaped*"))
    assert not list(tmp_path.rglob("escaped*"))
    return said


def _infer(tmp_path: Path, image: Path, code: str) -> None:
    """As one channel of a case, beside a sound one: the case fails, and its code is told."""
    out = tmp_path / "out"
    arguments = ["--channel", f"a={image}", "--channel", f"b={nifti(tmp_path / 'sound.nii.gz')}", "--output", out]
    _refused(tmp_path, 2, code, "infer", "--model", save_random_model(tmp_path / "model"), *arguments)
    (failure,) = json.loads((out / "failures.json").read_text())
    assert failure["code"] == code
    assert not list(out.glob("*.nii.gz"))


def _pretrained(tmp_path: Path, weights: Path) -> Path:
    path = tiny_config(tmp_path, tiny_dataset(tmp_path / "data", 3))
    head, _, tail = path.read_text().partition("network:\n")
    rest = tail[tail.index("optimizer:") :]
    path.write_text(f"{head}network: {{name: cmt_unetr_ti, pretrained: {weights}}}\n{rest}")
    return path


# ---- pickles


@pytest.mark.parametrize("zipped", [True, False], ids=["as torch writes it", "bare"])
def test_malicious_pickle_as_checkpoint(tmp_path: Path, zipped: bool) -> None:
    config, trace = tiny_config(tmp_path, tiny_dataset(tmp_path / "data", 3)), tmp_path / "trace"
    content = io.BytesIO()
    (torch.save if zipped else pickle.dump)({"step": 1, "network": _Evil(trace)}, content)
    checkpoint = tmp_path / "run/checkpoints/step-000000001.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content.getvalue())
    checkpoint.with_suffix(".sha256").write_text(hashlib.sha256(content.getvalue()).hexdigest())
    _refused(tmp_path, 65, "E_CHECKPOINT", "train", "--config", config, "--set", "data.split.count=1")
    assert not trace.exists()
    torch.load(checkpoint, weights_only=False) if zipped else pickle.loads(content.getvalue())
    assert trace.exists(), "the pickle is harmless: this test shows nothing"


def test_malicious_pickle_as_pretrained_weights(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name, save in (("a.pth", torch.save), ("b.pth", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        save({"model": {"stem": _Evil(trace)}}, tmp_path / name)
        config = _pretrained(tmp_path, tmp_path / name)
        _refused(tmp_path, 65, "E_WEIGHTS", "train", "--config", config, "--set", "data.split.count=1")
        assert not trace.exists()


def test_malicious_pickle_as_model(tmp_path: Path) -> None:
    model, trace = save_random_model(tmp_path / "model"), tmp_path / "trace"
    torch.save({"w": _Evil(trace)}, model / "model.safetensors")
    _resum(model)
    _refused(tmp_path, 65, "E_MODEL", "infer", "--model", model, "--input", tmp_path, "--output", tmp_path / "out")
    assert not trace.exists()


# ---- texts


def test_yaml_alias_bomb(tmp_path: Path) -> None:
    """Ten names for ten of the line before, and so on: a billion words in some lines."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "data", 3))
    config.write_text("\n".join([*lines, config.read_text()]))
    assert "aliases" in _refused(tmp_path, 64, "E_CONFIG", "train", "--config", config)
    config.write_text("a: " + "[" * 100_000)
    _refused(tmp_path, 64, "E_CONFIG", "train", "--config", config)


def test_deeply_nested_json(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model")
    (tmp_path / "list.json").write_text("[" * 200_000)
    arguments = ["--model", model, "--input", tmp_path / "list.json", "--output", tmp_path / "out"]
    _refused(tmp_path, 65, "E_MANIFEST", "infer", *arguments)
    (model / "model.json").write_text('{"a":' * 200_000)
    _refused(tmp_path, 65, "E_MODEL", "infer", *arguments)


# ---- archives


@pytest.mark.parametrize("name", ["case.zip", "case.nii.gz", "case.nii", "case.mha"])
def test_zip_slip(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "in" / name
    archive.parent.mkdir()
    elsewhere = tmp_path / "elsewhere/escaped"  # of this test alone
    with zipfile.ZipFile(archive, "w") as content:
        for member in ("../escaped", "../../escaped", str(elsewhere), "..\\escaped", "case_a.nii.gz"):
            content.writestr(member, b"x")
    _refused(tmp_path, 65, "zip archive" if name != "case.zip" else "E_", "inspect", archive)
    _infer(tmp_path, archive, "E_FORMAT")
    assert not elsewhere.parent.exists()


def test_zip_slip_as_weights_and_case_list(tmp_path: Path) -> None:
    for name in ("w.pth", "list.json"):
        with zipfile.ZipFile(tmp_path / name, "w") as content:
            content.writestr("../escaped", b"x")
    config = _pretrained(tmp_path, tmp_path / "w.pth")
    _refused(tmp_path, 65, "E_WEIGHTS", "train", "--config", config, "--set", "data.split.count=1")
    _refused(tmp_path, 65, "E_MANIFEST", "inspect", tmp_path / "list.json")


# ---- sizes


def _resum(model: Path) -> None:
    """Make the card say that these are the weights."""
    card = json.loads((model / "model.json").read_text())
    card["weights_sha256"] = sha256(model / "model.safetensors")
    (model / "model.json").write_text(json.dumps(card))


def _safetensors(shape: list[int], size: int) -> bytes:
    head = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(64)


def test_safetensors_of_a_trillion_elements(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model")
    for content in (
        _safetensors([1 << 20, 1 << 20], 1 << 42), _safetensors([1 << 20, 1 << 20], 64), (1 << 40).to_bytes(8, "little") + b"{}",
    ):  # fmt: skip
        (model / "model.safetensors").write_bytes(content)
        _resum(model)
        _refused(tmp_path, 65, "E_MODEL", "infer", "--model", model, "--input", tmp_path, "--output", tmp_path / "out")
    (tmp_path / "w.safetensors").write_bytes(_safetensors([1 << 20, 1 << 20], 1 << 42))
    config = _pretrained(tmp_path, tmp_path / "w.safetensors")
    _refused(tmp_path, 65, "E_WEIGHTS", "train", "--config", config, "--set", "data.split.count=1")


def test_checkpoint_of_a_trillion_elements(tmp_path: Path) -> None:
    """A .pth whose pickle claims a storage of 2^40 numbers, and a tensor of as many in a storage of one."""
    for whole in (True, False):
        _large_pth(tmp_path / "w.pth", storage=whole)
        config = _pretrained(tmp_path, tmp_path / "w.pth")
        _refused(tmp_path, 65, "E_WEIGHTS", "train", "--config", config, "--set", "data.split.count=1")


def _large_pth(path: Path, *, storage: bool) -> None:
    saved = io.BytesIO()
    torch.save({"w": torch.zeros(1, 1)}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("data.pkl"):
                ones = [at for code, value, at in pickletools.genops(content) if code.name == "BININT1" and value == 1]
                edge = b"J" + (1 << 20).to_bytes(4, "little")
                count = b"\x8a\x06" + (1 << 40).to_bytes(6, "little") if storage else content[ones[0] : ones[0] + 2]
                for at, new in reversed(list(zip(ones[:3], (count, edge, edge), strict=True))):
                    content = content[:at] + new + content[at + 2 :]
            target.writestr(member, content)


def _claim(**network: Any) -> Callable[[dict[str, Any]], None]:
    return lambda card: card["network"].update(network)


@pytest.mark.parametrize(
    "claim",
    [
        _claim(dims=[1 << 16, 1 << 16]), _claim(dims=[1 << 40, 1 << 40]), _claim(depths=[1 << 16, 1 << 16]),
        _claim(depths=[1 << 40, 1]), _claim(window=1 << 12), _claim(stem_channels=1 << 16), _claim(in_channels=1 << 40),
        _claim(num_classes=1 << 40),
    ],
    ids=lambda claim: str(claim.__closure__[0].cell_contents),
)  # fmt: skip
def test_model_that_claims_a_network_larger_than_its_weights(tmp_path: Path, claim: Callable[[Any], None]) -> None:
    model = save_random_model(tmp_path / "model")
    card = json.loads((model / "model.json").read_text())
    claim(card)
    (model / "model.json").write_text(json.dumps(card))
    nifti(tmp_path / "in/p_a.nii.gz")
    nifti(tmp_path / "in/p_b.nii.gz")
    _refused(
        tmp_path, 65, "E_MODEL", "infer", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out"
    )


def test_gzip_bomb(tmp_path: Path) -> None:
    """A header of some voxels, and 8 GiB behind it in 8 MB."""
    bomb = tmp_path / "bomb.nii.gz"
    sound = gzip.decompress(nifti(tmp_path / "x.nii.gz", IMAGE).read_bytes())
    part = gzip.compress(bytes(1 << 26), 9)
    bomb.write_bytes(gzip.compress(sound) + part * 128)
    assert bomb.stat().st_size < 10_000_000
    _refused(tmp_path, 65, "E_SIZE", "inspect", bomb)
    _infer(tmp_path, bomb, "E_SIZE")


# ---- names


def test_hostile_names_in_a_case_list(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model")
    images = {c: str(nifti(tmp_path / f"in/{c}.nii.gz")) for c in "ab"}
    manifest = tmp_path / "in/list.json"
    arguments = ["--model", model, "--input", manifest, "--output", tmp_path / "out"]
    harmless = {"constructor"}
    for name in [*NAMES[::7], "../../escaped", "/escaped", "a\n", "run"]:
        manifest.write_text(json.dumps({"training": [{"id": name, "image": images}]}))
        if name not in harmless:
            _refused(tmp_path, 65, "E_MANIFEST", "infer", *arguments)
    for image in ("../../escaped.nii.gz", "in/../../../escaped.nii.gz", "a\0b", ""):
        manifest.write_text(json.dumps({"training": [{"id": "p", "image": {"a": image, "b": images["b"]}}]}))
        _refused(tmp_path, 65, "E_MANIFEST", "infer", *arguments)
    assert not (tmp_path / "out").exists()


def test_hostile_names_of_files(tmp_path: Path) -> None:
    """Each fails alone; the sound case among them is segmented, and all are named in valid UTF-8."""
    model, folder, out = save_random_model(tmp_path / "model"), tmp_path / "in", tmp_path / "out"
    usable = {name for name in NAMES if not name.startswith(".") and not set("/\0") & set(name) and len(name) < 200}
    usable.remove("constructor")  # a harmless one; those with a dot in front are hidden files, as everywhere
    usable |= {os.fsdecode(b"\xff\xfe"), "-rf", "$(touch trace)", "`touch trace`", "; touch trace"}
    for name in [*usable, "sound"]:
        for channel in "ab":
            nifti(folder / f"{name}_{channel}.nii.gz")
    _refused(tmp_path, 2, "E_MANIFEST", "infer", "--model", model, "--input", folder, "--output", out)
    failures = json.loads((out / "failures.json").read_text(encoding="utf-8"))
    assert len(failures) == len(usable)
    assert {failure["code"] for failure in failures} == {"E_MANIFEST"}
    assert {path.name for path in out.iterdir()} == {"sound.nii.gz", "sound.json", "run.json", "failures.json"}
    for name in (os.fsdecode(b"\xff\xfe"), "$(touch trace)"):
        channels = [item for c in "ab" for item in ("--channel", f"{c}={folder / f'{name}_{c}.nii.gz'}")]
        _refused(tmp_path, 65, "E_MANIFEST", "infer", "--model", model, *channels, "--output", out)
    assert not list(tmp_path.rglob("trace"))

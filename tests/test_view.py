"""``cmt-med view``: the page works, and nobody but its user gets anything."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmt_med.base.errors import EXIT_DATA, EXIT_USAGE
from cmt_med.evaluate import evaluate
from cmt_med.launch.command import run_command
from cmt_med.reports.sources import find_source
from cmt_med.reports.viewer import viewer_script
from cmt_med.reports.viewing import listen, make_server
from cmt_med.view import view
from tests.browser import check_layers, chromium, console, require_browser, wait_for, wait_for_case
from tests.helpers import tiny_dataset
from tests.hostile import NAMES
from tests.reports.test_hostile_names import hostile_report
from tests.reports.test_report_page import damaged_predictions

TOKEN = "t" * 43
STUB = "/* stands for the viewer's script */"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``d/dataset.json``, predictions of it in ``p``, their report in ``r``, and a run folder ``run``."""
    folder = tmp_path_factory.mktemp("view")
    manifest = tiny_dataset(folder / "d", cases=4)
    predictions = damaged_predictions(manifest, folder / "p", {"ball": [1]})
    arguments = ["--predictions", str(predictions), "--references", str(manifest), "--output", str(folder / "r")]
    assert run_command(evaluate, arguments) == 0
    content = json.loads(manifest.read_text())
    for entry in content["training"]:
        entry["image"] = {name: str(folder / "d" / file) for name, file in entry["image"].items()}
        entry["label"] = str(folder / "d" / entry["label"])
    (folder / "run").mkdir()
    (folder / "run/held_out.json").write_text(json.dumps(content))
    shutil.copytree(predictions, folder / "run/validation")
    arguments[-1] = str(folder / "run/report")
    assert run_command(evaluate, arguments) == 0
    return folder


@contextmanager
def served(folder: Path, script: str = STUB, images: Path | None = None) -> Iterator[int]:
    """A server of ``folder`` with ``TOKEN``; gives the port."""
    with listen(0) as listening:
        port = listening.getsockname()[1]
        server = make_server(find_source(folder, images), script, token=TOKEN, port=port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(10)


def get(port: int, path: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("kind", ["run", "run/report", "r", "p"])
def test_every_kind_of_folder_is_served(folders: Path, kind: str) -> None:
    images = folders / "d/dataset.json" if kind == "p" else None
    with served(folders / kind, images=images) as port:
        status, page, headers = get(port, f"/{TOKEN}/")
        assert status == 200
        assert b"case0" in page
        assert "script-src 'self'" in headers["content-security-policy"]
        cases = json.loads(get(port, f"/{TOKEN}/cases.json")[1])
        assert len(cases["cases"]) == 4
        assert [label["name"] for label in cases["labels"]] == ["ball"]
        details = json.loads(get(port, f"/{TOKEN}/case/0")[1])
        assert [image["name"] for image in details["images"]] == ["a", "b"]
        for layer in ("prediction", "reference", "image/1"):
            status, content, _ = get(port, f"/{TOKEN}/case/0/{layer}")
            assert status == 200
            assert nib.Nifti1Image.from_bytes(content).shape == (18, 15, 20)


def test_the_worst_case_comes_first(folders: Path) -> None:
    source = find_source(folders / "run")
    assert source.report is not None
    scores = [source.report.cases[case.name]["ball"]["dice"] for case in source.listing.cases]
    assert scores == sorted(scores)


def test_an_inference_folder_alone_shows_its_label_maps(folders: Path) -> None:
    with served(folders / "p") as port:
        details = json.loads(get(port, f"/{TOKEN}/case/0")[1])
        assert details["reference"] is None
        image = nib.Nifti1Image.from_bytes(get(port, f"/{TOKEN}/case/0/image/0")[1])
        assert not np.asarray(image.dataobj).any()


# ---- what is refused


def hostile_requests(port: int) -> dict[str, bytes]:
    """60 requests by what is wrong with them."""
    good = f"GET /{TOKEN}/cases.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    requests: dict[str, str] = {}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{port}", "",
                 f"127.0.0.1:{port}@evil.example", f"[::1]:{port}", f"0.0.0.0:{port}", f"127.1:{port}"):  # fmt: skip
        requests[f"host {host!r}"] = f"GET /{TOKEN}/cases.json HTTP/1.1\r\nHost: {host}\r\n"
    requests["two hosts"] = good + "Host: evil.example\r\n"
    requests["no host"] = f"GET /{TOKEN}/cases.json HTTP/1.1\r\n"
    for origin in ("http://evil.example", "null", "https://127.0.0.1", f"https://127.0.0.1:{port}", "http://127.0.0.1:1",
                   f"http://localhost:{port}.evil.example", "file://", f"http://127.0.0.1:{port}/x"):  # fmt: skip
        requests[f"origin {origin}"] = good + f"Origin: {origin}\r\n"
    for site in ("cross-site", "same-site", "nonsense"):
        requests[f"fetched from {site}"] = good + f"Sec-Fetch-Site: {site}\r\n"
    page = good.replace("cases.json", "")
    requests["framed by another site"] = (
        page + "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n"
    )
    requests["fetched page"] = page + "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"
    requests["part as a page"] = (
        good + "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
    )
    for path in ("/", "/cases.json", "/case/0", "/case/0/prediction", "//cases.json", f"/{TOKEN[:-1]}/cases.json",
                 f"/{TOKEN}x/cases.json", f"/{TOKEN.upper()}/cases.json", "/%74/cases.json", f"/x/{TOKEN}/cases.json",
                 f"/?token={TOKEN}", "/viewer.js"):  # fmt: skip
        requests[f"token {path}"] = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    for path in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "....//etc/passwd", "/etc/passwd",
                 "case/0/../../etc/passwd", "case/-1", "case/0x0", "case/99999", "case/0/image/999", "case/0/image/-1",
                 "case/0/secret", "case/case0", "cases.json?file=/etc/passwd", "cases.json%00", "docs", "openapi.json",
                 "file:///etc/passwd"):  # fmt: skip
        requests[f"path {path}"] = f"GET /{TOKEN}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        requests[f"method {method}"] = good.replace("GET", method, 1)
    requests["method made up"] = good.replace("GET", "FROB", 1)
    requests["long path"] = f"GET /{TOKEN}/{'a' * 5000} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    requests["long header"] = good + f"X: {'a' * 100_000}\r\n"
    requests["body"] = good + "Content-Length: 1000000000000\r\n"
    requests["chunked body"] = good + "Transfer-Encoding: chunked\r\n"
    requests["websocket"] = good + "Upgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://evil.example\r\n"
    ended = {name: (text + "Connection: close\r\n\r\n").encode() for name, text in requests.items()}
    ended["many headers"] = (good + "".join(f"X-{i}: 1\r\n" for i in range(200)) + "\r\n").encode()
    ended["not HTTP"] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n"
    return ended


def send_raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:  # closed on a request that is too long
            pass
        return answer


def test_60_hostile_requests_get_nothing(folders: Path) -> None:
    with served(folders / "run") as port:
        secret = get(port, f"/{TOKEN}/cases.json")[1]
        requests = hostile_requests(port)
        assert len(requests) >= 60
        for name, request in requests.items():
            answer = send_raw(port, request)
            status = re.match(rb"HTTP/1.1 (\d+)", answer)
            assert status is None or 400 <= int(status[1]) < 500, f"{name}: {answer[:200]!r}"
            assert b"root:" not in answer
            assert secret not in answer
            assert b"case0" not in answer, name
        assert get(port, f"/{TOKEN}/cases.json")[1] == secret  # and it still serves
    print(f"{len(requests)} hostile requests, none served")


def test_it_listens_on_this_machine_alone() -> None:
    with listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_names_and_files_of_a_hostile_report(tmp_path: Path) -> None:
    report = hostile_report(tmp_path)
    listing = json.loads((report / "volumes.json").read_text())
    listing["cases"][0]["prediction"] = "/etc/passwd"
    (report / "volumes.json").write_text(json.dumps(listing))
    with served(report) as port:
        page = get(port, f"/{TOKEN}/")[1].decode()
        assert page.count("<script") == 1
        assert "onerror=window" not in page.replace("&lt;img src=x onerror=window", "")
        at = [c["title"] for c in json.loads(get(port, f"/{TOKEN}/cases.json")[1])["cases"]]
        assert len(at) == len(NAMES)
        answers = [get(port, f"/{TOKEN}/case/{i}") for i in range(len(NAMES))]
        assert sorted({status for status, _, _ in answers}) == [200, 422]
        assert all(b"root:" not in content for _, content, _ in answers)
        assert sum(status == 422 for status, _, _ in answers) == 1


# ---- the page and the command


def test_the_page_works_in_chromium(folders: Path) -> None:
    require_browser()
    script = viewer_script()
    assert script is not None
    with served(folders / "run", script) as port, chromium(offline=False) as driver:
        driver.get(f"http://127.0.0.1:{port}/{TOKEN}/")
        wait_for_case(driver, 0)
        print(check_layers(driver))
        driver.find_element("tag name", "body").send_keys("n")
        wait_for_case(driver, 1)
        driver.find_elements("css selector", "button[data-case]")[3].click()
        wait_for_case(driver, 3)
        assert console(driver) == []


@contextmanager
def command_running(command: list[str], environment: Mapping[str, str] = os.environ) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive its test."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_prints_an_address(folders: Path) -> None:
    require_browser()  # and with it the built viewer
    command = [sys.executable, "-m", "cmt_med.view", str(folders / "run"), "--no-browser"]
    with command_running(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w-]{43}/)", line)
        assert found, line
        assert get(int(found[1]), found[2])[0] == 200
        assert get(int(found[1]), "/")[0] == 403
        time.sleep(0.2)
        process.send_signal(2)
        assert process.wait(20) == 0


def test_the_browser_is_given_a_private_file(folders: Path, tmp_path: Path) -> None:
    """No command line has the token; the file that leads to the address does, and goes when the command ends."""
    require_browser()
    given = tmp_path / "given"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/writing\nmv {tmp_path}/writing {given}\n')
    opener.chmod(0o700)
    command = [sys.executable, "-m", "cmt_med.view", str(folders / "run")]
    environment = os.environ | {"BROWSER": f"{opener} %s", "TMPDIR": str(tmp_path)}
    with command_running(command, environment) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/([\w-]{43})/", process.stdout.readline())
        assert found
        end = time.monotonic() + 60
        while not given.exists() and time.monotonic() < end:
            time.sleep(0.1)
        address = given.read_text().strip()
        assert re.fullmatch(r"file:///\S+/cmt_med_view_\w+\.html", address)
        assert found[1] not in address
        page = Path(address.removeprefix("file://"))
        assert page.stat().st_mode & 0o777 == 0o600
        assert found[0] in page.read_text()
        with chromium(offline=False) as driver:
            driver.get(address)
            wait_for(driver, lambda: driver.current_url == found[0])
            wait_for_case(driver, 0)
            assert console(driver) == []
        process.send_signal(2)
        assert process.wait(20) == 0
        assert not page.exists()


def test_without_the_viewer_the_error_says_how_to_get_it(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cmt_med.reports.viewing.viewer_script", lambda: None)
    assert run_command(view, [str(folders / "run"), "--no-browser"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert all(part in message for part in ("E_VIEWER", "where:", "why:", "make viewer"))


def test_without_the_extra_the_error_says_how_to_get_it(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cmt_med.reports.viewing.viewer_script", lambda: STUB)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_command(view, [str(folders / "run"), "--no-browser"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert all(part in message for part in ("E_VIEWER", "where:", "why:", "pip install 'cmt_med[serve]'"))


def test_a_folder_with_nothing_to_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_med.reports.viewing.viewer_script", lambda: STUB)
    assert run_command(view, [str(tmp_path), "--no-browser"]) == EXIT_DATA
    assert run_command(view, [str(tmp_path / "absent"), "--no-browser"]) == EXIT_DATA


@pytest.mark.fault(19)
@pytest.mark.parametrize("begun", [b"", b"GET /"])
def test_connections_that_ask_for_nothing_block_nobody(folders: Path, begun: bytes) -> None:
    with served(folders / "r") as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
        for connection in idle:
            connection.sendall(begun)
        status, page, _ = get(port, f"/{TOKEN}/")
        assert status == 200
        assert b"case0" in page
        for connection in idle:
            with connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # closed; a timeout would be an error
        assert get(port, f"/{TOKEN}/cases.json")[0] == 200


@pytest.mark.fault(19)
def test_half_a_second_request_is_not_waited_for(folders: Path) -> None:
    with served(folders / "r") as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"GET /{TOKEN}/page.css HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(b"GET /")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass

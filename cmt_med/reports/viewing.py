"""A page with cases, scores and volumes, served to this machine alone: ``cmt-med view``."""

from __future__ import annotations

import contextlib
import secrets
import socket
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmt_med.base.errors import EXIT_DONE, ConfigError, DataError
from cmt_med.base.files import private_file
from cmt_med.base.text import counted, visible
from cmt_med.reports.sources import Source, find_source
from cmt_med.reports.viewer import HOW_TO_BUILD, viewer_script

ADDRESS = "127.0.0.1"


def serve(folder: Path, *, images: Path | None = None, port: int = 0, browser: bool = True) -> int:
    """Serve the page until Ctrl-C, and return the exit code; arguments as of ``cmt-med view``.

    Raises:
        DataError: E_IO, E_REPORT; ConfigError: E_VIEWER, E_PORT.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), why="nothing can be shown",
                        fix="give a run, the --output of infer, or a report folder", code="E_IO")  # fmt: skip
    source = find_source(folder, images)
    script = viewer_script()
    if script is None:
        raise ConfigError("the viewer is not built", where="cmt_med/reports/assets/viewer.js",
                          why="the page would show nothing", fix=HOW_TO_BUILD, code="E_VIEWER")  # fmt: skip
    with listen(port) as listening:
        token = secrets.token_urlsafe(32)
        number = listening.getsockname()[1]
        server = make_server(source, script, token=token, port=number)
        address = f"http://{ADDRESS}:{number}/{token}/"
        print(
            f"{counted(len(source.listing.cases), 'case')} of {visible(source.title)}: {address}\nCtrl-C ends it",
            flush=True,
        )
        with contextlib.ExitStack() as stack:
            if browser:
                webbrowser.open(stack.enter_context(page_leading_to(address)).as_uri())
            with contextlib.suppress(KeyboardInterrupt):  # the usual end
                server.run(sockets=[listening])
    return EXIT_DONE


@contextlib.contextmanager
def page_leading_to(address: str) -> Iterator[Path]:
    """A page that only this user can read, and that leads to ``address``; it is removed on leaving.

    A browser is given this file: the command line of a process, where the address would stand else, can be read by all
    users of the machine, and the address has the token.
    """
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><title>cmt-med view</title>\n'
    with private_file(text, prefix="cmt_med_view_", suffix=".html") as page:
        yield page


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine alone.

    Raises:
        ConfigError: E_PORT, if the port cannot be had.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port {port} cannot be had", where="--port", why=error.strerror or str(error),
            fix="give another one, or leave --port out", code="E_PORT",
        ) from error  # fmt: skip
    return listening


def make_server(source: Source, script: str, *, token: str, port: int) -> Any:
    """A uvicorn server of the page, with small limits.

    Raises:
        ConfigError: E_VIEWER, if the extra is not installed.
    """
    try:
        import uvicorn

        from cmt_med.reports.connections import BoundedProtocol
        from cmt_med.reports.server import make_app
    except ImportError as error:
        raise ConfigError(
            "view needs packages that are not installed", where="cmt-med view", why=str(error),
            fix="pip install 'cmt_med[serve]'", code="E_VIEWER",
        ) from error  # fmt: skip
    config = uvicorn.Config(
        make_app(source, script, token=token, port=port), http=BoundedProtocol, ws="none", lifespan="off", log_level="warning",
        access_log=False, server_header=False, limit_concurrency=64, h11_max_incomplete_event_size=16_384,
        timeout_keep_alive=5, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)

"""Serves the page to this machine, from files of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import warnings
import webbrowser
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from experiments.dashboard.desk import Desk
from mechanisms.errors import BadInput
from mechanisms.llm.weights import cache_dir

HOST = "127.0.0.1"
SETTINGS = {
    "TELEMETRY_MIXPANEL_ENABLE": "false",
    "THEME_TITLE": "admarket",
    "THEME_SHOW_BANNER": "false",
    "ASSETS_FONTAWESOME_ENABLED": "false",
    "CHECK_HOOKS": "off",  # Mesa's own components break its rules
}
NEEDED = (
    "solara",
    "solara_assets",
    "altair",
)  # Mesa imports altair in any case


def serve(source: str | None, port: int, *, open_browser: bool, say: Callable[[str], None]) -> None:
    """Show a market or a finished run at http://127.0.0.1:PORT until interrupted.

    Args:
        source: see `Desk.of`.
        port: of this machine; 0 for one that is free.
        open_browser: open the page when it is there.
        say: told where the page is, once it is there.

    Raises:
        BadInput: the port is taken, solara is not installed, or see `Desk.of`.
    """
    lacking = next((name for name in NEEDED if find_spec(name) is None), None)
    if lacking:
        raise BadInput(
            f"the dashboard needs {lacking}, which is not installed; "
            'pip install "admarket[dashboard]"'
        )
    with _listening(port) as listening:
        desk = Desk.of(source, say)
        app = _app(desk)
        address = "http://{}:{}".format(*listening.getsockname())

        def ready() -> None:
            say(f"dashboard: {address} (Ctrl-C ends it)")
            if open_browser:
                webbrowser.open(address)

        _run(app, listening, ready)
        if desk.stage is not None:  # threads that play a market would keep the process up
            desk.stage.closed.set()


def _listening(port: int) -> socket.socket:
    """A socket bound to the port, so that nobody takes it while the market is made ready."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        raise BadInput(
            f"--port {port}: cannot be listened to ({error.strerror}); choose another, or 0"
        ) from None
    return bound


def _app(desk: Desk) -> Any:
    """The application that serves a page of the desk.

    Solara reads its settings when it is first imported: it keeps its files with ours, tells nobody
    that it runs, and shows the page of the module named.
    """
    os.environ["SOLARA_HOME"] = str(cache_dir() / "solara")
    os.environ["SOLARA_APP"] = "experiments.dashboard.page"
    os.environ |= {f"SOLARA_{name}": value for name, value in SETTINGS.items()}
    # it would rather have cookies that other sites may send, which is what it tells of
    warnings.filterwarnings("ignore", "Cookies with samesite=none")
    import solara.server.starlette

    from experiments.dashboard import page

    page.desk = desk
    return solara.server.starlette.app


def _run(app: Any, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until interrupted; `ready` is called, in a thread, once requests are answered."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.disable()  # threads of pages still open would tell at length what they miss
            await super().shutdown(sockets)

    server = Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))

    def tell_when_there() -> None:
        while not server.started and not server.should_exit:
            time.sleep(0.05)
        if server.started:
            ready()

    threading.Thread(target=tell_when_there, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        server.run(sockets=[listening])

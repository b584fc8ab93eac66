"""gunicorn's threaded worker, made to shut down in order."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

from gunicorn.util import close_graceful
from gunicorn.workers.gthread import ThreadWorker

from function import process

if TYPE_CHECKING:
    from types import FrameType

    from gunicorn.workers.gthread import TConn

    from function.lifecycle import Function

_NEXT_MILLISECONDS = 20
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 256 * 1024**2


class DrainingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """On SIGTERM: close the port at once, send waiting jobs away, let the running one finish, then stop the engine."""

    function: Function | None = None

    def load_wsgi(self) -> None:
        """Build the application and the function behind it."""
        super().load_wsgi()
        self.function = process.function()

    def run(self) -> None:
        """Serve until told to stop, then stop what the function started."""
        super().run()
        if self.function:
            self.function.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; in a thread, since a signal handler must not wait for a lock."""
        if self.alive and self.function:
            threading.Thread(target=self.function.drain, name="drain", daemon=True).start()
        super().handle_exit(sig, frame)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  (gunicorn's signature)
        """Close the listening sockets once the worker stops, so that new connections are refused, not left waiting."""
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                listener.close()

    def handle(self, conn: TConn) -> object:
        """Answer one connection and linger on its close here: on the main thread that would hold up every accept.

        A client that sends its next request as soon as it has the answer finds the same thread: the way back over the
        main thread costs more than parsing the request. Where there are more connections than threads, somebody may
        wait for one.

        A client that is still sending a refused body gets to read the refusal: the rest is skipped for a while.
        """
        kept = super().handle(conn)
        while kept is True and self.alive and self.nr_conns <= self.cfg.threads and _goes_on(conn):
            kept = super().handle(conn)
        if kept is False:
            close_graceful(conn.sock, timeout=_LINGER_SECONDS, max_drain=_LINGER_BYTES)
            # gunicorn's own close fails on a closed socket, and then it counts the connection as gone a second time: it
            # would not wait for the running job when it is told to end.
            conn.close = _close_nothing
        return kept


def _goes_on(conn: TConn) -> bool:
    """Whether the next request comes at once."""
    poller = select.poll()
    poller.register(conn.sock, select.POLLIN)
    return bool(poller.poll(_NEXT_MILLISECONDS))


def _close_nothing(*, graceful: bool = False) -> None:
    """What is left to close of a connection that is closed."""
    del graceful

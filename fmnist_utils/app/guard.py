"""What keeps the app calm: limits of requests in flight, of slow senders and of JSON, headers, small answers, and whom
it is for.

Explained in ``notebooks/07_deployment.ipynb``.
"""

import functools
import gzip
import ipaddress
import logging
import select
import socket
import threading
import time
from collections.abc import Collection

import flask
from dash import Dash
from dash.exceptions import DependencyException
from waitress.channel import HTTPChannel

#: Answers at once (the server has eight threads more, for everything else), and how many uploads of the largest size.
AT_ONCE, LARGE_AT_ONCE = 32, 6
#: Bytes of a request that are always read: whoever sends little need not wait for those who send much.
LITTLE = 100_000
#: Commas, colons and brackets of one JSON: a page sends a few thousand, and each may become an object of 50 bytes.
MAX_MARKS = 30_000
#: Seconds that the sending of one request may take, and one more for so many bytes: a slow phone is welcome.
SENDING, BYTES_A_SECOND = 30, 20_000


class Channel(HTTPChannel):
    """waitress's connection, which closes where one request takes too long to arrive, and stops reading a large one
    while too many bytes of unfinished requests are in memory; the oldest of them always goes on. Time in which what was
    sent waits for us is not the sender's.
    """

    unfinished: dict["Channel", int] = {}
    most = 100_000_000
    _began = _looked = 0.0

    def readable(self) -> bool:
        little = self.unfinished.get(self, 0) < LITTLE
        room = little or sum(self.unfinished.values()) < self.most or next(iter(self.unfinished)) is self
        now = time.monotonic()
        if not room and select.select([self.socket], [], [], 0)[0]:
            self._began += now - self._looked
            self.last_activity = time.time()
        self._looked = now
        return super().readable() and room

    def received(self, data: bytes) -> bool:
        now = time.monotonic()
        if self not in self.unfinished:
            self._began = now
        found = super().received(data)
        if self.request is None:
            self.unfinished.pop(self, None)
        else:
            self.unfinished[self] = arrived = self.unfinished.get(self, 0) + len(data)
            if now - self._began > SENDING + arrived / BYTES_A_SECOND:
                self.will_close = True
        return found

    def handle_close(self) -> None:
        self.unfinished.pop(self, None)
        super().handle_close()


def protect(app: Dash, hosts: Collection[str], most: int) -> None:
    """Give every answer of ``app`` its headers, pack it, and refuse unknown hosts, too much at once, and JSON that is
    all marks.

    ``hosts``: names under which it may be asked for, besides addresses in numbers and this computer's own; a page of
    another site could otherwise lead its own name here and read what is sent. ``most``: bytes of one request.
    """
    known = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}
    lock, working = threading.Lock(), {}

    def check():
        if not _known(flask.request.host, known):
            return "This app does not answer under that name. Start it with --allow-host NAME.", 403
        if flask.request.method != "POST":
            return None
        length = flask.request.content_length or 0
        with lock:
            if len(working) >= AT_ONCE or working and sum(working.values()) + length > LARGE_AT_ONCE * most:
                return "Too many people at once. Please try again in a moment.", 503
            working[threading.get_ident()] = length
        body = flask.request.get_data()
        if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > MAX_MARKS:
            return "That is no request of this page.", 413
        return None

    def free(_) -> None:
        with lock:
            working.pop(threading.get_ident(), None)

    hashes = " ".join(f"'{value}'" if not value.startswith("'") else value for value in app.csp_hashes())
    policy = (
        f"default-src 'self'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
               "X-Frame-Options": "DENY"}  # fmt: skip

    def dress(reply: flask.Response) -> flask.Response:
        reply.headers.update(headers)
        return _small(reply)

    def unknown(error: Exception):
        # Its words hold what was sent: in short, or somebody else could fill the disk with them.
        logging.getLogger(__name__).warning("Refused: %.200s", error)
        return "That is no request of this page.", 404 if isinstance(error, DependencyException) else 400

    for kind in (DependencyException, KeyError):
        app.server.register_error_handler(kind, unknown)
    app.server.before_request_funcs.setdefault(None, []).insert(0, check)
    app.server.teardown_request(free)
    app.server.after_request(dress)


def _small(reply: flask.Response) -> flask.Response:
    """Texts as gzip where the browser takes it: the scripts of a page become a quarter as long."""
    text = reply.mimetype.startswith("text/") or reply.mimetype in ("application/json", "application/javascript")
    wanted = flask.request.accept_encodings["gzip"] and flask.request.method != "HEAD"
    if not (text and wanted) or reply.status_code != 200 or reply.content_encoding:
        return reply
    reply.direct_passthrough = False  # a file is read, instead of being handed on
    if len(body := reply.get_data()) < 1_000:
        return reply
    # Scripts stay the same, so they are packed once; answers are all different.
    reply.set_data(_packed(body) if flask.request.method == "GET" else gzip.compress(body, 1, mtime=0))
    reply.headers["Content-Encoding"] = "gzip"
    reply.vary.add("Accept-Encoding")
    if etag := reply.get_etag()[0]:
        reply.set_etag(etag, weak=True)  # not the same bytes for everybody
    return reply


@functools.lru_cache(32)
def _packed(body: bytes) -> bytes:
    return gzip.compress(body, 6, mtime=0)


def _known(host: str, known: Collection[str]) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and host[-1] != "]" else host
    try:  # nobody can lead an address in numbers elsewhere
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".") in known
    return True

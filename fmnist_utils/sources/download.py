"""One file from the network, by a download that always ends: with the file, or soon with an error."""

from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from urllib.request import urlopen

#: A download ends where fewer than LEAST bytes come within TIMEOUT seconds, from looking up the server's address on.
TIMEOUT = 15.0
LEAST = 100_000


def download(url: str, path: Path, mirrors: int = 1) -> None:
    """Fetch ``url`` into the new file ``path`` and say so in one printed line.

    Raises ``OSError`` or ``http.client.HTTPException`` where that fails, among them ``TimeoutError`` after ``TIMEOUT``
    seconds in which nothing, or next to nothing, came. ``mirrors`` addresses of one file share that time. What arrived
    is not checked: that is up to the caller.
    """
    seconds, least = TIMEOUT / mirrors, LEAST / mirrors
    print(f"Downloading {url} (gives up after {seconds:g} s without an answer)", flush=True)
    parts, given_up = SimpleQueue(), Event()
    # In a thread, because a timeout of urlopen counts anew for each address, each step of a handshake and each byte.
    Thread(target=_fetch, args=(url, seconds, parts, given_up), daemon=True).start()
    try:
        with path.open("wb") as file:
            recent, deadline = 0, monotonic() + seconds
            while part := _next(parts, deadline):
                file.write(part)
                recent += len(part)
                if recent >= least:
                    recent, deadline = 0, monotonic() + seconds
    finally:
        given_up.set()


def _next(parts: SimpleQueue, deadline: float) -> bytes:
    try:
        part = parts.get(timeout=max(0.0, deadline - monotonic()))
    except Empty:
        raise TimeoutError("timed out: the server, or a proxy, sends next to nothing") from None
    if isinstance(part, Exception):
        raise part
    return part


def _fetch(url: str, seconds: float, parts: SimpleQueue, given_up: Event) -> None:
    try:
        with urlopen(url, timeout=seconds) as response:
            while part := response.read1(1 << 16):
                if given_up.is_set():
                    return
                parts.put(part)
        parts.put(b"")
    except Exception as error:  # raised again where the caller waits
        parts.put(error)

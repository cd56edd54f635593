"""A page to try the shipped models on: ``python -m fmnist_utils.app``, then open http://127.0.0.1:8050.

Upload, paste or draw a garment, or take a test image; the page shows the answer, the 28×28 pixels that the network got,
and where it looked. A second tab says how good the model is. Explained in ``notebooks/07_deployment.ipynb``; needs the
extra ``app``. What the models say is in :mod:`fmnist_utils.app.serving`; drawing and pasting in ``assets/app.js``.
"""

import argparse
import csv
import datetime
import functools
import logging
import re
import time
from collections.abc import Collection

import flask
import pandas as pd
import torch
import waitress
from dash import ClientsideFunction, Dash, Input, Output, State, set_props
from dash.exceptions import InvalidConfig

from fmnist_utils import check_name
from fmnist_utils.app import pages, quality, serving
from fmnist_utils.app.guard import AT_ONCE, LARGE_AT_ONCE, Channel, protect
from fmnist_utils.app.photos import STEPS, BadImage
from fmnist_utils.data import CLASSES
from fmnist_utils.models import WeightsUnavailable

MAX_PICTURES = 12
#: Where a formula could begin: some spreadsheets skip blanks of any kind before it, and some split at semicolons, tabs
#: and line ends, too, whatever is quoted.
_FORMULA = re.compile(
    r"""^(?=[\s"\ufeff\u200b]*[=+\-@＝＋－＠])|(?<=[;\t\r\n])(?=(?:[^\S\t\r\n]|["\ufeff\u200b])*[=+\-@＝＋－＠])"""
)


def create_app(model: str = "wide-resnet-16-4", max_upload: float = 10, hosts: Collection[str] = ()) -> Dash:
    """The page as a Dash app, with ``model`` loaded and warmed up; ``app.server`` is what a WSGI server takes.

    ``max_upload`` is the limit of one upload in MB (10⁶ bytes); ``hosts`` are names that the server has besides
    localhost and its addresses. Raises ``ValueError`` for an unknown model, and, with the name of the file, where one
    of any model is damaged, ``FileNotFoundError`` where it is missing.
    """
    serving.check_models()
    serving.answers(model, serving.gallery().images[:1])
    app = Dash(__name__, title="Which garment?", update_title=None, on_error=_say, suppress_callback_exceptions=True)
    # Dash's own footer holds scripts; the page has one of its own, and there may be only one.
    app.index_string = app.index_string.replace("<html>", '<html lang="en">').replace("footer>", "div>")
    needs = "<noscript>This page needs JavaScript: please switch it on.</noscript>"
    app.index_string = app.index_string.replace("<body>", f"<body>{needs}")
    app.layout = pages.page(model, max_upload, app.config.requests_pathname_prefix)
    # Base64 makes 4 bytes of 3; the rest of a request is names and ids, or the history.
    app.server.config["MAX_CONTENT_LENGTH"] = most = int(max_upload * 1e6 * 4 / 3) + 1_000_000
    _answer_unknown(app)
    health = f"{app.config.routes_pathname_prefix}health"
    app.server.add_url_rule(health, "health", lambda: {"status": "ok", "model": model})

    browser, once = functools.partial(ClientsideFunction, "page"), {"prevent_initial_call": True}
    app.clientside_callback(browser("upload"), Input("upload", "contents"), State("upload", "filename"), **once)
    app.clientside_callback(
        browser("route"), [Output(name, "hidden") for name in ("try", "quality", "lost")], Input("url", "pathname")
    )
    app.clientside_callback(
        browser("same"),
        [Output("model", "value"), Output("same-model", "value")],
        [Input("model", "value"), Input("same-model", "value")],
    )
    app.callback(
        [Output(name, "children") for name in ("results", "answer", "notice")] + [Output("rows", "data")],
        [Input("pictures", "data"), Input("steps", "value"), Input("model", "value")],
    )(functools.partial(_show, max_bytes=int(max_upload * 1e6)))
    # The browser alone holds the history: of two answers under way, neither can undo what the other has added.
    history = Output("history", "data")
    app.clientside_callback(browser("keep"), history, Input("rows", "data"), State("history", "data"), **once)
    again = Output("history", "data", allow_duplicate=True)
    app.clientside_callback(browser("forget"), again, Input("clear", "n_clicks"), **once)
    app.callback(Output("gallery", "children"), Input("others", "n_clicks"), **once)(pages.gallery)
    app.callback(Output("table", "children"), Input("history", "data"))(pages.history_table)
    app.callback(Output("download", "data"), Input("csv", "n_clicks"), State("history", "data"), **once)(_csv)
    app.callback(
        [Output("scores", "children"), Output("details", "children")],
        [Input("quality", "hidden"), Input("model", "value")],
    )(quality.scores)
    app.callback(Output("cell-images", "children"), Input("cell", "data"), Input("model", "value"))(quality.cell_images)
    protect(app, hosts, most)
    return app


def _answer_unknown(app: Dash) -> None:
    """Dash sends its page for every address: the page says that there is none, and so shall the status."""

    def status(reply: flask.Response) -> flask.Response:
        path = flask.request.path.removeprefix(app.config.routes_pathname_prefix).strip("/")
        if str(flask.request.endpoint).endswith("<path:path>") and path not in ("", "quality"):
            reply.status_code = 404
        return reply

    app.server.after_request(status)


def _say(error: Exception) -> None:
    """Every error of a callback ends here: a sentence in the page, and the unexpected ones in the server's log."""
    if not isinstance(error, BadImage):
        logging.getLogger(__name__).error("A callback failed", exc_info=error)
    unexpected = "Something went wrong here, not with you. The server's log says what."
    text = str(error) if isinstance(error, BadImage) else unexpected
    set_props("message", {"children": text})


# ------------------------------------------------------------------------------------------------------- the answer


def _show(pictures: list | None, steps: list, model: str, max_bytes: int):
    """Cards for the pictures, the answer in a line, what went wrong, and rows for the history, newest first."""
    if not pictures:
        return pages.EMPTY, "", "", {"rows": [], "at": time.time()}
    message = f"Showing the first {MAX_PICTURES} of {len(pictures)} pictures." if len(pictures) > MAX_PICTURES else ""
    read = []
    for sent in pictures[:MAX_PICTURES]:
        try:
            read.append(serving.read(sent, steps, max_bytes))
        except BadImage as error:
            read.append(error)
    return serving.at_work(_answered, pictures, read, steps, model, message)


def _answered(pictures: list, read: list, steps: list, model: str, message: str):
    """:func:`_show` for what has been read: a picture, or why it is none."""
    good = [picture for picture in read if not isinstance(picture, BadImage)]
    found = iter(serving.answers(model, torch.stack([picture.pixels for picture in good])) if good else [])
    cards, rows, lines, doubts = [], [], [], 0
    for sent, picture in zip(pictures, read, strict=False):
        name = str(sent.get("name"))[:100]
        if isinstance(picture, BadImage):
            cards.append(pages.bad_card(name, str(picture), short=len(read) > 1))
            continue
        answer = next(found)
        cards.append(pages.answer_card(name, picture, answer, str(sent.get("id")), model, short=len(read) > 1))
        rows.append(_row(sent, name, picture, answer, model, steps))
        lines.append(" ".join(pages.headline(picture, answer)))
        doubts += bool(rows[-1]["warning"])
    line = " · ".join(lines[:2]) or "Not a picture I can read"
    if len(lines) > 2:
        line += f" · {len(lines) - 2} more" + f", {doubts} with a warning" * bool(doubts)
    return cards, line, message, {"rows": rows[::-1], "at": time.time()}


def _row(sent: dict, name: str, picture: serving.Picture, answer: serving.Answer, model: str, steps: list) -> dict:
    best = int(answer.probabilities.argmax())
    return {
        "id": sent.get("id"),
        "index": sent.get("index", ""),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": name,
        "model": model,
        "answer": CLASSES[best],
        "confidence": round(float(answer.probabilities[best]), 4),
        "warning": (serving.warning(picture, answer) or ("",))[0],
        "share_as_unusual": round(answer.share, 4),
        "label": "" if picture.label is None else CLASSES[picture.label],
        "steps_off": " ".join(step for step in STEPS if step not in steps),
        "image": serving.data_url(picture.pixels),
    } | {name: round(float(p), 4) for name, p in zip(CLASSES, answer.probabilities, strict=True)}


def _csv(_, history: list | None):
    """The history as a CSV file; no cell begins as a spreadsheet's formula would."""
    if not (history := pages.sound(history)):
        raise BadImage("There is nothing to download yet: try a picture first.")
    table = pd.DataFrame(history).drop(columns=["id", "index", "image"], errors="ignore")
    texts = table.select_dtypes(exclude="number").columns
    table[texts] = table[texts].map(lambda cell: _FORMULA.sub("'", cell) if isinstance(cell, str) else cell)
    text = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    # Without the mark at its beginning, Excel takes the names for another encoding.
    return {"content": "\ufeff" + text, "filename": "predictions.csv", "type": "text/csv"}


# ------------------------------------------------------------------------------------------------- the command line


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fmnist_utils.app", description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to serve; 0.0.0.0 for every network (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8050, help="0 takes a free one (8050)")
    parser.add_argument("--model", default="wide-resnet-16-4", help="chosen at first, in data/models (%(default)s)")
    parser.add_argument("--max-upload", type=float, default=10, help="MB of one upload (10)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a name by which people open the page, such as a proxy's; may be repeated")  # fmt: skip
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port {arguments.port}: take a number from 0 to 65535.")
    if not 0 < arguments.max_upload <= 1000:
        parser.error(f"--max-upload {arguments.max_upload:g}: take more than 0 and at most 1000 MB.")
    began = time.perf_counter()
    serving.one_core_each()
    try:
        check_name("model", arguments.model, tuple(serving.cards()))
        app = create_app(arguments.model, arguments.max_upload, [arguments.host, *arguments.allow_host])
    except (ValueError, OSError, WeightsUnavailable) as error:
        parser.error(str(error))
    except InvalidConfig as error:
        parser.error(f"{error}: set DASH_URL_BASE_PATHNAME to something like /shop/, or to nothing.")
    server = _listen(app, arguments, parser)
    # "localhost" can be two addresses, and "everywhere" none that a browser opens.
    port = server.effective_port if hasattr(server, "effective_port") else server.effective_listen[0][1]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    host = f"[{host}]" if ":" in host else host
    address = f"http://{host}:{port}{app.config.requests_pathname_prefix.rstrip('/')}"
    print(f"ready {time.perf_counter() - began:.1f} s after imports: {address} (Ctrl+C stops it)", flush=True)
    server.run()


def _listen(app: Dash, arguments: argparse.Namespace, parser: argparse.ArgumentParser):
    """waitress, bound to its address, with limits of time, connections and memory."""
    most = app.server.config["MAX_CONTENT_LENGTH"]
    # A browser asks for a dozen files at once, and each that waits a moment would be a warning.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    Channel.most = LARGE_AT_ONCE * most
    sockets = {}
    try:
        # Bodies and answers stay in memory: waitress would put larger ones into temporary files.
        server = waitress.create_server(
            app.server, map=sockets, host=arguments.host, port=arguments.port, threads=AT_ONCE + 8,
            max_request_body_size=most, inbuf_overflow=2 * most, outbuf_overflow=100_000_000,
            # A browser keeps six connections open: idle ones must go before everybody else has to wait.
            connection_limit=400, channel_timeout=15, cleanup_interval=5,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        where = f"{arguments.host}, port {arguments.port}"
        parser.error(
            f"cannot serve at {where} ({error}). Is it in use? Try another --port, or --port 0 for a free one."
        )
    for listening in sockets.values():  # several where a name has several addresses
        listening.channel_class = Channel
    return server

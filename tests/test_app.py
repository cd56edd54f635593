"""The app as people use it: a real server, a real browser, real pictures. The browser tests also make the screenshots.

``FMNIST_SCREENSHOTS=results/figures python -m pytest tests/test_app.py`` writes the pictures that notebook 07 shows.
"""

import base64
import contextlib
import csv
import gc
import gzip
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score

from fmnist_utils import ROOT
from fmnist_utils.data import CLASSES, load
from fmnist_utils.evaluate import reliability
from fmnist_utils.results import load_predictions

for package in ("dash", "waitress", "captum"):
    pytest.importorskip(package, reason='needs the extra "app"')

TEST = load("test")
RECORDED = load_predictions("small-cnn-full")
CORRECT = np.flatnonzero((RECORDED.argmax(1) == TEST.labels.numpy()) & (RECORDED.max(1) > 0.95))


def sure_example(name: str) -> int:
    """A test image of this class that the small CNN gets right without doubt."""
    return int(next(i for i in CORRECT if TEST.labels[i] == CLASSES.index(name)))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(name: str) -> Image.Image:
    return Image.fromarray(TEST.images[sure_example(name)].numpy())


def photo(name: str) -> bytes:
    """A dark garment, small and off centre on nearly white paper, as JPEG."""
    garment = grey(name).resize((420, 420), Image.Resampling.BICUBIC)
    paper = Image.new("L", (900, 700), 245)
    paper.paste(garment.point(lambda value: 245 - 0.8 * value), (60, 200))
    return encoded(paper.convert("RGB"), "JPEG", quality=85)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, process) of the app in a process of its own, whose folder for temporary files must stay empty."""
    folder = tmp_path_factory.mktemp("temporary")
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    log = (tmp_path_factory.mktemp("log") / "log").open("w+")
    command = [sys.executable, "-m", "fmnist_utils.app", "--port", "0", "--model", "small-cnn"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        log.seek(0)
        assert found, line + log.read()
        yield found[0], psutil.Process(process.pid)
        assert process.poll() is None
        assert not [path for path in folder.rglob("*") if path.is_file()]  # torch makes itself an empty folder
        log.seek(0)
        assert "A callback failed" not in log.read()
    finally:
        process.terminate()
        process.wait(30)
        log.close()


# ------------------------------------------------------------------------------------------- what the server answers


def ask(server, *pictures: dict, model: str = "small-cnn", steps: list | None = None):
    """The server's answer to what the page sends, as text without escapes, and as JSON."""
    steps = ["orientation", "transparency", "background", "crop", "aspect", "centre"] if steps is None else steps
    inputs = [("pictures", "data", list(pictures)), ("steps", "value", steps), ("model", "value", model)]
    outputs = [("results", "children"), ("answer", "children"), ("notice", "children"), ("rows", "data")]
    body = {
        "output": f"..{'...'.join('.'.join(output) for output in outputs)}..",
        "outputs": [{"id": name, "property": what} for name, what in outputs],
        "inputs": [{"id": name, "property": what, "value": value} for name, what, value in inputs],
        "state": [],
        "changedPropIds": ["pictures.data"],
    }
    status, text = post(server, json.dumps(body).encode())
    assert status == 200, text
    found = json.loads(text)
    return json.dumps(found, ensure_ascii=False), {**found["response"], **found.get("sideUpdate", {})}


def post(server, body: bytes) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server[0]}/_dash-update-component", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def sent(data: bytes, name: str = "picture.png") -> dict:
    return {"id": "1", "name": name, "data": "data:image/png;base64," + base64.b64encode(data).decode()}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


SHIRT = encoded(grey("Shirt").resize((100, 100)))
BAD = {
    "not an image": (b"one, two, three", "not a picture"),
    "truncated": (SHIRT[: len(SHIRT) // 2], "damaged or incomplete"),
    "empty": (b"", "empty"),
    "100 megapixels": (encoded(Image.new("1", (10_000, 10_000))), "megapixels"),
    "bomb": (huge_png(60_000), "megapixels"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    "HTML": (b"<html><script>alert(1)</script></html>", "not a picture"),
    "1x1": (encoded(Image.new("L", (1, 1))), "too few"),
    "over the limit": (bytes(10_200_000), "limit"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_gets_a_sentence(server, kind):
    data, expected = BAD[kind]
    before = server[1].memory_info().rss
    text, found = ask(server, sent(data, "holiday.png"))
    assert expected in text and "holiday.png" in text and "Traceback" not in text
    assert found["rows"]["data"]["rows"] == []
    assert server[1].memory_info().rss - before < 300e6


def test_wrong_base64_gets_a_sentence(server):
    text, _ = ask(server, {"id": "1", "name": "x.png", "data": "data:image/png;base64,@@@"})
    assert "arrived damaged" in text


GOOD = {
    "animated": encoded(
        grey("Bag").resize((100, 100)), "GIF", save_all=True, append_images=[Image.new("L", (100, 100))]
    ),
    "16 bit": encoded(Image.fromarray(np.asarray(grey("Bag").resize((100, 100)), np.uint16) * 257)),
    "CMYK": encoded(grey("Bag").resize((100, 100)).convert("RGB").convert("CMYK"), "JPEG"),
    "palette": encoded(grey("Bag").resize((100, 100)).convert("P")),
}


@pytest.mark.parametrize("kind", GOOD)
def test_unusual_but_sound_file_is_read(server, kind):
    _, found = ask(server, sent(GOOD[kind]))
    assert [row["answer"] for row in found["rows"]["data"]["rows"]] == ["Bag"]


def test_probabilities_are_the_recorded_ones(server):
    chosen = [int(i) for i in CORRECT[:12]]
    for pictures in (
        [{"index": i} for i in chosen],
        [sent(encoded(Image.fromarray(TEST.images[i].numpy()))) for i in chosen],
    ):
        _, found = ask(server, *(picture | {"id": str(i)} for i, picture in enumerate(pictures)))
        rows = found["rows"]["data"]["rows"][::-1]
        assert len(rows) == 12
        np.testing.assert_allclose([[row[name] for name in CLASSES] for row in rows], RECORDED[chosen], atol=0.01)


def test_warns_of_what_is_no_garment(server):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8))
    for image, unusual in ((noise, True), (grey("Coat"), False)):
        _, found = ask(server, sent(encoded(image)))
        row = found["rows"]["data"]["rows"][0]
        assert bool(row["warning"]) == (row["share_as_unusual"] < 0.01) == unusual
        assert row["warning"] in found["answer"]["children"].lower()


def test_one_bad_file_spoils_no_others_and_too_many_are_cut(server):
    text, found = ask(server, sent(b"junk", "junk.png"), *({"id": str(i), "index": i} for i in range(14)))
    assert len(found["results"]["children"]) == 12 and "first 12 of 15" in found["notice"]["children"]
    assert len(found["rows"]["data"]["rows"]) == 11 and "junk.png" in text


def test_path_in_a_name_is_only_text(server):
    text, found = ask(server, sent(encoded(grey("Coat")), "../../etc/passwd.png"))
    assert found["rows"]["data"]["rows"][0]["name"] == "../../etc/passwd.png" and "root:" not in text


@pytest.mark.parametrize("picture", [{"index": 10_000}, {"index": "0"}, {"index": -1}])
def test_test_image_that_does_not_exist(server, picture):
    assert "no test image" in ask(server, picture)[0]


def test_health_and_too_large_or_meaningless_requests(server):
    with urllib.request.urlopen(f"{server[0]}/health") as reply:
        assert json.load(reply) == {"status": "ok", "model": "small-cnn"}
    for body in (b"junk", b"[]", b'{"output": "x.y", "inputs": []}'):
        status, text = post(server, body)
        assert status >= 400 and "Traceback" not in text and str(ROOT) not in text
    try:
        status, _ = post(server, bytes(50_000_000))
    except (urllib.error.URLError, ConnectionError):  # refused while it was still being sent
        status = 413
    assert status == 413


def test_open_connections_of_other_people_block_nobody(server):
    host, port = server[0].removeprefix("http://").split(":")
    opened = [http.client.HTTPConnection(host, int(port), timeout=30) for _ in range(60)]
    try:
        for connection in opened:  # each stays open after its answer, as a browser's do
            connection.request("GET", "/health")
            assert connection.getresponse().read()
    finally:
        for connection in opened:
            connection.close()


def test_own_model_without_a_card_is_shown(monkeypatch, tmp_path):
    from fmnist_utils.app import pages, quality, serving
    from fmnist_utils.checkpoints import load_model, save_model

    save_model(load_model(serving.MODELS / "small-cnn"), tmp_path / "mine")
    monkeypatch.setattr(serving, "MODELS", tmp_path)
    serving.cards.cache_clear()
    try:
        page = json.dumps(pages.page("mine", 10).to_plotly_json(), default=lambda part: part.to_plotly_json())
        assert page.count("not recorded") == 3  # accuracy, data, licence
        assert "No test predictions" in str(quality.scores(False, "mine"))
    finally:
        serving.cards.cache_clear()


@pytest.mark.parametrize(
    ("recorded", "said"),
    [(FileNotFoundError("none"), "No test predictions"), (ValueError("a.npz cannot be used"), "a.npz cannot be used"),
     (np.full((200, 10), 0.1, np.float32), "of 200 images only")],
)  # fmt: skip
def test_quality_of_a_model_without_all_test_predictions_is_a_sentence(recorded, said, monkeypatch):
    from fmnist_utils.app import quality, serving

    def found(name):
        if isinstance(recorded, Exception):
            raise recorded
        return recorded

    monkeypatch.setattr(serving, "recorded", found)
    assert said in str(quality.scores(False, "small-cnn"))
    assert quality.cell_images([6, 4], "small-cnn") is None  # of a number chosen for another model before


def test_own_model_is_judged_by_the_predictions_of_its_own_run(monkeypatch, tmp_path):
    from fmnist_utils.app import serving
    from fmnist_utils.checkpoints import load_model, save_model
    from fmnist_utils.results import save_result

    model, uniform = load_model(serving.MODELS / "small-cnn"), np.full((3, 10), 0.1)
    save_model(model, tmp_path / "mine", recipe="mine", profile="smoke")
    metrics, seconds = {"test_accuracy": 0.1, "macro_f1": 0.1}, {"total": 1.0}
    settings = {"train_images": 3, "history": pd.DataFrame(), "metrics": metrics, "seconds": seconds}
    save_result("mine", model, **settings, predictions={"test": uniform}, folder=tmp_path / "runs")
    monkeypatch.setattr(serving, "MODELS", tmp_path)
    monkeypatch.setattr(serving, "ROOT", tmp_path)
    serving.cards.cache_clear()
    try:
        np.testing.assert_allclose(serving.recorded("mine"), uniform, atol=1e-3)
    finally:
        serving.cards.cache_clear()
        serving.recorded.cache_clear()


@pytest.mark.parametrize(
    ("host", "shown"), [("localhost", "localhost"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_printed_address_can_be_opened(host, shown, monkeypatch, capsys):
    import waitress

    from fmnist_utils.app import server as app

    class Server:
        effective_port, effective_listen = 5, [("127.0.0.1", 5), ("::1", 6)]

        def run(self):
            pass

    if host == "localhost":  # several addresses: waitress's server has no port of its own
        del Server.effective_port
    monkeypatch.setattr(waitress, "create_server", lambda *_, **__: Server())
    monkeypatch.setattr(sys, "argv", ["app", "--host", host, "--port", "0"])
    app.main()
    assert f"http://{shown}:5 (" in capsys.readouterr().out


def test_default_model_is_the_most_accurate_one(monkeypatch, capsys):
    from fmnist_utils.app import server as app
    from fmnist_utils.app import serving

    best = max(serving.cards(), key=lambda name: serving.cards()[name]["metrics"]["test_accuracy"])
    assert app.create_app().server.test_client().get("/health").json["model"] == best

    def name_it(model, *_):
        raise ValueError(f"asked for {model}")

    monkeypatch.setattr(app, "create_app", name_it)
    monkeypatch.setattr(sys, "argv", ["app"])
    with pytest.raises(SystemExit):
        app.main()
    assert f"asked for {best}" in capsys.readouterr().err


def test_error_of_ours_is_logged_and_gets_a_sentence(caplog):
    from fmnist_utils.app.server import create_app

    client = create_app().server.test_client()
    body = {"output": "cell-images.children", "outputs": {"id": "cell-images", "property": "children"},
            "inputs": [{"id": "cell", "property": "data", "value": ["x"]},
                       {"id": "model", "property": "value", "value": "small-cnn"}],
            "changedPropIds": ["cell.data"]}  # fmt: skip
    reply = client.post("/_dash-update-component", json=body)
    assert "server's log says what" in reply.text and "Traceback" not in reply.text
    assert "A callback failed" in caplog.text and "ValueError" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "small-cn"], "Did you mean 'small-cnn'?"),
        (["--port", "99999"], "0 to 65535"),
        (["--max-upload", "0"], "more than 0"),
        (["--port", "USED"], "cannot serve at 127.0.0.1"),
    ],
)
def test_command_line_mistakes(server, arguments, message, monkeypatch, capsys):
    from fmnist_utils.app import server as app

    used = server[0].rpartition(":")[2]
    monkeypatch.setattr(sys, "argv", ["app", *(argument.replace("USED", used) for argument in arguments)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
    del stop
    gc.collect()  # a socket that waitress could not bind warns when it is collected: here, and in no other test


@pytest.mark.parametrize("prefix", ["shop", "/shop", "shop/"])
def test_prefix_without_its_slashes_gets_a_sentence(prefix, monkeypatch, capsys):
    from fmnist_utils.app import server as app

    monkeypatch.setenv("DASH_URL_BASE_PATHNAME", prefix)
    monkeypatch.setattr(sys, "argv", ["app", "--port", "0", "--model", "small-cnn"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2 and "set DASH_URL_BASE_PATHNAME to something like /shop/" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- bad luck


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "small-cnn.json").write_text("{"), "small-cnn.json is no card"),
        (lambda folder: (folder / "small-cnn.json").write_text("[1]"), "small-cnn.json is no card"),
        (lambda folder: (folder / "small-cnn.safetensors").unlink(), "small-cnn.safetensors is missing"),
        (lambda folder: (folder / "small-cnn.safetensors").write_bytes(b"junk"), "small-cnn.safetensors is damaged"),
        (lambda folder: (folder / "small-cnn.outliers.safetensors").unlink(), "small-cnn.outliers.safetensors is miss"),
        (
            lambda folder: (folder / "small-cnn.outliers.safetensors").write_bytes(b"junk"),
            "outliers.safetensors is da",
        ),
    ],
)
def test_damaged_file_of_a_model_is_named_at_start(damage, named, monkeypatch, tmp_path, capsys):
    from fmnist_utils.app import server as app
    from fmnist_utils.app import serving

    for file in serving.MODELS.glob("small-cnn.*"):
        shutil.copy(file, tmp_path)
    damage(tmp_path)
    monkeypatch.setattr(serving, "MODELS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["app", "--port", "0", "--model", "small-cnn"])
    serving.cards.cache_clear()
    try:
        with pytest.raises(SystemExit) as stop:
            app.main()
    finally:
        serving.cards.cache_clear()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and named in said and "Traceback" not in said and "try again" not in said.lower()


def test_model_that_breaks_later_gets_a_sentence_that_does_not_promise_too_much(monkeypatch, caplog):
    from fmnist_utils.app import serving

    serving._loaded.cache_clear()
    monkeypatch.setattr(serving, "load_model", lambda path: (_ for _ in ()).throw(ValueError(f"{path} is damaged")))
    with pytest.raises(serving.photos.BadImage, match="Choose another one") as caught:
        serving.answers("small-cnn", TEST.images[:1])
    assert "again" not in str(caught.value) and str(ROOT) not in str(caught.value) and "is damaged" in caplog.text


@pytest.fixture(scope="module")
def client():
    from fmnist_utils.app.server import create_app

    return create_app(hosts=["Clothes.example"]).server.test_client()


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8050", 200), ("127.0.0.1", 200), ("[::1]:8050", 200), ("192.168.7.7:80", 200), ("[fe80::1]", 200),
     ("clothes.example:443", 200), ("evil.example", 403), ("127.0.0.1.evil.example:8050", 403), ("", 403)],
)  # fmt: skip
def test_only_under_names_that_are_its_own(client, host, status):
    assert client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/assets/app.js"])
def test_headers_that_protect(client, path):
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["frame-ancestors"] == "'none'" and policy["default-src"] == "'self'"
    assert "unsafe" not in policy["script-src"] and "*" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize("body", [b"[" * 40_000, b"[" + b"{}," * 40_000 + b"{}]", b"1," * 4_000_000])
def test_json_that_would_become_millions_of_objects_is_not_parsed(client, body, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    reply = client.post("/_dash-update-component", data=body, content_type="application/json")
    assert reply.status_code == 413


def test_what_strangers_send_makes_no_long_log(client, caplog):
    long = "x" * 1_000_000
    inputs = [{"id": "cell", "property": "data", "value": [1, 2]}, {"id": "model", "property": "value", "value": long}]
    known = {"output": "cell-images.children", "outputs": {"id": "cell-images", "property": "children"}}
    for body in ({"output": long}, known | {"inputs": inputs, "changedPropIds": ["model.value"]}):
        assert len(client.post("/_dash-update-component", json=body).text) < 1_000
    for path in ("nothing/a.js", "dash/a.js", "dash/../../os.py"):
        assert client.get(f"/_dash-component-suites/{path}").status_code == 404
    assert "Refused" in caplog.text and len(caplog.text) < 20_000


def test_too_many_at_once_are_told_so_and_health_is_not(monkeypatch):
    from fmnist_utils.app import guard
    from fmnist_utils.app.server import create_app

    app = create_app()
    monkeypatch.setattr(guard, "AT_ONCE", 0)
    reply = app.server.test_client().post("/_dash-update-component", json={})
    assert reply.status_code == 503 and "Too many" in reply.text
    assert app.server.test_client().get("/health").status_code == 200
    monkeypatch.undo()  # what was refused holds no place
    assert app.server.test_client().post("/_dash-update-component", json={}).status_code != 503


POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n"


@pytest.fixture
def channel(monkeypatch):
    """Makes connections as the server does, without one."""
    from waitress.adjustments import Adjustments

    from fmnist_utils.app import guard

    class Server:
        adj, tasks, active_channels = Adjustments(), 0, {}

        def add_task(self, task):
            self.tasks += 1

    made = []

    def make():
        one, other = socket.socketpair()
        made.append((guard.Channel(Server(), one, ("127.0.0.1", 1), Server.adj, map={}), other))
        made[-1][0].far_end = other
        return made[-1][0]

    monkeypatch.setattr(guard.Channel, "unfinished", {})
    yield make
    for channel, other in made:
        channel.handle_close()
        other.close()
    assert not guard.Channel.unfinished


@pytest.mark.parametrize(("seconds", "closed"), [(1e9, False), (-1e9, True)])
def test_request_that_trickles_ends_the_connection(channel, seconds, closed, monkeypatch):
    from fmnist_utils.app import guard

    monkeypatch.setattr(guard, "SENDING", seconds)
    one = channel()
    one.received(POST)
    one.received(b"a few")
    assert one.will_close == closed and one in guard.Channel.unfinished
    if not closed:
        one.received(b"x" * 85)
        assert one.server.tasks == 1 and not guard.Channel.unfinished


def test_too_many_unfinished_bytes_wait_outside_and_the_oldest_goes_on(channel, monkeypatch):
    from fmnist_utils.app import guard

    monkeypatch.setattr(guard.Channel, "most", 2 * len(POST))
    monkeypatch.setattr(guard, "LITTLE", 0)
    one, two, three = channel(), channel(), channel()
    one.received(POST)
    assert one.readable() and two.readable() and three.readable()
    two.received(POST)
    assert [each.readable() for each in (one, two, three)] == [True, False, False]
    monkeypatch.setattr(guard, "LITTLE", len(POST))  # a small request need not wait
    assert [each.readable() for each in (one, two, three)] == [True, False, True]
    one.received(b"x" * 90)
    assert two.readable() and three.readable()


@pytest.mark.parametrize("sends", [True, False])
def test_who_waits_for_us_is_neither_idle_nor_slow(channel, monkeypatch, sends):
    from waitress.server import BaseWSGIServer

    from fmnist_utils.app import guard

    began, passed = time.time(), 0
    clock = types.SimpleNamespace(time=lambda: began + passed, monotonic=lambda: 1e6 + passed)
    monkeypatch.setattr(guard, "time", clock)
    monkeypatch.setattr(guard.Channel, "most", 0)
    monkeypatch.setattr(guard, "LITTLE", 1)
    first, waits = channel(), channel()
    for each in (first, waits):
        assert each.readable()
        each.received(POST)
    if sends:
        waits.far_end.send(b"x" * 50)
    for _ in range(20):
        passed += 50
        assert not waits.readable()
    waits.server.active_channels = {1: waits}
    BaseWSGIServer.maintenance(waits.server, clock.time())
    assert waits.will_close != sends
    first.received(b"x" * 90)
    if sends:
        assert waits.readable()
        waits.handle_read()
        assert not waits.will_close
        passed += guard.SENDING + 1  # from here on it is the sender who is slow
        assert waits.readable()
        waits.received(b"x")
        assert waits.will_close


def test_stale_rows_of_a_history_are_left_out():
    from fmnist_utils.app import pages

    row = {"name": "a", "answer": "Bag", "model": "small-cnn", "image": "data:,", "confidence": 0.5}
    stale = [None, 3, "row", {}, {"name": "b"}, row | {"confidence": "much"}, {"image": None} | row]
    assert pages.sound([row, *stale]) == [row, row]
    for history in (None, [], stale[:-1], {"a": 1}, "text"):
        assert "Nothing yet" in str(pages.history_table(history))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\n=", "\t+", "\r\n@", "＝", "\u00a0=", "\ufeff-"])
def test_no_cell_of_the_csv_is_a_formula(start):
    from fmnist_utils.app.server import _csv

    row = {"name": f"{start}1+1", "answer": "Bag", "model": "m", "image": "data:,", "confidence": 0.5}
    found = _csv(1, [row])
    assert found["content"].startswith("\ufeff")
    name = pd.read_csv(io.StringIO(found["content"][1:])).name[0]
    assert name[0] == "'" and name.endswith("1+1")


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("name", ["a;=1+1", "a;;=1+1;b", 'a;"=1+1;b', "a\t =1+1", "a\n=1+1", "\n=1+1", "a;\u200b=1+1;"])
def test_no_cell_is_a_formula_where_a_spreadsheet_splits_elsewhere(name, delimiter):
    from fmnist_utils.app.server import _csv

    row = {"time": "now", "name": name, "answer": "Bag", "model": "m", "image": "data:,", "confidence": 0.5}
    text = _csv(1, [row])["content"][1:]
    cells = [cell for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) for cell in line]
    assert len(cells) > 2 or delimiter not in name
    assert not [cell for cell in cells if cell.strip(" \t\r\n\u200b").startswith("=")]
    for line in csv.reader(io.StringIO(text, newline="")):  # where it splits at commas, the columns stay what they are
        assert len(line) == 5
    assert text.splitlines()[0] == '"time","name","answer","model","confidence"' and text.endswith(",0.5\n")


@pytest.mark.parametrize("turns", [4, -1, "1", None, 1.5])
def test_turn_that_is_none(server, turns):
    assert "0 to 3 quarters" in ask(server, sent(SHIRT) | {"turns": turns})[0]


def test_no_single_garment_is_said_everywhere(server):
    _, found = ask(server, sent(encoded(Image.new("RGB", (200, 150), "beige")), "nothing.png"))
    card = json.dumps(found["results"]["children"])
    assert "No single garment" in found["answer"]["children"] and "nothing.png: No single garment" in card
    assert "Nothing stands out" in card and found["rows"]["data"]["rows"][0]["warning"] == "no single garment"


def test_turned_photograph_gets_a_hint_and_turning_it_helps(server):
    image = Image.open(io.BytesIO(photo("Trouser"))).rotate(90, expand=True)
    text, found = ask(server, sent(encoded(image)))
    assert "turned?" in found["answer"]["children"] and "quarter turn to the right" in text
    _, found = ask(server, sent(encoded(image)) | {"turns": 3})
    row = found["rows"]["data"]["rows"][0]
    assert row["answer"] == "Trouser" and not row["warning"]


# ------------------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome", "google-chrome"))), None)
        if not path and not Path(p.chromium.executable_path).is_file():
            pytest.skip("no browser here: install Debian's chromium, or run `playwright install chromium`")
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-background-networking"])
        yield browser
        browser.close()


def new_page(browser, **options):
    """A page that waits longer than usual: a busy machine is no error."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)
    return page


@pytest.fixture
def page(server, browser):
    """The first page at 1280 px, light; nothing may go wrong in it or be asked of any other computer."""
    # Playwright's own waiting evaluates text, which the page's policy forbids; one test below leaves it in force.
    page = new_page(browser, viewport={"width": 1280, "height": 900}, color_scheme="light", bypass_csp=True)
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
    page.on(
        "request", lambda r: problems.append(r.url) if not r.url.startswith((server[0], "data:", "blob:")) else None
    )
    page.goto(server[0])
    page.wait_for_selector(".thumb")
    yield page
    assert not problems
    page.close()


@pytest.fixture(scope="module")
def axe():
    """The text of axe-core, which looks for what keeps people with a screen reader or a keyboard out."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")


@contextlib.contextmanager
def held_back(page):
    """What the page asks for meanwhile gets to the server afterwards."""
    asked, held = [], [True]
    page.route("**/_dash-update-component*", lambda route: asked.append(route) if held else route.continue_())
    yield
    while not asked:
        page.wait_for_timeout(50)
    held.clear()
    for route in asked:
        route.continue_()


def upload(page, *files: tuple[str, bytes]) -> None:
    payloads = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.set_input_files("#upload input", payloads)


def cards(page, count: int) -> list[str]:
    """Headings of the answers, once there are `count` and the history has caught up."""
    page.wait_for_function(f"document.querySelectorAll('#results article').length == {count}")
    return page.locator("#results article h2").all_inner_texts()


def screenshot(page, name: str, size: tuple[int, int] = (1280, 980)) -> None:
    if folder := os.environ.get("FMNIST_SCREENSHOTS"):
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        page.mouse.move(0, 0)
        page.wait_for_timeout(700)
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(Path(folder, f"{name}.png"), optimize=True)


def test_upload_several_files_and_one_bad(page):
    evil = "<img src=x onerror=alert(1)>.png"
    upload(page, ("boot.png", encoded(grey("Ankle boot"))), ("trousers.jpg", photo("Trouser")), (evil, b"nothing"))
    found = cards(page, 3)
    assert found[0].startswith("Ankle boot") and found[1].startswith("Trouser") and found[2] == evil
    assert "not a picture" in page.locator("#results article").nth(2).inner_text()
    assert page.locator("#results img[src=x]").count() == 0
    assert page.locator("#results article").first.locator(".bars li").count() == 10
    seen = page.locator("#results article").first.locator(".pictures img").nth(1)
    assert seen.evaluate("i => [i.naturalWidth, i.naturalHeight, getComputedStyle(i).imageRendering]") == [
        28,
        28,
        "pixelated",
    ]
    upload(page, ("boot.png", encoded(grey("Ankle boot"))))
    cards(page, 1)
    upload(page, ("large.png", bytes(10_400_000)))
    page.wait_for_function("document.getElementById('message').innerText.includes('limit')")


def test_photo_model_switch_and_step_switched_off(page):
    upload(page, ("my trousers.jpg", photo("Trouser")))
    assert cards(page, 1)[0].startswith("Trouser")
    assert "Negated" in page.locator(".stages").inner_text()
    page.locator("#model").get_by_text("wide-resnet-16-4").click()
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length == 2")
    assert page.locator("#results h2").inner_text().startswith("Trouser")
    page.evaluate("scrollTo(0, 0)")
    screenshot(page, "app-desktop")
    page.get_by_text("How photos are prepared").click()
    page.get_by_label("Make the background black").uncheck()
    page.wait_for_function(
        "document.querySelector('.stages') && !document.querySelector('.stages').innerText.includes('Negated')"
    )
    assert page.locator("#table tbody tr").count() == 2  # the same picture, so the same row


def test_gallery_by_mouse_and_keyboard_and_csv(page):
    index = sure_example("Sneaker")
    page.locator(".thumb").nth(7).click()
    first = page.locator(".thumb").nth(7).get_attribute("data-picture")
    assert cards(page, 1)[0].startswith(CLASSES[RECORDED[int(first)].argmax()])
    assert f"its label is {CLASSES[TEST.labels[int(first)]]}" in page.locator("#results").inner_text()
    page.click("#others")
    page.wait_for_function(f"document.querySelectorAll('.thumb')[7].dataset.picture != {first}")

    page.locator("#upload button").focus()
    for _ in range(4):
        page.keyboard.press("Tab")
        if second := page.evaluate("document.activeElement.dataset.picture"):
            break
    assert second and page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('#results .name')?.innerText == 'Test image {second}'")

    upload(page, ("=1+1.png", encoded(Image.fromarray(TEST.images[index].numpy()))))
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length == 3")
    with page.expect_download() as download:
        page.click("#csv")
    table = pd.read_csv(download.value.path())
    assert table.name.tolist() == ["'=1+1.png", f"Test image {second}", f"Test image {first}"]
    assert table.answer[0] == "Sneaker" and (table.model == "small-cnn").all()
    np.testing.assert_allclose(table.loc[0, list(CLASSES)].astype(float), RECORDED[index], atol=0.01)
    np.testing.assert_allclose(table[list(CLASSES)].sum(axis=1), 1, atol=0.002)

    page.reload()  # the history is this tab's
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length == 3")
    page.click("#clear")
    page.wait_for_function("!document.querySelector('#table table')")


GIVE = """([kind, data]) => {
    const files = new DataTransfer(), bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    files.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
    if (kind == "paste") document.dispatchEvent(new ClipboardEvent(kind, {clipboardData: files, bubbles: true}));
    else document.querySelector("#upload > *").dispatchEvent(
        new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
}"""


def give(page, kind: str, garment: str) -> None:
    """Drop or paste a file, as a browser reports it."""
    page.evaluate(GIVE, [kind, base64.b64encode(encoded(grey(garment))).decode()])


def test_what_the_server_refuses_as_too_large_gets_a_sentence(server, browser):
    page = new_page(browser, bypass_csp=True)  # not the fixture's, which allows no error on the console
    page.goto(server[0])
    page.wait_for_selector(".thumb")
    page.route("**/_dash-update-component*", lambda route: route.fulfill(status=413, body="<html>of some proxy</html>"))
    page.locator(".thumb").first.click()
    page.wait_for_function("document.getElementById('message').innerText.includes('too much for the server')")
    assert "proxy" not in page.locator("#message").inner_text()
    page.close()


def rows(page, count: int) -> list[str]:
    page.wait_for_function(f"document.querySelectorAll('#table tbody tr').length == {count}")
    return page.locator("#table tbody .name").all_inner_texts()


def test_quick_clicks_and_uploads_lose_no_result(page):
    page.evaluate(
        "[...document.querySelectorAll('.thumb')].slice(0, 8).forEach((b, i) => setTimeout(() => b.click(), 60 * i))"
    )
    clicked = page.eval_on_selector_all(".thumb", "all => all.slice(0, 8).map(b => `Test image ${b.dataset.picture}`)")
    assert rows(page, 8) == clicked[::-1]
    assert page.locator("#results .name").inner_text() == clicked[-1]  # the last one tried is the one shown
    upload(page, *((f"{i}.png", encoded(grey("Bag"))) for i in range(8)))
    page.locator(".thumb").nth(9).click()
    assert len(rows(page, 17)) == 17


def test_what_is_too_large_is_still_said_when_the_others_are_answered(page):
    upload(page, ("large.png", bytes(10_400_000)), ("bag.png", encoded(grey("Bag"))))
    assert cards(page, 1)[0].startswith("Bag")
    rows(page, 1)
    assert "large.png" in page.locator("#message").inner_text()
    page.locator(".thumb").first.click()  # something new
    page.wait_for_function("!document.getElementById('message').innerText")


def test_after_an_answer_that_never_came_the_next_one_does(server, browser):
    page = new_page(browser, bypass_csp=True)
    page.goto(server[0])
    page.wait_for_selector(".thumb")
    page.route("**/_dash-update-component*", lambda route: route.abort(), times=1)
    page.locator(".thumb").nth(0).click()
    page.locator(".thumb").nth(1).click()
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length >= 1")
    page.close()


@pytest.mark.parametrize("stale", [[{"old": 1}, None, {"name": "x", "answer": 2}], {"a": 1}, "text"])
def test_stale_history_does_not_break_the_page(page, stale):
    page.evaluate("stale => sessionStorage.setItem('history', JSON.stringify(stale))", stale)
    page.reload()
    page.wait_for_selector(".thumb")
    page.locator(".thumb").first.click()
    assert len(rows(page, 1)) == 1


def test_turn_button(page):
    image = Image.open(io.BytesIO(photo("Trouser"))).rotate(90, expand=True)
    upload(page, ("lying.png", encoded(image)))
    page.wait_for_selector(".turns .primary")
    assert "turned?" in page.locator("#results h2").inner_text()
    page.click(".turns .primary")
    page.wait_for_function("document.querySelector('#results h2')?.innerText?.startsWith('Trouser')")
    rows(page, 1)  # the same picture, so the same row
    assert not page.locator(".turns .primary").count()


def test_turning_what_something_newer_is_about_to_replace(page):
    upload(page, ("trousers.jpg", photo("Trouser")))
    cards(page, 1)
    rows(page, 1)
    both = "[...document.querySelectorAll('.thumb, [data-turn]')].filter((b, i) => !i || b.dataset.turn == 1)"
    page.evaluate(f"{both}.forEach(button => button.click())")
    page.wait_for_function("document.querySelector('.stages')?.innerText?.includes('as you asked')")
    page.wait_for_function("document.querySelector('#table tbody .name').innerText == 'trousers.jpg'")
    assert rows(page, 2)[0] == "trousers.jpg"


def test_full_history_says_so(page):
    from fmnist_utils.app import pages

    page.evaluate(f"[...document.querySelectorAll('.thumb')].slice(0, {pages.MOST_ROWS}).forEach(b => b.click())")
    rows(page, pages.MOST_ROWS)
    assert f"The latest {pages.MOST_ROWS} only" in page.locator("#table").inner_text()
    page.locator(".thumb").first.click()
    page.wait_for_function("n => document.querySelectorAll('#table tbody .name')[1].innerText == n",
                           arg=page.locator("#table tbody .name").first.inner_text())  # fmt: skip
    rows(page, pages.MOST_ROWS)


def test_without_scripts_it_says_what_it_needs(server, browser):
    page = new_page(browser, java_script_enabled=False)
    page.goto(server[0])
    assert "needs JavaScript" in page.locator("body").inner_text()
    page.close()


def test_policy_in_force_hinders_nothing(server, browser):
    page, problems = new_page(browser), []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server[0])
    page.locator(".thumb").first.click()
    page.locator("#results article img").first.wait_for()
    page.click("#to-quality")
    page.locator(".plot .point").first.wait_for()
    page.close()
    assert not problems


def test_behind_a_prefix_links_and_files_stay_inside(browser, tmp_path):
    environment = os.environ | {"DASH_URL_BASE_PATHNAME": "/shop/", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fmnist_utils.app", "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore Ctrl-C
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        assert address.endswith("/shop")
        page, outside = new_page(browser, bypass_csp=True), []
        inside = (f"{address}/", "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(inside) else outside.append(asked.url))
        page.goto(f"{address}/")
        page.wait_for_selector(".thumb")
        page.click("#to-quality")
        page.wait_for_selector(".matrix")
        assert page.url == f"{address}/quality"
        give(page, "paste", "Dress")
        assert cards(page, 1)[0].startswith("Dress")
        assert page.url == f"{address}/" and not outside
        assert page.request.get(f"{address}/health").ok
        page.close()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) is not None


def test_drop(page):
    give(page, "drop", "Bag")
    assert cards(page, 1)[0].startswith("Bag")
    assert page.locator("#results .name").inner_text() == "drop.png"


def test_drawing_undo_and_paste(page):
    page.click("#draw summary")
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    for x in (0.35, 0.65):  # two legs
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.9 * box["height"], steps=5)
        page.mouse.up()
    cards(page, 1)
    assert page.locator("#results .name").inner_text() == "Drawing"
    drawn = page.locator("#results .pictures img").nth(1).get_attribute("src")
    page.click("#undo")
    page.wait_for_function("src => document.querySelectorAll('#results .pictures img')[1]?.src != src", arg=drawn)
    assert page.locator("#table tbody tr").count() == 1  # it is the same drawing
    page.click("#undo")
    page.wait_for_selector("#results .empty")

    page.click("#to-quality")
    page.wait_for_selector(".matrix")
    give(page, "paste", "Dress")
    assert cards(page, 1)[0].startswith("Dress")
    page.wait_for_function("document.activeElement.id == 'results'")  # the page to try pictures on is back
    page.click("#undo")  # there is nothing to undo
    page.wait_for_timeout(600)
    assert cards(page, 1)[0].startswith("Dress")


def test_how_good_is_it(page):
    page.click("#to-quality")
    page.wait_for_selector(".matrix")
    counts = confusion_matrix(TEST.labels, RECORDED.argmax(1))
    shown = np.zeros((10, 10), int)
    for row, column, count in page.eval_on_selector_all(
        "[data-cell]", "cells => cells.map(c => [...c.dataset.cell.split(',').map(Number), Number(c.innerText)])"
    ):
        shown[row, column] = count
    np.testing.assert_array_equal(shown, counts)
    found = page.eval_on_selector_all(".plot .point", "all => all.map(p => [p.style.left, p.style.bottom])")
    binned = reliability(RECORDED, TEST.labels)[0]  # tests/test_evaluate.py compares this with an independent oracle
    np.testing.assert_allclose(
        [[float(value.rstrip("%")) for value in point] for point in found],
        100 * binned[["confidence", "accuracy"]].to_numpy(), atol=0.01,
    )  # fmt: skip
    shirt = page.locator("#details tr", has_text="Shirt").last.inner_text().split("\t")
    assert shirt[3] == f"{f1_score(TEST.labels, RECORDED.argmax(1), average=None)[CLASSES.index('Shirt')]:.1%}"
    row, column = np.argwhere((counts > 4) & (counts < 30))[0]
    page.click(f"[data-cell='{row},{column}']")
    page.wait_for_function(f"document.querySelectorAll('.thumbs .thumb').length == {counts[row, column]}")
    index = int(page.locator(".thumbs .thumb").first.get_attribute("data-picture"))
    assert TEST.labels[index] == row and RECORDED[index].argmax() == column
    page.locator(".thumbs .thumb").first.click()  # leads back to the first page
    assert cards(page, 1)[0].startswith(CLASSES[column])
    assert page.locator("#try").is_visible() and not page.locator("#quality").is_visible()
    page.click("#to-quality")
    page.locator("#same-model").get_by_text("wide-resnet-16-4").click()
    page.wait_for_function("document.querySelector('#scores h2')?.innerText?.startsWith('wide-resnet-16-4')")
    shirt = CLASSES.index("Shirt")
    page.click(f"[data-cell='{shirt},{CLASSES.index('Coat')}']")
    page.wait_for_function("document.querySelector('#cell-images h3')?.innerText.startsWith('Shirt, called Coat')")
    screenshot(page, "app-quality", (1280, 1310))


def test_quality_says_that_it_works_and_marks_the_number_whose_images_it_shows(page):
    with held_back(page):
        page.click("#to-quality")
        page.wait_for_selector("#quality[aria-busy=true]", state="attached")
    page.wait_for_selector(".matrix")
    page.wait_for_selector("#quality[aria-busy=false]")

    models = ("small-cnn", "wide-resnet-16-4")
    counts = [confusion_matrix(TEST.labels, load_predictions(f"{name}-full").argmax(1)) for name in models]
    row, column = np.argwhere((counts[0] > 0) & (counts[1] == 0))[0]  # with the other model, no such images
    heading = f"{CLASSES[row]}, called {CLASSES[column]}: "
    shown = "text => document.querySelector('#cell-images h3')?.innerText.startsWith(text)"
    marked = "[...document.querySelectorAll('[data-cell][aria-pressed=true]')].map(b => b.dataset.cell)"
    page.click(f"[data-cell='{row},{column}']")
    page.wait_for_function(shown, arg=f"{heading}{counts[0][row, column]} image")
    for name, count in zip(models[::-1], (counts[1], counts[0]), strict=True):
        page.locator("#same-model").get_by_text(name).click()
        page.wait_for_function(shown, arg=f"{heading}{count[row, column]} image")
        page.wait_for_function(f"document.querySelector('#scores h2')?.innerText?.startsWith('{name}')")
        assert page.evaluate(marked) == [f"{row},{column}"] * bool(count[row, column])
        assert ("how sure" in page.locator("#cell-images").inner_text()) == bool(count[row, column])
    page.click("#to-try")
    page.wait_for_selector(".matrix", state="detached")
    page.click("#to-quality")
    page.wait_for_selector(".matrix")
    page.wait_for_selector("#quality[aria-busy=false]")
    assert page.evaluate(marked) == [f"{row},{column}"]


#: Texts whose contrast with what is behind them is below WCAG AA, in the page as it is.
POOR_CONTRAST = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgb = color => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const luminance = color => color.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = rgb(getComputedStyle(e).backgroundColor);
            if (color[3] === 255) return color;
        }
    };
    const own = e => [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    return [...document.querySelectorAll("#page *:not(svg *):not(style)")].filter(e => own(e) && e.offsetParent)
        .map(e => {
            const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(behind(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.innerText];
        }).filter(([ratio]) => ratio < 4.5);
}"""


def test_dark_and_phone(page):
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#model").get_by_text("wide-resnet-16-4").click()
    page.locator(".thumb").nth(26).click()
    page.wait_for_function("document.querySelector('#answer').innerText.includes('%')")
    assert page.locator("#answer").is_visible()
    widths = [page.evaluate("document.documentElement.scrollWidth")]
    poor = page.evaluate(POOR_CONTRAST)
    page.click("#theme-button")
    page.wait_for_function("document.documentElement.dataset.theme == 'light'")
    poor += page.evaluate(POOR_CONTRAST)
    page.click("#answer")
    page.wait_for_selector("#answer.seen")  # the answer itself is in sight now
    screenshot(page, "app-phone", (390, 844))
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector("#answer:not(.seen)")
    page.click("#to-quality")
    page.wait_for_selector(".matrix")
    page.wait_for_selector(".plot .point")
    poor += page.evaluate(POOR_CONTRAST)
    page.click("#theme-button")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    page.wait_for_function("getComputedStyle(document.querySelector('.axis')).color == 'rgb(232, 236, 240)'")
    poor += page.evaluate(POOR_CONTRAST)
    widths.append(page.evaluate("document.documentElement.scrollWidth"))
    assert widths == [390, 390] and not poor
    page.set_viewport_size({"width": 1280, "height": 900})
    page.click("#to-try")
    screenshot(page, "app-dark")


# ------------------------------------------------------------------------------------------------- for everybody


def tried(page, *files: tuple[str, bytes]) -> None:
    upload(page, *files)
    cards(page, len(files))


def drawn(page) -> None:
    page.click("#draw summary")
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 200, steps=4)
    page.mouse.up()
    cards(page, 1)


def looked_at_quality(page) -> None:
    page.click("#to-quality")
    page.locator("[data-cell]").nth(1).click()
    page.wait_for_selector(".thumbs .thumb")
    page.get_by_text("As a table").click()


def unfolded(page) -> None:
    tried(page, *((f"{name}.png", encoded(grey(name))) for name in CLASSES), ("bad.png", b"nothing"))
    page.locator(".rest summary").first.click()


def opened(page) -> None:
    for summary in page.locator(".settings summary").all():
        summary.click()


def at_work(page) -> None:
    tried(page, ("trousers.jpg", photo("Trouser")))
    page.route("**/_dash-update-component*", lambda route: None)
    page.locator(".thumb").first.click()
    page.wait_for_selector("#results[aria-busy=true]")


NOTHING = encoded(Image.new("RGB", (200, 150), "beige"))
LYING = encoded(Image.open(io.BytesIO(photo("Trouser"))).rotate(90, expand=True))
STATES = {
    "at first": lambda page: None,
    "settings open": opened,
    "test image": lambda page: page.locator(".thumb").first.click() or cards(page, 1),
    "photograph": lambda page: tried(page, ("trousers.jpg", photo("Trouser"))),
    "turned": lambda page: tried(page, ("lying.png", LYING)),
    "nothing in it": lambda page: tried(page, ("nothing.png", NOTHING)),
    "many": unfolded,
    "too large": lambda page: upload(page, ("large.png", bytes(10_400_000))) or page.wait_for_selector("#close"),
    "drawing": drawn,
    "at work": at_work,
    "quality": looked_at_quality,
    "unknown address": lambda page: page.evaluate(
        "history.pushState({}, '', '/nowhere'); dispatchEvent(new CustomEvent('_dashprivate_pushstate'))"
    ) or page.wait_for_selector("#lost:not([hidden])"),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_nothing_keeps_anybody_out(page, axe, state):
    STATES[state](page)
    for scheme, width in (("light", 1280), ("dark", 390)):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 844})
        page.evaluate(axe)
        found = page.evaluate("axe.run({resultTypes: ['violations']}).then(results => results.violations)")
        grave = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
        assert not grave, (state, scheme, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width


LINES = """all => all.map(element => {
    const range = document.createRange();
    range.selectNodeContents(element);
    return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
})"""


def test_names_of_usual_length_are_not_broken_and_no_card_stands_out(page):
    long = "a name that fills more than one line of the history " + "and goes on " * 4
    upload(page, ("nothing.png", NOTHING), (long, encoded(grey("Bag"))), ("bad.png", b"nothing"))
    rows(page, 2)
    assert page.locator("#results > .short").count() == 3
    for part in ("#model strong", "#table td:last-child"):
        assert set(page.eval_on_selector_all(part, LINES)) == {1}, part
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("#table .name", has_text="nothing.png").evaluate_all(LINES) == [1]
    assert page.evaluate("(t => t.scrollWidth <= t.clientWidth)(document.querySelector('#table'))")


def test_forced_colours_keep_what_is_told_by_a_fill(page):
    page.emulate_media(forced_colors="active")
    page.locator(".thumb").first.click()
    cards(page, 1)
    style = "([selector, what]) => getComputedStyle(document.querySelector(selector))[what]"
    behind, fill = (page.evaluate(style, [part, "backgroundColor"]) for part in (".track", ".track span"))
    assert behind != fill
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_selector("#answer:not(.seen)")
    for part in ("#answer", ".track"):
        assert page.evaluate(style, [part, "borderTopStyle"]) == "solid", part
    assert page.evaluate(style, ["#model .dash-options-list-option:has(input:checked)", "outlineStyle"]) == "solid"


def test_axe_finds_what_is_wrong(page, axe):
    page.evaluate("document.querySelector('.thumb img').alt = ''; document.querySelector('.thumb').title = ''")
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(results => results.violations.map(v => v.id))")
    assert "button-name" in found


def test_every_tab_stop_has_a_name_and_the_first_skips(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.innerText || document.activeElement.title"))
    assert names[:3] == ["Choose pictures", "Draw one", "Show others"] and all(names)


def test_titles_and_addresses(server, browser):
    page = new_page(browser, bypass_csp=True)
    titles = {}
    for path, status in (("/", 200), ("/quality", 200), ("/quality/", 200), ("/nowhere", 404), ("/a/quality", 404)):
        assert page.goto(server[0] + path).status == status
        page.wait_for_selector("#try:not([hidden]), #quality:not([hidden]), #lost:not([hidden])")
        seen = [name for name in ("try", "quality", "lost") if page.locator(f"#{name}").is_visible()]
        titles.setdefault(seen[0], set()).add(page.title())
        assert len(seen) == 1 and seen[0] == {200: "try" if path == "/" else "quality", 404: "lost"}[status]
    assert all(len(found) == 1 for found in titles.values()) and len(set.union(*titles.values())) == 3
    page.get_by_role("link", name="Try it").last.click()
    page.wait_for_selector("#try:not([hidden])")
    page.close()


def test_while_it_works_it_says_so_and_the_answer_comes_into_sight(page):
    with held_back(page):
        page.locator(".thumb").first.click()
        page.wait_for_selector("#results[aria-busy=true]")
    page.wait_for_selector("#results[aria-busy=false]")
    upload(page, *((f"{name}.png", encoded(grey(name))) for name in CLASSES))
    cards(page, 10)
    rows(page, 11)
    columns = page.eval_on_selector_all("#results article", "all => all.map(a => a.getBoundingClientRect().left)")
    assert len(set(columns)) > 2  # a grid
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    box = page.locator("#upload").bounding_box()
    assert 0 <= box["y"] < 900  # choosing stays in sight
    page.locator(".thumb").nth(3).click()
    cards(page, 1)
    page.wait_for_function("document.querySelector('#results h2').getBoundingClientRect().top >= 0")


def test_row_of_the_history_opens_its_picture_again(page):
    upload(page, ("trousers.jpg", photo("Trouser")))
    rows(page, 1)
    said = page.locator("#results h2").inner_text()
    page.locator(".thumb").nth(7).click()
    first, second = rows(page, 2)
    assert page.locator("#results .by").inner_text() == "small-cnn"
    page.get_by_role("button", name=second, exact=True).click()
    page.wait_for_function("document.querySelector('#results .name').innerText == 'trousers.jpg'")
    assert page.locator("#results h2").inner_text() == said and page.locator(".stages img").count() > 3
    page.wait_for_function("document.querySelector('#table tbody .name').innerText == 'trousers.jpg'")
    assert rows(page, 2) == ["trousers.jpg", first]  # the same rows: what is open stands first
    page.reload()  # then the file is gone, but not what the network got of it
    page.locator("#table .name", has_text="trousers.jpg").click()
    cards(page, 1)
    assert page.locator("#results h2").inner_text() == said
    page.locator("#table .name", has_text=first).click()
    page.wait_for_function(f"document.querySelector('#results .name').innerText == '{first}'")
    assert "its label is" in page.locator("#results").inner_text()


def test_little_goes_over_the_wire(server, browser):
    page = new_page(browser, bypass_csp=True)
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(server[0])
    page.wait_for_selector(".thumb")
    page.wait_for_load_state("networkidle")
    first = sum(sizes)
    page.click("#to-quality")
    page.locator(".plot .point").first.wait_for()
    page.wait_for_load_state("networkidle")
    assert 100e3 < first < 600e3 and 0 < sum(sizes) - first < 300e3
    page.close()


@pytest.mark.parametrize("path", ["/assets/app.css", "/assets/app.js", "/_dash-layout"])
def test_answers_are_packed_only_for_who_takes_that(client, path):
    plain = client.get(path)
    packed = client.get(path, headers={"Accept-Encoding": "gzip, br"})
    assert "Content-Encoding" not in plain.headers and packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data and len(packed.data) < len(plain.data) / 1.5
    assert int(packed.headers["Content-Length"]) == len(packed.data) and "Accept-Encoding" in packed.headers["Vary"]
    if etag := packed.headers.get("ETag"):
        assert etag.startswith("W/")
        again = client.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": etag})
        assert again.status_code == 304 and not again.data


@pytest.mark.parametrize("name", ["small-cnn", "wide-resnet-16-4", "vgg16-block3-two-views"])
def test_network_runs_twice_for_a_picture_with_the_numbers_of_predict(name):
    from fmnist_utils.app import serving
    from fmnist_utils.evaluate import predict
    from fmnist_utils.explain.grad_cam import grad_cam

    images, calls = TEST.images[CORRECT[:3].copy()], []
    serving.answers(name, images[:1])
    model, detector = serving._loaded(name)
    convolution = next(module for module in model.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    hook = convolution.register_forward_hook(lambda *_: calls.append(1))
    try:
        found = serving.answers(name, images)
    finally:
        hook.remove()
    assert len(calls) == (2 if serving.cards()[name]["mirror"] else 1)
    shares, _, turns = detector.judge(model, images)
    maps = grad_cam(model, images, torch.tensor([int(answer.probabilities.argmax()) for answer in found]))
    for answer, image, seen in zip(found, images, maps, strict=True):
        np.testing.assert_array_equal(answer.overlay, serving.overlay(image, seen))
    expected = predict(model, images, mirror=serving.cards()[name]["mirror"])
    np.testing.assert_allclose([answer.probabilities for answer in found], expected, atol=1e-5)
    assert [(a.share, a.turns) for a in found] == list(zip(shares, turns, strict=True))


def test_answers_at_the_same_time_are_those_of_one_after_another():
    from fmnist_utils.app import serving

    images = TEST.images[:16].split(1)
    alone = [serving.answers("small-cnn", image)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: serving.answers("small-cnn", image)[0], images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.overlay, other.overlay)


def test_health_answers_while_a_heavy_picture_is_read(server):
    """Six pictures of 39 megapixels, each of which takes the only decoder a while."""
    heavy = sent(encoded(Image.new("RGB", (7800, 5000), "white"), "PNG", compress_level=1), "heavy.png")
    answered = []
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(ask, server, heavy) for _ in range(6)]
        while not all(future.done() for future in waiting):
            with urllib.request.urlopen(f"{server[0]}/health", timeout=30) as reply:
                assert json.load(reply)["status"] == "ok"
            answered.append(sum(future.done() for future in waiting))
        assert all("heavy.png" in future.result()[0] for future in waiting)
    assert answered[0] == 0  # health was there before the first picture was

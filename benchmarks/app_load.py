"""Does the app stand eight people at once? Predictions over HTTP, through the same requests that its page sends."""

import base64
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import psutil
from common import each, options, record
from PIL import Image
from threadpoolctl import threadpool_limits

from fmnist_utils import ROOT, pick
from fmnist_utils.app.photos import STEPS
from fmnist_utils.checkpoints import load_model, read_card
from fmnist_utils.data import CLASSES, FashionMNIST, load
from fmnist_utils.evaluate import predict

CLIENTS, WARM_UP = 8, 4
ALONE, TOGETHER = pick(smoke=8, cpu=500, full=500), pick(smoke=20, cpu=500, full=500)
#: The first is the one that ``ours`` and ``reference`` are about, the second the one that the app starts with.
MODELS = ("small-cnn", "wide-resnet-16-4")


def photo(pixels) -> str:
    """A test image as somebody's photograph of 600×600 pixels, as a data URL."""
    image = Image.new("L", (600, 600), 240)
    garment = Image.fromarray(pixels.numpy()).resize((400, 400), Image.Resampling.BICUBIC)
    image.paste(garment.point(lambda value: 240 - 0.8 * value), (60, 120))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def callback(address: str, dependency: dict, values: dict) -> urllib.request.Request:
    """The page's own request for a callback, with the inputs' values by their id."""
    found = [output.split(".") for output in dependency["output"].strip(".").split("...")]
    outputs = [{"id": name, "property": what} for name, what in found]
    body = {
        "output": dependency["output"],
        "outputs": outputs if len(outputs) > 1 else outputs[0],
        "inputs": [entry | {"value": values[entry["id"]]} for entry in dependency["inputs"]],
        "state": [],
        "changedPropIds": [f"{entry['id']}.{entry['property']}" for entry in dependency["inputs"][:1]],
    }
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(f"{address}/_dash-update-component", json.dumps(body).encode(), headers)


def request(address: str, dependency: dict, number: int, data: str, model: str) -> tuple[float, str]:
    """Milliseconds to the answer of the page's own callback, and the class."""
    picture = {"id": str(number), "name": "photo.jpg", "data": data}
    asked = callback(address, dependency, {"pictures": [picture], "steps": list(STEPS), "model": model})
    began = time.perf_counter()
    with urllib.request.urlopen(asked, timeout=300) as reply:
        found = json.load(reply)
    rows = found["response"]["rows"]["data"]["rows"]
    return 1e3 * (time.perf_counter() - began), rows[0]["answer"] if rows else ""


def prediction_ms(name: str, images: FashionMNIST) -> float:
    """Median milliseconds of the network for one image, mirrored too if the app does, on one core, as there."""
    path = ROOT / "data" / "models" / name
    model, mirror = load_model(path), read_card(path.with_suffix(".json")).get("mirror", False)
    single = [images.select([row]) for row in range(len(images))]
    with threadpool_limits(1):
        return 1e3 * median(each(lambda image: predict(model, image, mirror=mirror), single)[1])


def slowest_health(address: str, dependency: dict) -> float:
    """Milliseconds: the longest that /health took while every client sent the largest picture that is allowed."""
    buffer, slowest = io.BytesIO(), 0.0
    Image.new("RGB", (7800, 5100), "white").save(buffer, "PNG")
    heavy = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    with ThreadPoolExecutor(CLIENTS) as pool:
        waiting = [pool.submit(request, address, dependency, n, heavy, MODELS[0]) for n in range(CLIENTS)]
        while not all(future.done() for future in waiting):
            began = time.perf_counter()
            urllib.request.urlopen(f"{address}/health", timeout=300).close()
            slowest = max(slowest, 1e3 * (time.perf_counter() - began))
            time.sleep(0.02)
        for future in waiting:
            future.result()
    return slowest


def visit(pid: int, address: str, dependency: dict, name: str, images: FashionMNIST) -> dict:
    """All requests to a model: milliseconds by number of clients, errors, right answers, the server's memory in MB."""
    photos, errors, right, times = [photo(pixels) for pixels in images.images], 0, 0, {}
    for number in range(WARM_UP):
        request(address, dependency, number, photos[number], name)
    memory = [megabytes(pid)]
    for clients, count in ((1, ALONE), (CLIENTS, TOGETHER)):
        times[f"{clients} client{'s' * (clients > 1)}"] = done = []
        with ThreadPoolExecutor(clients) as pool:
            waiting = [
                pool.submit(request, address, dependency, n, photos[n % len(photos)], name) for n in range(count)
            ]
        for number, future in enumerate(waiting):
            if future.exception():
                errors += 1
                continue
            milliseconds, answer = future.result()
            done.append(milliseconds)
            right += answer == CLASSES[images.labels[number % len(photos)]]
        memory.append(megabytes(pid))
    return {
        "median_ms": {clients: median(values) for clients, values in times.items()},
        "p95_ms": {clients: np.percentile(values, 95) for clients, values in times.items()},
        "errors": errors,
        "share_right": right / (ALONE + TOGETHER - errors),
        "memory_mb": memory,
    }


def over_the_wire(address: str, dependencies: list[dict]) -> dict:
    """kB, packed, with headers, as a browser that was never here gets them: the first page, and what its second tab
    adds."""

    def kilobytes(*asked: urllib.request.Request) -> float:
        total = 0
        for one in asked:
            one.add_header("Accept-Encoding", "gzip")
            with urllib.request.urlopen(one) as reply:
                total += len(bytes(reply.headers)) + len(reply.read())
        return total / 1e3

    with urllib.request.urlopen(address) as reply:
        named = re.findall(r'(?:src|href)="(/[^"]+)"', reply.read().decode())
    # Dash loads the field for files when it draws it.
    paths = ["/", *named, "/_dash-layout", "/_dash-dependencies", "/_dash-component-suites/dash/dcc/async-upload.js"]
    files = [urllib.request.Request(address + path) for path in paths]
    values = {"pictures": None, "steps": list(STEPS), "model": MODELS[1], "cell": None, "history": [], "quality": True}
    server = [d for d in dependencies if not d["clientside_function"]]
    at_start = [callback(address, d, values) for d in server if not d["prevent_initial_call"]]
    tab = next(d for d in server if "scores.children" in d["output"])
    return {
        "first_page_kb": kilobytes(*files, *at_start),
        "quality_kb": kilobytes(callback(address, tab, values | {"quality": False})),
    }


def megabytes(pid: int) -> int:
    return round(psutil.Process(pid).memory_info().rss / 1e6)


def main() -> None:
    options(__doc__)
    images, began = load("test").subset(50), time.perf_counter()
    command = [sys.executable, "-m", "fmnist_utils.app", "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line, start_up = server.stdout.readline(), time.perf_counter() - began
        ready = re.search(r"ready ([\d.]+) s after imports: (http://\S+)", line)
        if not ready:
            raise SystemExit("The app did not start; its message is above.")
        address = ready[2]
        with urllib.request.urlopen(f"{address}/_dash-dependencies") as reply:
            dependencies = json.load(reply)
        wire = over_the_wire(address, dependencies)
        dependency = next(d for d in dependencies if "results.children" in d["output"])
        seen = {name: visit(server.pid, address, dependency, name, images) for name in MODELS}
        health = slowest_health(address, dependency)
        request(address, dependency, 0, photo(images.images[0]), "vgg16-block3-two-views")
        both = megabytes(server.pid)
    finally:
        server.terminate()
        server.wait()
    for name in MODELS:
        seen[name]["prediction_ms"] = prediction_ms(name, images)
    first = seen[MODELS[0]]
    alone, together = first["p95_ms"].values()
    fields = first | {"default_model": {"name": MODELS[1]} | seen[MODELS[1]], "health_ms": health}
    fields |= {"requests_of_each_model": ALONE + TOGETHER, "memory_both_models_mb": both}
    fields |= {"start_up_seconds": start_up, "start_up_after_imports_seconds": float(ready[1])} | wire
    setting = f"the app with the small CNN, 95% of {TOGETHER} photos from {CLIENTS} clients at once, against one"
    record("app_load", setting, together, alone, "ms", **fields)


if __name__ == "__main__":
    main()

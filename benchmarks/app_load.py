"""Does the app stand eight people at once? Predictions over HTTP, through the same requests that its page sends.

``python benchmarks/app_load.py`` writes ``results/benchmarks/app_load-<profile>.json`` and a figure. It starts the real
server (``python -m fmnist_utils.app``) in a process of its own. Each request brings a photo-like JPEG of 600×600 pixels
made from a test image and gets what the page would show: the answer, the stages, Grad-CAM and whether it looks like the
training data. ``ours``: the 95th percentile of the time to an answer with 8 clients at once; ``reference``: with one.
``prediction_ms``: the network alone, one image, median. ``memory_mb``: of the server after warming up, halfway and at
the end; ``memory_both_models_mb``: after a visitor has chosen VGG16, too.
"""

import base64
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import psutil
from PIL import Image

from fmnist_utils import ROOT, pick
from fmnist_utils.app.photos import STEPS
from fmnist_utils.data import CLASSES, FashionMNIST, load
from fmnist_utils.evaluate import predict
from fmnist_utils.models import load_model
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import save_benchmark

CLIENTS, WARM_UP = 8, 4
ALONE, TOGETHER = pick(smoke=8, cpu=100, full=100), pick(smoke=20, cpu=500, full=500)


def photo(pixels) -> str:
    """A test image as somebody's photograph, as a data URL."""
    image = Image.new("L", (600, 600), 240)
    garment = Image.fromarray(pixels.numpy()).resize((400, 400), Image.Resampling.BICUBIC)
    image.paste(garment.point(lambda value: 240 - 0.8 * value), (60, 120))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def request(address: str, dependency: dict, number: int, data: str, model: str = "small-cnn") -> tuple[float, str]:
    """Milliseconds to the answer of the page's own callback, and the class."""
    picture = {"id": str(number), "name": "photo.jpg", "data": data}
    values = {"pictures": [picture], "steps": list(STEPS), "model": model}
    outputs = [output.split(".") for output in dependency["output"].strip(".").split("...")]
    body = {
        "output": dependency["output"],
        "outputs": [{"id": name, "property": what} for name, what in outputs],
        "inputs": [entry | {"value": values[entry["id"]]} for entry in dependency["inputs"]],
        "state": [],
        "changedPropIds": ["pictures.data"],
    }
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/_dash-update-component", json.dumps(body).encode(), headers)
    began = time.perf_counter()
    with urllib.request.urlopen(asked, timeout=300) as reply:
        found = json.load(reply)
    return 1e3 * (time.perf_counter() - began), found["response"]["rows"]["data"]["rows"][0]["answer"]


def prediction_ms(images) -> float:
    """Median milliseconds of the small CNN for one image and its mirror image, in this process."""
    model, seconds = load_model(ROOT / "data" / "models" / "small-cnn"), []
    for image, label in zip(images.images, images.labels, strict=True):
        one = FashionMNIST(image[None], label[None])
        began = time.perf_counter()
        predict(model, one, flip=True)
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds))


def draw(times: dict[str, list[float]]) -> plt.Figure:
    use_style()
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for (name, values), color in zip(times.items(), (COLORS["muted"], COLORS["train"]), strict=True):
        axis.ecdf(values, color=color, lw=2)
        p95 = np.percentile(values, 95)
        axis.plot(p95, 0.95, "o", color=color)
        axis.annotate(
            f"{name}\n95% within {p95:,.0f} ms", (p95, 0.95), (8, -30), textcoords="offset points", color=color
        )
    axis.set(
        xlabel="time to an answer (ms)",
        ylabel="share of requests",
        ylim=(0, 1.02),
        xlim=(0, 1.35 * max(map(max, times.values()))),
    )
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_title(f"The app's answers, photo in and page out: {sum(map(len, times.values()))} requests")
    return figure


def main() -> None:
    images = load("test").subset(50)
    photos = [photo(pixels) for pixels in images.images]
    began = time.perf_counter()
    command = [sys.executable, "-m", "fmnist_utils.app", "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        start_up, found = time.perf_counter() - began, re.search(r"ready ([\d.]+) s after imports: (http://\S+)", line)
        if not found:
            raise SystemExit("The app did not start; its message is above.")
        after_imports, address = float(found[1]), found[2]
        with urllib.request.urlopen(f"{address}/_dash-dependencies") as reply:
            dependency = next(d for d in json.load(reply) if "results.children" in d["output"])
        memory, errors, right, times = [], 0, 0, {}
        process = psutil.Process(server.pid)
        for number in range(WARM_UP):
            request(address, dependency, number, photos[number])
        for clients, count in ((1, ALONE), (CLIENTS, TOGETHER)):
            memory.append(process.memory_info().rss / 1e6)
            times[f"{clients} client{'s' * (clients > 1)}"] = done = []
            with ThreadPoolExecutor(clients) as pool:
                waiting = [pool.submit(request, address, dependency, n, photos[n % 50]) for n in range(count)]
            for number, future in enumerate(waiting):
                if future.exception():
                    errors += 1
                    continue
                milliseconds, answer = future.result()
                done.append(milliseconds)
                right += answer == CLASSES[images.labels[number % 50]]
        memory.append(process.memory_info().rss / 1e6)
        request(address, dependency, 0, photos[0], "vgg16-block3-two-views")
        both = process.memory_info().rss / 1e6
    finally:
        server.terminate()
        server.wait()
    alone, together = times.values()
    path = save_benchmark(
        "app_load",
        setting=f"the app with the small CNN, 95% of {TOGETHER} photos from {CLIENTS} clients at once, against one",
        ours=np.percentile(together, 95),
        reference=np.percentile(alone, 95),
        unit="ms",
        figure=draw(times),
        errors=errors,
        median_ms={name: round(float(np.median(values)), 1) for name, values in times.items()},
        p95_ms={name: round(float(np.percentile(values, 95)), 1) for name, values in times.items()},
        share_right=round(right / (ALONE + TOGETHER - errors), 3),
        prediction_ms=round(prediction_ms(images), 2),
        memory_mb=[round(value) for value in memory],
        memory_both_models_mb=round(both),
        start_up_seconds=round(start_up, 1),
        start_up_after_imports_seconds=after_imports,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()

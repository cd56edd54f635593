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

from fmnist_utils import ROOT, pick
from fmnist_utils.app.photos import STEPS
from fmnist_utils.checkpoints import load_model
from fmnist_utils.data import CLASSES, FashionMNIST, load
from fmnist_utils.evaluate import predict

CLIENTS, WARM_UP = 8, 4
ALONE, TOGETHER = pick(smoke=8, cpu=100, full=100), pick(smoke=20, cpu=500, full=500)


def photo(pixels) -> str:
    """A test image as somebody's photograph of 600×600 pixels, as a data URL."""
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


def prediction_ms(images: FashionMNIST) -> float:
    """Median milliseconds of the small CNN for one image and its mirror image, in this process."""
    model = load_model(ROOT / "data" / "models" / "small-cnn")
    single = [images.select([row]) for row in range(len(images))]
    return 1e3 * median(each(lambda image: predict(model, image, mirror=True), single)[1])


def visit(pid: int, address: str, images: FashionMNIST) -> dict:
    """All requests: milliseconds by number of clients, errors, right answers, and the server's memory in MB."""
    photos, errors, right, times, memory = [photo(pixels) for pixels in images.images], 0, 0, {}, []
    with urllib.request.urlopen(f"{address}/_dash-dependencies") as reply:
        dependency = next(d for d in json.load(reply) if "results.children" in d["output"])

    def megabytes() -> int:
        return round(psutil.Process(pid).memory_info().rss / 1e6)

    for number in range(WARM_UP):
        request(address, dependency, number, photos[number])
    for clients, count in ((1, ALONE), (CLIENTS, TOGETHER)):
        memory.append(megabytes())
        times[f"{clients} client{'s' * (clients > 1)}"] = done = []
        with ThreadPoolExecutor(clients) as pool:
            waiting = [pool.submit(request, address, dependency, n, photos[n % len(photos)]) for n in range(count)]
        for number, future in enumerate(waiting):
            if future.exception():
                errors += 1
                continue
            milliseconds, answer = future.result()
            done.append(milliseconds)
            right += answer == CLASSES[images.labels[number % len(photos)]]
    memory.append(megabytes())
    request(address, dependency, 0, photos[0], "vgg16-block3-two-views")
    return {"times": times, "errors": errors, "right": right, "memory": memory, "both": megabytes()}


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
        seen = visit(server.pid, ready[2], images)
    finally:
        server.terminate()
        server.wait()
    p95 = {name: np.percentile(values, 95) for name, values in seen["times"].items()}
    alone, together = p95.values()
    errors, right, memory, both = (seen[key] for key in ("errors", "right", "memory", "both"))
    fields = {"median_ms": {name: median(values) for name, values in seen["times"].items()}, "p95_ms": p95}
    fields |= {"memory_mb": memory, "memory_both_models_mb": both, "prediction_ms": prediction_ms(images)}
    fields |= {"start_up_seconds": start_up, "start_up_after_imports_seconds": float(ready[1])}
    fields |= {"errors": errors, "share_right": right / (ALONE + TOGETHER - errors)}
    setting = f"the app with the small CNN, 95% of {TOGETHER} photos from {CLIENTS} clients at once, against one"
    record("app_load", setting, together, alone, "ms", **fields)


if __name__ == "__main__":
    main()

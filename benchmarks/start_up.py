"""How long until a notebook can begin? Imports beyond PyTorch's own, opening the data, building the model.

``python benchmarks/start_up.py`` writes ``results/benchmarks/start_up-<profile>.json`` and a figure. Fresh processes
run the steps below one after another, so each step counts only what the steps before it have not loaded; the
interpreter's own start is left out. The process that starts them has loaded the same files, so no disk is timed.
``measurements``: median, smallest and largest seconds of each step. ``heaviest_imports``: seconds by package of what is
imported after torch, from one more process under ``-X importtime``, which slows it down. The headline: importing
``fmnist_utils.data`` beyond torch, against importing torch.

Beyond torch the data module costs next to nothing; most of the rest is torchvision, which loads torch's compiler (any
first step of an optimiser would), and seaborn, which loads SciPy.
"""

import json
import subprocess
import sys
from collections import Counter
from statistics import median

import matplotlib.pyplot as plt
import numpy as np

from fmnist_utils import pick
from fmnist_utils.plots import COLORS, use_style
from fmnist_utils.results import save_benchmark

PROCESSES = pick(smoke=1, cpu=7, full=7)
MODULES = ("data", "preprocess", "models", "cache", "train", "evaluate", "plots", "recipes", "explain")
IMPORTS = {f"import {name}": f"import {name}" for name in ("torch", *(f"fmnist_utils.{m}" for m in MODULES))}
STEPS = IMPORTS | {
    'load("train") and load("test")': "for split in ('train', 'test'): fmnist_utils.data.load(split)",
    "build_model: VGG16 to block3": (
        "fmnist_utils.models.build_model('vgg16', cut_after='block3', head='pooled', image_size=56)"
    ),
}
TIMER = """
import json, time
seconds = {}
for step, code in json.loads(%r).items():
    began = time.perf_counter()
    exec(code)
    seconds[step] = time.perf_counter() - began
print(json.dumps(seconds))
"""


def seconds_by_step() -> dict[str, float]:
    """Seconds of each step in a fresh process."""
    code = TIMER % json.dumps(STEPS)
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def seconds_by_package() -> list[dict]:
    """The six packages that take longest to import after torch, in a fresh process."""
    command = [sys.executable, "-X", "importtime", "-c", "\n".join(IMPORTS.values())]
    log = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in log.splitlines() if "|" in line]
    names = [row[2].strip() for row in rows]
    packages = Counter()
    for (own, _, _), name in list(zip(rows, names, strict=True))[names.index("torch") + 1 :]:
        package = name.partition(".")[0]
        packages["torch (parts that importing torch leaves out)" if package == "torch" else package] += int(own) / 1e6
    return [{"package": name, "seconds": round(seconds, 2)} for name, seconds in packages.most_common(6)]


def draw(measurements: list[dict]) -> plt.Figure:
    use_style()
    names, medians, lows, highs = zip(*(m.values() for m in measurements), strict=True)
    colors = [COLORS["muted"] if n == "import torch" else COLORS["train" if n in IMPORTS else "test"] for n in names]
    figure, axis = plt.subplots(figsize=(8, 4.6))
    errors = np.abs(np.array([lows, highs]) - medians)
    axis.barh(names, medians, xerr=errors, color=colors, height=0.65, error_kw={"lw": 1, "ecolor": "#3F444B"})
    for row, (value, high) in enumerate(zip(medians, highs, strict=True)):
        axis.annotate(f"{value:.2f} s", (high, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.1)
    axis.set_title(f"What a notebook waits for (fresh processes, median of {PROCESSES})")
    axis.set_xlabel("seconds, each step after those above it")
    return figure


def main() -> None:
    runs = [seconds_by_step() for _ in range(PROCESSES)]
    measurements = []
    for step in STEPS:
        seconds = sorted(run[step] for run in runs)
        values = {"seconds": median(seconds), "fastest": seconds[0], "slowest": seconds[-1]}
        measurements.append({"name": step} | {name: round(value, 3) for name, value in values.items()})
    by_name = {m["name"]: m["seconds"] for m in measurements}
    path = save_benchmark(
        "start_up",
        setting=f"import fmnist_utils.data after torch, against import torch; fresh processes: {PROCESSES}, median",
        ours=1e3 * by_name["import fmnist_utils.data"],
        reference=1e3 * by_name["import torch"],
        unit="ms",
        figure=draw(measurements),
        measurements=measurements,
        all_modules_beyond_torch=round(sum(by_name[name] for name in IMPORTS) - by_name["import torch"], 3),
        heaviest_imports=seconds_by_package(),
    )
    print(path.read_text())


if __name__ == "__main__":
    main()

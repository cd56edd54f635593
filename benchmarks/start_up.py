"""How long until a notebook can begin? Imports beyond PyTorch's own, opening the data, building the model."""

import json
import subprocess
import sys
from collections import Counter
from statistics import median

from common import options, record

from fmnist_utils import pick

PROCESSES = pick(smoke=1, cpu=7, full=7)
MODULES = ("data", "preprocess", "models", "cache", "train", "evaluate", "plots", "recipes", "explain")
IMPORTS = {f"import {name}": f"import {name}" for name in ("torch", *(f"fmnist_utils.{m}" for m in MODULES))}
BUILD = "fmnist_utils.models.build_model('vgg16', cut_after='block3', head='pooled', image_size=56)"
STEPS = IMPORTS | {
    'load("train") and load("test")': "for split in ('train', 'test'): fmnist_utils.data.load(split)",
    "build_model: VGG16 to block3": BUILD,
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
    """Seconds of each step in a fresh interpreter, which has imported nothing (a copy of a server has)."""
    code = TIMER % json.dumps(STEPS)
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))


def seconds_by_package() -> list[dict]:
    """The six packages that take longest to import after torch, in a fresh process."""
    command = [sys.executable, "-X", "importtime", "-c", "\n".join(IMPORTS.values())]
    log = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    rows = [line.removeprefix("import time:").split("|") for line in log.splitlines() if "|" in line]
    names, packages = [row[2].strip() for row in rows], Counter()
    for (self_time, _, _), name in list(zip(rows, names, strict=True))[names.index("torch") + 1 :]:
        package, seconds = name.partition(".")[0], int(self_time) / 1e6
        packages["torch (parts that importing torch leaves out)" if package == "torch" else package] += seconds
    return [{"package": name, "seconds": seconds} for name, seconds in packages.most_common(6)]


def main() -> None:
    options(__doc__)
    runs = [seconds_by_step() for _ in range(PROCESSES)]
    times = {step: [run[step] for run in runs] for step in STEPS}
    middle = {step: median(seconds) for step, seconds in times.items()}
    rows = [
        {"name": step, "seconds": middle[step], "fastest": min(seconds), "slowest": max(seconds)}
        for step, seconds in times.items()
    ]
    fields = {"measurements": rows, "heaviest_imports": seconds_by_package()}
    fields["all_modules_beyond_torch"] = sum(middle[name] for name in IMPORTS) - middle["import torch"]
    data, alone = (1e3 * middle[f"import {name}"] for name in ("fmnist_utils.data", "torch"))
    setting = f"import fmnist_utils.data after torch, against import torch; fresh processes: {PROCESSES}, median"
    record("start_up", setting, data, alone, "ms", **fields)


if __name__ == "__main__":
    main()

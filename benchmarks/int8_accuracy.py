"""What do frozen layers in int8 gain on the usual loop, and cost in accuracy, by the way they are quantised?"""

import tempfile
from pathlib import Path
from statistics import mean, stdev

import loops
import nncf
import numpy as np
import torch
from common import options, record, splits, timed, weights_of
from torch import Tensor, nn
from usual_loop import CUT, write_splits

from fmnist_utils import pick
from fmnist_utils.cache import CachedFeatures, prefix_key
from fmnist_utils.evaluate import predict
from fmnist_utils.models import build_model
from fmnist_utils.scale.engines import openvino_frozen
from fmnist_utils.scale.storage import PrefixPass
from fmnist_utils.train import fit

SIZE = pick(smoke=32, cpu=64, full=64)
#: Images: training, validation after each epoch as in usual_loop.py, and validation for the accuracies here.
TRAIN, FEW, VAL = pick(smoke=(32, 8, 64), cpu=(2_000, 100, 5_000), full=(2_000, 100, 5_000))
SEEDS, EPOCHS = pick(smoke=(0, 1), cpu=range(5), full=range(5)), pick(smoke=2, cpu=10, full=10)
FULLY = {"fast_bias_correction": False}
#: Calibration images, and arguments of ``nncf.quantize``. The first is that of ``cache_features``.
INT8 = {
    "int8": (loops.CALIBRATION, {}),
    "int8, mixed preset": (loops.CALIBRATION, {"preset": nncf.QuantizationPreset.MIXED}),
    "int8, full bias correction": (loops.CALIBRATION, FULLY),
    "int8, more images": pick(smoke=(8, FULLY), cpu=(320, FULLY), full=(320, FULLY)),
}
SETTINGS = {"name": "vgg16", "head": (0, 1, (256,), False), "image_size": SIZE, "cut_after": CUT.get("vgg16")}
#: As the usual loop trains; no epoch is chosen, which on few images would decide more than the features.
TRAINING = {"batch_size": loops.BATCH, "lr": loops.LR, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant"}


@torch.no_grad()
def through(model: nn.Module, run, images: Tensor) -> Tensor:
    """What ``run`` makes of the images, float16 [1, N, …]."""
    return torch.cat([run(model.preprocess(part)) for part in images.split(32)]).half()[None]


def learned(data: dict, way: str, calibration: int = 0, quantising: dict | None = None) -> tuple[dict, np.ndarray]:
    """(row of the way, share of the heads, float [N], that recognise each validation image)."""
    frozen = build_model(**SETTINGS, **weights_of("vgg16")).eval()
    layers = frozen.split()[0][1:]
    batches = [frozen.preprocess(part) for part in data["train"].images[:calibration].split(32)] if calibration else []
    run, preparation = layers.to(memory_format=torch.channels_last), 0.0
    if batches:
        run, preparation = timed(lambda: openvino_frozen(layers, SIZE, batches, **quantising))
    _, few = timed(through, frozen, run, data["val"].images[:FEW])
    outputs, seconds = {}, {}
    for split in ("train", "val"):
        outputs[split], seconds[split] = timed(through, frozen, run, data[split].images)
    hits, training = [], []
    for seed in SEEDS:
        model = build_model(**SETTINGS, **weights_of("vgg16"), seed=seed)
        prefix, report = model.split()[0], PrefixPass(0, 0.0, way, 0)
        features = {
            split: CachedFeatures(outputs[split], data[split].labels, way, prefix_key(prefix), len(prefix), report)
            for split in outputs
        }
        settings = TRAINING | {"epochs": EPOCHS, "seed": seed, "choose": False, "progress": False}
        training.append(timed(lambda: fit(model, *features.values(), **settings))[1])  # noqa: B023
        hits.append(predict(model, features["val"]).argmax(1) == data["val"].labels.numpy())
    accuracies = [hit.mean() for hit in hits]
    row = {"way": way, "calibration_images": calibration, "preparation_seconds": preparation}
    row |= {"pass_seconds": seconds["train"] + few, "training_seconds": mean(training)}
    row["total_seconds"] = row["preparation_seconds"] + row["pass_seconds"] + row["training_seconds"]
    row |= {"val_accuracy": mean(accuracies), "sd": stdev(accuracies), "by_seed": accuracies}
    return row, np.mean(hits, 0)


def main() -> None:
    options(__doc__)
    data = splits(train=TRAIN, val=VAL)
    loops.EPOCHS = 1
    with tempfile.TemporaryDirectory() as folder:
        usual = loops.usual(SETTINGS | weights_of("vgg16"), write_splits(Path(folder, "csv"), (TRAIN, FEW, FEW)))
    reference = EPOCHS * usual["epoch_seconds"]
    float32, base = learned(data, "float32")
    rows = [float32]
    for way, settings in INT8.items():
        row, share = learned(data, way, *settings)
        difference = 100 * (share - base)
        half = 1.96 * difference.std(ddof=1) / np.sqrt(VAL)
        row |= {
            "difference_points": difference.mean(),
            "interval": (difference.mean() - half, difference.mean() + half),
        }
        rows.append(row)
    for row in rows:
        row["times_the_usual_loop"] = reference / row["total_seconds"]
        print(row, flush=True)
    best = max(rows[1:], key=lambda row: row["val_accuracy"])
    setting = f"VGG16, {SIZE} px, {TRAIN:,} training images, {EPOCHS} epochs: {best['way']} against the usual loop "
    setting += f"({EPOCHS} × one measured epoch)"
    rates = (TRAIN * EPOCHS / seconds for seconds in (best["total_seconds"], reference))
    fields = {"usual_loop_seconds": reference, "ways": rows, "val_images": VAL, "seeds": [*SEEDS]}
    record("int8_accuracy", setting, *rates, "images·epochs/s", **fields)


if __name__ == "__main__":
    main()

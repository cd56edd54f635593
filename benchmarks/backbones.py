"""What do other backbones give, and what do they cost? Accuracy with real ImageNet weights against work per image.

Every pretrained network is frozen, sees the same pictures at the same size, and gets the same head on its feature map
pooled to 4×4. The small CNN learns from scratch. Nothing here is frozen with random weights: a network whose ImageNet
weights cannot be had is left out. The test set is not used.

``--scratch`` compares the small CNN with a wide residual network instead, both from scratch, with fewer seeds: the wide
one takes minutes a training. They are recorded in a file of their own, ``backbones_scratch-PROFILE.json``.

Finished rows are kept in ``data/cache/backbones-PROFILE``, so an interrupted run goes on. Explained in
notebooks/06_tuning_and_backbones.ipynb.
"""

import json
import time

import numpy as np
import torch
from common import options, record, splits

from fmnist_utils import ROOT, pick, plots, profile
from fmnist_utils.cache import cache_features
from fmnist_utils.data import replacing
from fmnist_utils.evaluate import mcnemar, predict
from fmnist_utils.models import WeightsUnavailable, build_model, summary
from fmnist_utils.recipes import RECIPES
from fmnist_utils.train import fit

TRAIN, VAL = pick(smoke=(40, 20), cpu=(2_000, 2_000), full=(20_000, 5_000))
EPOCHS, SEEDS = pick(smoke=1, cpu=12, full=12), pick(smoke=(0, 1), cpu=(0, 1, 2), full=(0, 1, 2))
#: Side in pixels for all pretrained networks.
PIXELS = pick(smoke=32, cpu=64, full=112)
#: Calls whose fastest one counts, networks taking turns.
ROUNDS = pick(smoke=1, cpu=8, full=8)
NETWORKS = [
    ("VGG16 to block3", "vgg16", "block3"),
    ("VGG16, whole", "vgg16", None),
    ("ResNet50 to layer1", "resnet50", "layer1"),
    ("ResNet50 to layer2", "resnet50", "layer2"),
    ("ResNet50 to layer3", "resnet50", "layer3"),
    ("ResNet50, whole", "resnet50", None),
    ("SqueezeNet 1.1", "squeezenet1_1", None),
    ("MobileNetV2", "mobilenet_v2", None),
]
if profile() == "smoke":
    NETWORKS = [row for row in NETWORKS if row[1] in ("vgg16", "squeezenet1_1")]
MODELS = {
    label: {"name": name, "cut_after": cut, "head": "pooled", "image_size": PIXELS} for label, name, cut in NETWORKS
}
SCRATCH, WIDE = "small CNN from scratch", "WRN-16-4 from scratch"
MODELS[SCRATCH] = RECIPES["small-cnn"]["model"] | {"trainable": "all"}
MODELS[WIDE] = MODELS[SCRATCH] | {"name": "wide_resnet_16_4"}
#: The recipe of the small CNN, for the wide network as well: nothing was tuned for it.
FROM_SCRATCH = {k: v for k, v in RECIPES["small-cnn"]["phases"][0].items() if k not in ("trainable", "epochs")}
#: Of the comparison from scratch.
FEWER_SEEDS = pick(smoke=(0, 1), cpu=(0, 1), full=(0, 1, 2))
FOLDER = ROOT / "data" / "cache" / f"backbones-{profile()}"


def measured(label: str, seeds: tuple[int, ...]) -> dict:
    """One row: what the network gives after training what is not frozen, a training per seed.

    ``wrong`` holds the validation images that the first seed gets wrong.
    """
    images, frozen = splits(train=TRAIN, val=VAL), label not in (SCRATCH, WIDE)
    model = build_model(**MODELS[label])
    table, total = summary(model), summary(model).loc["total"]
    inputs = {k: cache_features(model, v, verbose=False) for k, v in images.items()} if frozen else images
    accuracies, wrong, began = [], [], time.process_time()
    for seed in seeds:
        model = build_model(**MODELS[label], seed=seed)
        training = {} if frozen else FROM_SCRATCH
        fit(model, inputs["train"], inputs["val"], epochs=EPOCHS, seed=seed, progress=False, **training)
        missed = predict(model, inputs["val"]).argmax(1) != images["val"].labels.numpy()
        accuracies.append(1 - missed.mean())
        wrong = wrong or np.flatnonzero(missed).tolist()
    return {
        "network": label,
        "weights": model.weights,
        "weights_origin": model.weights_origin if frozen else "none: from scratch",
        "image_size": model.preprocess.image_size,
        "features": table.output.iloc[-3],
        "million_parameters": total.parameters / 1e6,
        "gflop_per_image": total.MFLOPs / 1e3,
        "core_seconds_per_training": (time.process_time() - began) / len(seeds),
        "val_accuracy": float(np.mean(accuracies)),
        "val_accuracy_sd": float(np.std(accuracies, ddof=1)),
        "wrong": wrong,
    }


def kept(label: str, seeds: tuple[int, ...] = SEEDS) -> dict:
    """:func:`measured`, or what an earlier run has kept of it."""
    file = FOLDER / f"{label}, {len(seeds)} seeds.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        row = measured(label, seeds)
        with replacing(file) as part:
            part.write_text(json.dumps(row), encoding="utf-8")
        print({k: v for k, v in row.items() if k != "wrong"}, flush=True)
    return json.loads(file.read_text(encoding="utf-8"))


@torch.no_grad()
def core_milliseconds(labels: list[str]) -> dict[str, float]:
    """Milliseconds of one CPU core per image, in batches of 32: processor time, the fastest of calls that take turns.

    Processor time leaves out what other programs take meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = splits(val=32 if VAL >= 32 else VAL)["val"].images
    models = {label: build_model(**MODELS[label]).to(memory_format=torch.channels_last) for label in labels}
    best = dict.fromkeys(labels, np.inf)
    for _ in range(1 + ROUNDS):
        for label, model in models.items():
            began = time.process_time()
            model(images)
            best[label] = min(best[label], 1e3 * (time.process_time() - began) / len(images))
    torch.set_num_threads(threads)
    return best


def on_front(rows: list[dict]) -> list[dict]:
    """The rows that no other one beats in both accuracy and milliseconds, fastest first."""
    front = []
    for row in sorted(rows, key=lambda row: (row["core_ms_per_image"], -row["val_accuracy"])):
        if not front or row["val_accuracy"] > front[-1]["val_accuracy"]:
            front.append(row)
    return front


def compare(rows: list[dict]) -> dict:
    """Adds to each row how it differs from the best one on the same images (McNemar's test); returns the best."""
    best = max(rows, key=lambda row: row["val_accuracy"])
    right = {row["network"]: ~np.isin(np.arange(VAL), row.pop("wrong")) for row in rows}
    for row in rows:
        found = mcnemar(right[row["network"]], right[best["network"]])
        row |= {"only_this": found["only_a"], "only_best": found["only_b"], "p_value": found["p_value"]}
    return best


def compare_from_scratch() -> None:
    """The small CNN and the wide network, both from scratch; writes the file."""
    rows = [kept(label, FEWER_SEEDS) for label in (WIDE, SCRATCH)]
    milliseconds = core_milliseconds([WIDE, SCRATCH])
    compare(rows)
    rows = [row | {"core_ms_per_image": milliseconds[row["network"]]} for row in rows]
    fields = {"networks": rows, "train_images": TRAIN, "val_images": VAL, "epochs": EPOCHS, "seeds": list(FEWER_SEEDS)}
    setting = f"{WIDE} against the {SCRATCH}: {TRAIN:,} training and {VAL:,} validation images, {EPOCHS} epochs, "
    setting += f"{len(FEWER_SEEDS)} seeds"
    record("backbones_scratch", setting, *(100 * row["val_accuracy"] for row in rows), "% correct", **fields)


def main() -> None:
    if options(__doc__.splitlines()[0], scratch="compare two networks from scratch instead").scratch:
        return compare_from_scratch()
    rows, left_out = [], []
    for label in (label for label in MODELS if label != WIDE):
        try:
            rows.append(kept(label))
        except WeightsUnavailable:
            left_out.append(f"{label}: its ImageNet weights could not be had")
            print(left_out[-1], flush=True)
    milliseconds = core_milliseconds([row["network"] for row in rows])
    for row in rows:
        row["core_ms_per_image"] = milliseconds[row["network"]]
    best, scratch = compare(rows), next(row for row in rows if row["network"] == SCRATCH)
    fields = {"networks": rows, "left_out": left_out, "head": "pooled", "train_images": TRAIN, "val_images": VAL}
    fields |= {"epochs": EPOCHS, "seeds": list(SEEDS), "pareto_front": [row["network"] for row in on_front(rows)]}
    record(
        "backbones",
        f"{best['network']} ({best['weights_origin']}) against the small CNN from scratch: {TRAIN:,} training and "
        f"{VAL:,} validation images, {len(SEEDS)} seeds",
        *(100 * row["val_accuracy"] for row in (best, scratch)),
        "% correct",
        figure=plots.backbones(rows, fields["pareto_front"]),
        **fields,
    )


if __name__ == "__main__":
    main()

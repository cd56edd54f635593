"""How many seconds of training does a validation accuracy take, with the course's own ``fit``?

``python benchmarks/speed_run.py`` trains from scratch towards two accuracies, many times each with different seeds, in
the manner of the CIFAR-10 speed runs (Jordan, 2024, arXiv:2404.00498): the number of epochs is settled before the runs
that count, so that their mean passes the target. Where ``GOALS`` lists several numbers, single pilot runs with another
seed try them in order. Training mirrors at random, validation takes the mean over each image and its mirror image. On a
GPU the data lie on the device, in bf16, and the model is compiled. The test set is not used.

``results/benchmarks/speed_run-<profile>.json`` holds a row per goal (``goals``) and per run (``runs``, pilots apart).
``seconds`` are those of the epochs, with the validation after each, but without building, compiling and the final
mirrored validation; ``call_seconds`` hold these, too. The first training of a goal compiles for all of them.
``fit`` keeps the weights of the epoch with the best validation accuracy; ``kept_epoch`` says which it was, and where it
is not the last, the choice flatters the accuracy a little.
"""

import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import PercentFormatter

from fmnist_utils import pick, plots
from fmnist_utils.data import FashionMNIST, load, train_val_split
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.results import save_benchmark
from fmnist_utils.train import fit

SMALL = {"backbone": "small_cnn", "lr": 4e-3, "weight_decay": 0.05, "label_smoothing": 0.05}
#: A larger network for the higher goal, with a thirteenth of WRN-28-10's operations.
WIDE = {
    "backbone": "wide_resnet_16_4",
    "optimizer": "sgd",
    "lr": 0.4,
    "weight_decay": 5e-4,
    "label_smoothing": 0.05,
}
#: Easier goal first. Batch sizes divide the numbers of images, so that compiled code meets one shape.
GOALS = pick(
    smoke=[
        {"target": 0.2, "images": 200, "epochs": (1, 2), "batch_size": 50, **SMALL},
        {"target": 0.4, "images": 500, "epochs": (2,), "batch_size": 50, **SMALL},
    ],
    cpu=[
        {"target": 0.88, "images": 25_000, "epochs": (1,), "batch_size": 50, **SMALL},
        {"target": 0.90, "images": 25_000, "epochs": (2,), "batch_size": 50, **SMALL},
    ],
    full=[
        {"target": 0.94, "images": 55_000, "epochs": (8, 12, 16, 24), "batch_size": 250, **SMALL},
        {"target": 0.95, "images": 55_000, "epochs": (8, 12, 16, 24), "batch_size": 500, **WIDE},
    ],
)
RUNS = pick(smoke=2, cpu=5, full=10)
#: A pilot has to pass by this much, about the standard deviation between runs.
MARGIN = 0.001
PILOT_SEED = 1000


def train_once(goal: dict, epochs: int, seed: int, train: FashionMNIST, val: FashionMNIST) -> dict:
    """One training from scratch, as a row of the table of runs."""
    backbone, target, images = (goal[key] for key in ("backbone", "target", "images"))
    settings = {k: v for k, v in goal.items() if k not in ("backbone", "target", "images", "epochs")}
    began = time.perf_counter()
    model = build_model(backbone, weights=None, augment=Augment(flip=0.5), seed=seed)
    compiled = torch.cuda.is_available()
    history = fit(
        model, train.subset(images), val, epochs=epochs, seed=seed, compile=compiled, progress=False, **settings
    )
    accuracy = score(predict(model, val, flip=True), val.labels)["accuracy"]
    return {
        "target": target,
        "seed": seed,
        "epochs": epochs,
        "accuracy": round(accuracy, 5),
        "accuracy_unmirrored": round(float(history.val_accuracy.max()), 5),
        "kept_epoch": int(history.val_accuracy[::-1].idxmax()),
        "seconds": round(float(history.seconds.sum()), 2),
        "compile_seconds": round(history.attrs["compile_seconds"], 1),
        "call_seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    train, val = train_val_split(load("train"))
    val = val.subset(pick(smoke=200, cpu=len(val), full=len(val)))
    goals, runs, pilots = [], [], []
    for goal in GOALS:
        *attempts, epochs = goal["epochs"]
        for fewer in attempts:
            pilots.append(train_once(goal, fewer, PILOT_SEED, train, val))
            if pilots[-1]["accuracy"] >= goal["target"] + MARGIN:
                epochs = fewer
                break
        rows = []
        for seed in range(RUNS):
            rows.append(train_once(goal, epochs, seed, train, val))
            print(rows[-1], flush=True)
        table = pd.DataFrame(rows)
        goals.append(
            {key: goal[key] for key in ("target", "backbone", "images", "batch_size")}
            | {"epochs": epochs, "runs": RUNS, "above_target": int((table.accuracy >= goal["target"]).sum())}
            | {f"{name}_mean": round(table[name].mean(), 5) for name in ("accuracy", "seconds")}
            | {f"{name}_sd": round(table[name].std(), 5) for name in ("accuracy", "seconds")}
        )
        runs += rows
    easier, harder = goals
    path = save_benchmark(
        "speed_run",
        setting=f"training to {easier['target']:.0%} and {harder['target']:.0%} of {len(val):,} validation images, "
        f"mean of {RUNS} runs each; ours is the easier goal, reference the harder",
        ours=easier["seconds_mean"],
        reference=harder["seconds_mean"],
        unit="s",
        figure=draw(goals, runs),
        precision="bf16 (fp16 on GPUs older than Ampere)" if torch.cuda.is_available() else "float32",
        compiled=torch.cuda.is_available(),
        goals=goals,
        runs=runs,
        pilots=pilots,
    )
    print("wrote", path.name)


def draw(goals: list[dict], runs: list[dict]) -> plt.Figure:
    """A dot per run: seconds of training and validation accuracy, with the targets as dashed lines."""
    plots.use_style()
    figure, axis = plt.subplots(figsize=(9, 3.8))
    for goal, color in zip(goals, (plots.COLORS["train"], plots.COLORS["accent"]), strict=True):
        own = [run for run in runs if run["target"] == goal["target"]]
        axis.axhline(goal["target"], color=color, ls="--", lw=1.2)
        name = goal["backbone"].replace("_", " ").replace("wide resnet 16 4", "WRN-16-4").replace("cnn", "CNN")
        label = (
            f"Target {goal['target']:.0%}: {goal['seconds_mean']:.3g} ± {goal['seconds_sd']:.1g} s\n"
            f"{name}, {goal['epochs']} epoch{'s' * (goal['epochs'] > 1)} of {goal['images']:,} images\n"
            f"accuracy {goal['accuracy_mean']:.2%} ± {100 * goal['accuracy_sd']:.2f}\n"
            f"{goal['above_target']} of {goal['runs']} runs reach the target"
        )
        seconds, accuracy = [run["seconds"] for run in own], [run["accuracy"] for run in own]
        axis.plot(seconds, accuracy, "o", color=color, alpha=0.7, mec="white", ms=8, label=label)
    axis.set(
        xlim=(0, 1.1 * max(run["seconds"] for run in runs)),
        xlabel="seconds of training (compiling apart)",
        ylabel="validation accuracy",
        title=f"Seconds to {goals[0]['target']:.0%} and to {goals[1]['target']:.0%} (dashed), one dot per run",
    )
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axis.margins(y=0.15)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelspacing=1.5, handletextpad=0.3)
    return figure


if __name__ == "__main__":
    main()

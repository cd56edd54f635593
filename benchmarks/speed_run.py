"""How many seconds of training does a validation accuracy take, with the course's own ``fit``?"""

import pandas as pd
import torch
from common import clock, options, record, splits

from fmnist_utils import pick
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.train import fit

SMALL = {"backbone": "small_cnn", "weight_decay": 0.05, "label_smoothing": 0.05}
#: A larger network for the higher goal, with a thirteenth of WRN-28-10's operations.
WIDE = {"backbone": "wide_resnet_16_4", "optimizer": "sgd", "weight_decay": 5e-4, "label_smoothing": 0.05}
#: Easier goal first, each with attempts (epochs, batch size, rate) in the order of their expected time: on a GPU the
#: small CNN waits for the launch of its kernels, so that larger batches are quicker. Batch sizes divide the numbers of
#: training images, so that compiled code meets one shape.
GOALS = [
    goal | {"target": target, "images": images, "attempts": attempts}
    for goal, target, images, attempts in pick(
        smoke=[(SMALL, 0.2, 200, [(1, 100, 4e-3), (2, 50, 4e-3)]), (SMALL, 0.4, 500, [(2, 50, 4e-3)])],
        cpu=[(SMALL, 0.88, 25_000, [(1, 50, 4e-3)]), (SMALL, 0.90, 25_000, [(2, 50, 4e-3)])],
        full=[
            (
                SMALL,
                0.94,
                55_000,
                [(8, 1000, 8e-3), (12, 1000, 8e-3), (16, 1000, 8e-3), (16, 250, 4e-3), (24, 250, 4e-3)],
            ),
            (WIDE, 0.95, 55_000, [(8, 500, 0.4), (12, 500, 0.4), (16, 500, 0.4), (24, 500, 0.4)]),
        ],
    )
]
RUNS = pick(smoke=2, cpu=5, full=10)
VAL = pick(smoke=200, cpu=5_000, full=5_000)
#: A pilot has to pass by this much, about the standard deviation between runs.
MARGIN = 0.001
PILOT_SEED = 1000
COMPILED = torch.cuda.is_available()


def train_once(goal: dict, attempt: tuple, seed: int, images: dict) -> dict:
    """One training from scratch, as a row of the table of runs."""
    epochs, batch_size, lr = attempt
    settings = {k: v for k, v in goal.items() if k not in ("backbone", "target", "images", "attempts")}
    settings |= {"batch_size": batch_size, "lr": lr}
    began = clock()
    model = build_model(goal["backbone"], weights=None, augment=Augment(flip=0.5), seed=seed)
    train, val = images["train"].subset(goal["images"]), images["val"]
    history = fit(model, train, val, epochs=epochs, seed=seed, compile=COMPILED, progress=False, **settings)
    accuracy = score(predict(model, val, mirror=True), val.labels)["accuracy"]
    row = {"target": goal["target"], "seed": seed, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    row["accuracy"] = accuracy
    row["accuracy_unmirrored"] = history.val_accuracy.max()
    row["kept_epoch"] = int(history.val_accuracy[::-1].idxmax())
    compiling = history.compile_seconds.sum() if "compile_seconds" in history else 0.0
    row |= {"seconds": history.seconds.sum(), "compile_seconds": compiling}
    row["call_seconds"] = clock() - began
    print(row, flush=True)
    return row


def reached(goal: dict, images: dict) -> tuple[dict, list[dict], list[dict]]:
    """(row of the goal, rows of its runs, rows of its pilots)."""
    pilots = []
    *quicker, attempt = goal["attempts"]
    for one in quicker:
        pilots.append(train_once(goal, one, PILOT_SEED, images))
        if pilots[-1]["accuracy"] >= goal["target"] + MARGIN:
            attempt = one
            break
    rows = [train_once(goal, attempt, seed, images) for seed in range(RUNS)]
    table, row = pd.DataFrame(rows), {key: goal[key] for key in ("target", "backbone", "images")}
    row |= dict(zip(("epochs", "batch_size", "lr"), attempt, strict=True)) | {
        "runs": RUNS,
        "above_target": int((table.accuracy >= goal["target"]).sum()),
    }
    for name in ("accuracy", "seconds"):
        row |= {f"{name}_mean": table[name].mean(), f"{name}_sd": table[name].std()}
    return row, rows, pilots


def main() -> None:
    options(__doc__)
    images = splits(train=55_000, val=VAL)
    goals, runs, pilots = zip(*(reached(goal, images) for goal in GOALS), strict=True)
    fields = {"goals": goals, "runs": sum(runs, []), "pilots": sum(pilots, []), "compiled": COMPILED}
    fields["precision"] = "bf16 (fp16 on GPUs older than Ampere)" if COMPILED else "float32"
    easier, harder = (f"{goal['target']:.0%}" for goal in goals)
    setting = f"training to {easier} and {harder} of {VAL:,} validation images, mean of {RUNS} runs each; ours is the "
    seconds = (goal["seconds_mean"] for goal in goals)
    record("speed_run", f"{setting}easier goal, reference the harder", *seconds, "s", **fields)


if __name__ == "__main__":
    main()

"""A small search for tests/test_tune.py, which can kill its process in a trial of that number."""

import os
import signal

from fmnist_utils.data import load, train_val_split
from fmnist_utils.recipes import MIRROR
from fmnist_utils.tune import study as tune

tune.RANDOM_TRIALS = 2
ends_in: int | None = None


def space(trial) -> dict:
    views = trial.suggest_categorical("views", (1, 2))
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if trial.number == ends_in:
        trial.report = lambda value, step: os.kill(os.getpid(), signal.SIGKILL)
    model = {"name": "vgg16", "cut_after": "block1", "head": "linear", "image_size": 16}
    return {
        "model": model | ({"augment": MIRROR} if views == 2 else {}),
        "phases": [{"trainable": "head", "epochs": 4, "batch_size": 32, "lr": lr}],
        "views": views,
    }


def search(storage, cache, trials: int, **settings):
    train, val = train_val_split(load("train").subset(120), 60)
    settings |= {"storage": storage, "cache": cache, "space": space}
    return tune.search("tiny", trials=trials, train=train, val=val, **settings)

"""What tests/test_processes.py starts in one and in two processes: ``several_processes.py FOLDER TASK …``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from fmnist_utils import train
from fmnist_utils.cache import cache_features
from fmnist_utils.data import load
from fmnist_utils.evaluate import predict
from fmnist_utils.models import build_model
from fmnist_utils.scale.processes import rank_and_count

# 203 = 3 * 64 + 11 images: the last batch is small and odd. Of 257 to validate one process gets 128, which is one
# batch, and the other 129, which are two.
SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 0.02, "optimizer": "sgd", "progress": False}


def data():
    images = load("train").subset(460)
    return images.select(range(203)), images.select(range(203, 460))


def report(folder: Path, name: str, model, history, probabilities) -> None:
    """Each process writes what it has got, so that the test sees whether all agree."""
    own = folder / f"{name}-{rank_and_count()[0]}"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{own}.safetensors")
    rows = history.drop(columns="seconds").reset_index().to_dict("records")
    Path(f"{own}.json").write_text(json.dumps({"history": rows, "processes": rank_and_count()[1]}))
    save_file({"probabilities": torch.from_numpy(probabilities)}, f"{own}-predictions.safetensors")


def images(folder: Path) -> None:
    """The small CNN with batch normalisation and a moving average of the weights, on images."""
    training, validation = data()
    model = build_model("small_cnn", weights=None)
    written = []
    sys.addaudithook(lambda event, args: written.append(str(args)) if event in ("os.rename", "os.remove") else None)
    history = train.fit(model, training, validation, **SETTINGS, ema=0.9, checkpoint=folder / "checkpoint")
    files = [arguments for arguments in written if str(folder) in arguments]
    (folder / f"files-{rank_and_count()[0]}.json").write_text(json.dumps(files))
    report(folder, "images", model, history, predict(model, validation))


def features(folder: Path) -> None:
    """VGG16 to block1 through features in memory and in a file, one view plain and one drawn at random."""
    training, validation = data()
    settings = {"image_size": 16, "cut_after": "block1", "head": (0, 2, (16,), True), "dropout": 0.0}
    model = build_model("vgg16", **settings, augment={"rotation": 20.0, "flip": 0.5})
    in_memory = cache_features(model, training, views=2, verbose=False)
    in_file = cache_features(model, training, views=2, folder=folder / "cache", verbose=False)
    again = cache_features(model, training, views=2, folder=folder / "cache", verbose=False)
    assert torch.equal(in_memory.features, in_file.features)
    assert torch.equal(in_memory.features, again.features)
    assert again.report.reused
    held_out = cache_features(model, validation, verbose=False)
    history = train.fit(model, in_memory.view(0), held_out, **SETTINGS)
    report(folder, "features", model, history, predict(model, held_out))
    save_file({"features": in_memory.features}, folder / f"cache-{rank_and_count()[0]}.safetensors")


def killed(folder: Path) -> None:
    """The same training as `images`, in which one process is killed in the second epoch."""
    one_epoch, epochs = train.train_one_epoch, []

    def interrupted(*args, **settings):
        epochs.append(1)
        if len(epochs) == 2 and rank_and_count()[0] == rank_and_count()[1] - 1:
            while not (folder / "checkpoint.resume.pt").is_file():  # the first process is still writing it
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return one_epoch(*args, **settings)

    train.train_one_epoch = interrupted
    images(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # In float64 the runs must agree to many digits; in float32 equal pixels make ties, and rounding decides them.
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    for task in sys.argv[2:]:
        globals()[task](Path(sys.argv[1]))

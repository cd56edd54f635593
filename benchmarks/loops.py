"""The loop of most notebooks, written with care, and ours beside it; ``usual_loop.py`` compares them."""

import functools
from multiprocessing import set_start_method
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from common import clock
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from fmnist_utils import pick
from fmnist_utils.cache import cache_features
from fmnist_utils.data import make_loader, read_csv
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import Classifier, build_model
from fmnist_utils.results import peak_memory_mb
from fmnist_utils.scale.engines import default_device
from fmnist_utils.train import fit, validate

BATCH, LR, WORKERS = 32, 1e-3, 2
EPOCHS = pick(smoke=2, cpu=10, full=10)
#: Images that set the ranges of int8.
CALIBRATION = pick(smoke=4, cpu=64, full=64)
#: The input pipeline alone is timed on this many output pixels: a second or more of the faster one.
PIPELINE_PIXELS = pick(smoke=200_000, cpu=80_000_000, full=200_000_000)


class CsvImages(Dataset):
    """Rows of a CSV file (label, 784 pixels), turned into images one at a time."""

    def __init__(self, path: Path, transform) -> None:
        table = pd.read_csv(path)
        self.labels = table["label"].to_numpy()
        self.pixels = table.drop(columns="label").to_numpy(np.uint8)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.pixels[index].reshape(28, 28))
        return self.transform(image), int(self.labels[index])


def usual(settings: dict, folder: Path) -> dict:
    """Train and test as most notebooks do; returns what it took and reached."""
    device, model, measured = prepare(settings)
    backbone = model.backbone.to(device).eval()  # BatchNorm keeps its statistics
    hidden, output = nn.Linear(model.head[2].in_features, 256), nn.Linear(256, 10)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.5), output).to(device)
    head.load_state_dict(model.head.state_dict())
    network = nn.Sequential(backbone, head)
    size, std = settings["image_size"], 1 / (255 * model.preprocess.scale.flatten())
    mean = -model.preprocess.offset.flatten() * std
    resize, normalize = transforms.Resize((size, size)), transforms.Normalize(mean.tolist(), std.tolist())
    transform = transforms.Compose([resize, transforms.Grayscale(3), transforms.ToTensor(), normalize])
    began = clock()
    train, val = (CsvImages(folder / f"{split}.csv", transform) for split in ("train", "val"))
    loader = functools.partial(DataLoader, batch_size=BATCH, num_workers=WORKERS, pin_memory=device == "cuda")
    generator = torch.Generator()
    train_loader, val_loader = loader(train, shuffle=True, generator=generator), loader(val)
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    rows, best, best_accuracy = [], None, -1.0
    for epoch in range(EPOCHS):
        epoch_began = clock()
        # As fit() seeds its first run's epochs: the same order and dropout masks for both.
        torch.manual_seed(epoch)
        generator.manual_seed(epoch)
        head.train()
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                features = backbone(images)
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val_loss, val_accuracy = validate(network, val_loader)
        if val_accuracy >= best_accuracy:
            best, best_accuracy = {k: v.clone() for k, v in head.state_dict().items()}, val_accuracy
        rows.append({"val_loss": val_loss, "val_accuracy": val_accuracy, "seconds": clock() - epoch_began})
    total = clock() - began
    head.load_state_dict(best)
    tested = clock()
    _, accuracy = validate(network, loader(CsvImages(folder / "test.csv", transform)))
    test_seconds = clock() - tested
    many = Subset(train, pipeline_indices(len(train), size))
    rates = pipeline_rates(loader(many), lambda images: images.to(device))
    measured |= {"workers_peak_memory_mb": peak_memory_mb(of_children=True)}
    return measured | outcome(pd.DataFrame(rows), total, test_seconds, accuracy, rates)


def ours(settings: dict, folder: Path, training: dict, int8: bool = False) -> dict:
    """The same with features that are computed once; ``training`` holds arguments of :func:`fmnist_utils.train.fit`."""
    device, model, measured = prepare(settings)
    began = clock()
    train, val = (read_csv(folder / f"{split}.csv") for split in ("train", "val"))
    engine = {"engine": "openvino", "calibration": train.subset(min(len(train), CALIBRATION))} if int8 else {}
    features = [cache_features(model, data, **engine, verbose=False) for data in (train, val)]
    measured |= {"pass_seconds": clock() - began, "engine": features[0].report.engine}
    history = fit(model, *features, **training, progress=False)
    total = clock() - began
    tested = clock()
    test = cache_features(model, read_csv(folder / "test.csv"), **engine, verbose=False)
    accuracy = score(predict(model, test), test.labels)["accuracy"]
    test_seconds = clock() - tested
    many = train.select(pipeline_indices(len(train), model.preprocess.image_size))
    rates = pipeline_rates(make_loader(many, BATCH), lambda images: model.preprocess(images.to(device)))
    return measured | outcome(history.reset_index(), total, test_seconds, accuracy, rates)


def prepare(settings: dict) -> tuple[str, Classifier, dict]:
    """(device, model, its weights and the seconds of a first call): the same for both, and counted for neither."""
    set_start_method(None, force=True)  # workers start in the platform's way, not in that of in_fresh_process()
    device = default_device()
    model, began = build_model(**settings), clock()
    with torch.no_grad():
        model.to(device)(torch.zeros(2, 28, 28, dtype=torch.uint8, device=device))
    return device, model, {"weights": model.weights, "warm_up_seconds": clock() - began}


def pipeline_indices(count: int, image_size: int) -> list[int]:
    """Indices of ``count`` images, over and over, as many as ``PIPELINE_PIXELS`` says."""
    return [i % count for i in range(max(2 * BATCH, PIPELINE_PIXELS // image_size**2))]


@torch.no_grad()
def pipeline_rates(loader: DataLoader, work) -> tuple[float, float]:
    """Images per second through ``loader`` and ``work``, from the start on and from the first batch on."""
    began, first = clock(), None
    for images, _ in loader:
        work(images)
        first = first or clock()
    ended, count = clock(), len(loader.dataset)
    return count / (ended - began), (count - BATCH) / (ended - first)


def outcome(history: pd.DataFrame, total: float, test_seconds: float, accuracy: float, rates: tuple) -> dict:
    """What both variants report, by the names of the JSON."""
    best = int(history.val_accuracy[::-1].idxmax()) + 1  # the last of equally good epochs, as both keep it
    row = {"total_seconds": total, "epoch_seconds": history.seconds.median(), "test_seconds": test_seconds}
    row |= {"test_accuracy": accuracy, "best_epoch": best, "val_losses": history.val_loss.tolist()}
    row |= {"pipeline_images_per_second": rates[0], "pipeline_steady_images_per_second": rates[1]}
    return row | {"peak_memory_mb": peak_memory_mb()}

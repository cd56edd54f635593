"""The training loop: Accelerate underneath, visible on top.

Written out once and explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import json
import math
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, OneCycleLR
from torch.utils.data import Dataset
from tqdm import tqdm

from fmnist_utils.cache import CachedFeatures, as_input, half_precision
from fmnist_utils.data import make_loader, replacing
from fmnist_utils.models import Classifier, _check_name, changed_state, save_model

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "exponential", "constant")


def fit(
    model: Classifier,
    train: Dataset,
    val: Dataset,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    schedule: str = "one-cycle",
    decay: float = 0.9,
    label_smoothing: float = 0.0,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    mixed_precision: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train what is not frozen in ``model``; leaves it in eval mode with the weights of the best validation accuracy.

    ``train`` and ``val`` are both images (:class:`~fmnist_utils.data.FashionMNIST`) or both
    :class:`~fmnist_utils.cache.CachedFeatures` of this model; with features only the layers behind the freeze border
    run. ``schedule`` changes the learning rate every batch: ``one-cycle`` (Smith, 2018, arXiv:1803.09820), ``cosine``
    (Loshchilov & Hutter, 2017, arXiv:1608.03983), ``exponential`` (times ``decay`` per epoch) or ``constant``.
    ``patience`` stops after that many epochs without a better validation accuracy. ``mixed_precision``: ``"auto"`` is
    bf16 (or fp16) on a CUDA GPU and float32 elsewhere; or Accelerate's ``"no"``, ``"fp16"``, ``"bf16"``.

    ``checkpoint`` names a file without ending: an interrupted call, repeated, goes on after the last finished epoch and
    ends, on a CPU, with the same weights; a finished one leaves :func:`~fmnist_utils.models.save_model`'s two files.

    Returns one row per epoch: ``lr`` (at its end), ``train_loss``, ``train_accuracy`` (means over the samples while
    training, so with dropout and augmentation), ``val_loss``, ``val_accuracy`` (eval mode) and ``seconds``. The same
    ``seed`` gives the same numbers on the same CPU. Torch's global generator is seeded anew each epoch.

    Raises ``ValueError`` for unknown names, features of another model, or a checkpoint of other settings, and
    ``FloatingPointError`` when the loss is no longer a number. Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    settings = {k: v for k, v in locals().items() if k not in ("model", "train", "val", "checkpoint", "progress")}
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least 1.")

    # Accelerate looks for notebook widgets, which this package does not use, and warns where there are none.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    part = _trainable_part(model, train, val).to(memory_format=torch.channels_last)
    AcceleratorState._reset_state()  # or the precision of a process's first training would bind all later ones
    accelerator = Accelerator(mixed_precision=_precision(mixed_precision))
    model.to(accelerator.device)
    loader = make_loader(train, batch_size, shuffle=True, seed=seed)
    generator = loader.generator
    steps = epochs * len(loader)
    opt = make_optimizer(part, optimizer, lr, weight_decay)
    scheduler = make_schedule(opt, schedule, lr, steps, len(loader), decay)
    val_loader = make_loader(val.view(0) if isinstance(val, CachedFeatures) else val, 2 * batch_size)
    part, opt, loader, val_loader = accelerator.prepare(part, opt, loader, val_loader)
    loss_function = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    progress_file = Path(f"{checkpoint}.resume.pt") if checkpoint else None
    run = json.dumps([settings, model.config, model.weights, _fingerprint(train), _fingerprint(val)])
    rows, best = _resume(progress_file, run, model, opt, scheduler)
    bar = tqdm(total=epochs, initial=len(rows), unit="epoch", disable=not progress, leave=False)
    for epoch in range(len(rows), epochs):
        if _is_over(rows, patience):
            break
        # Seeding by epoch is what makes an interrupted run repeatable: no generator state has to be stored.
        torch.manual_seed(seed * 100_003 + epoch)
        generator.manual_seed(seed * 100_003 + epoch)
        began = time.perf_counter()
        train_loss, train_accuracy = train_one_epoch(part, loader, opt, scheduler, loss_function, accelerator)
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"The loss is {train_loss} in epoch {epoch + 1}: lower lr (now {lr}) and start again."
            )
        val_loss, val_accuracy = evaluate(part, val_loader)
        rows.append(
            {
                "epoch": epoch + 1,
                "lr": scheduler.get_last_lr()[0],
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": time.perf_counter() - began,
            }
        )
        if val_accuracy >= max(row["val_accuracy"] for row in rows):
            best = {k: v.clone() for k, v in changed_state(model).items()}
        if progress_file:
            _save_progress(progress_file, run, model, opt, scheduler, rows, best)
        bar.set_postfix_str(f"validation accuracy {val_accuracy:.1%}")
        bar.update()
    bar.close()
    accelerator.unwrap_model(part, keep_fp32_wrapper=False)
    model.load_state_dict(best, strict=False)
    model.eval()
    if checkpoint:
        save_model(model, checkpoint, settings=settings, history=rows)
        progress_file.unlink(missing_ok=True)
    return pd.DataFrame(rows).set_index("epoch")


def train_one_epoch(model, loader, optimizer, scheduler, loss_function, accelerator) -> tuple[float, float]:
    """One pass over ``loader`` with a step per batch; returns (mean loss, accuracy), both over samples."""
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for inputs, labels in loader:
        logits = model(as_input(inputs))
        loss = loss_function(logits, labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        # Sums stay on the device: asking for a number in every step would make a GPU wait.
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return float(loss_sum) / count, float(correct) / count


@torch.no_grad()
def evaluate(model: nn.Module, loader) -> tuple[float, float]:
    """Mean cross-entropy (natural logarithm) and accuracy over the samples of ``loader``, in eval mode."""
    model.eval()
    loss_sum, correct, count = 0.0, 0, 0
    for inputs, labels in loader:
        logits = model(as_input(inputs)).float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return float(loss_sum) / count, float(correct) / count


def _trainable_part(model: Classifier, train: Dataset, val: Dataset) -> nn.Module:
    cached = [isinstance(data, CachedFeatures) for data in (train, val)]
    if not any(cached):
        return model
    if not all(cached):
        raise ValueError("train and val must both be images or both be cached features.")
    train.check(model)
    val.check(model)
    return model.split()[1]


def make_optimizer(model: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD (Nesterov momentum 0.9) over the trainable parameters. Biases and norms are not decayed."""
    _check_name("optimizer", name, OPTIMIZERS)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups, lr=lr)


def make_schedule(optimizer, name: str, lr: float, steps: int, steps_per_epoch: int, decay: float) -> LRScheduler:
    """The learning-rate schedule ``name``, stepped once per batch."""
    _check_name("schedule", name, SCHEDULES)
    if name == "one-cycle":
        return OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return ExponentialLR(optimizer, gamma=decay ** (1 / steps_per_epoch) if name == "exponential" else 1.0)


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if half_precision("cuda") == torch.bfloat16 else "fp16"


def _fingerprint(data: Dataset) -> str:
    if isinstance(data, CachedFeatures):
        return data.key
    return hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()[:16]


def _is_over(rows: list[dict], patience: int | None) -> bool:
    if patience is None or not rows:
        return False
    accuracies = [row["val_accuracy"] for row in rows]
    return len(rows) - 1 - accuracies.index(max(accuracies)) >= patience


def _save_progress(path: Path, run: str, model, optimizer, scheduler, rows, best) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "run": run,
        "model": changed_state(model),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rows": rows,
        "best": best,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path | None, run: str, model, optimizer, scheduler) -> tuple[list[dict], dict]:
    if path is None or not path.is_file():
        return [], {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("run") != run:
        raise ValueError(
            f"{path} belongs to a run with other settings, data or model: delete it to start anew, or use those."
        )
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["rows"], state["best"]

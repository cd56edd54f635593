"""The training loop: Accelerate underneath, visible on top.

Written out once and explained in ``notebooks/03_vgg16_transfer_learning.ipynb``; phases in
``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import CutMix, MixUp, RandomChoice
from tqdm import tqdm

from fmnist_utils.cache import CachedFeatures, Inputs, as_input
from fmnist_utils.data import CLASSES, as_images
from fmnist_utils.models import Classifier, set_trainable
from fmnist_utils.resume import Checkpoint
from fmnist_utils.scale.accelerator import accelerator, can_compile
from fmnist_utils.scale.processes import JointBatchNorm, batch_weights, rank_and_count, total
from fmnist_utils.settings import Run, Settings, averaged, trainable_part

__all__ = ["fit", "fit_phases", "train_one_epoch", "validate"]


def fit(
    model: Classifier,
    train: Inputs,
    val: Inputs,
    *,
    checkpoint: str | Path | None = None,
    compile: bool | str = False,
    choose: bool = True,
    progress: bool = True,
    on_epoch: Callable[[dict], object] | None = None,
    **settings,
) -> pd.DataFrame:
    """Train what is not frozen in ``model``; leaves it in eval mode with the weights of the best validation accuracy.

    ``train`` and ``val`` are both images (:class:`~fmnist_utils.data.FashionMNIST`) or both
    :class:`~fmnist_utils.cache.CachedFeatures` of this model, whose layers behind the freeze border run alone.
    ``settings`` are those of :class:`Settings`: ``epochs``, ``batch_size``, ``lr`` and so on. To a GPU the data move
    once, if they take less than half of its free memory. ``compile`` passes the model through ``torch.compile`` (a
    string is its ``mode``), which pays in long trainings only (``compile_seconds`` in the history says what it took);
    where no compiler works, a warning says so, and the training is the same without it.

    Started by ``torchrun`` or ``accelerate launch`` in several processes, each computes its part of every batch (of
    ``batch_size`` images in all); gradients, BatchNorm's statistics and metrics are those of the whole. The result is
    that of one process up to rounding, and up to dropout and augmentation, which are drawn per process.

    ``checkpoint`` names a file without ending: an interrupted call, repeated, goes on after the last finished epoch and
    ends, on a CPU, with the same weights; a finished one leaves :func:`~fmnist_utils.checkpoints.save_model`'s two
    files, which the same call, repeated, loads: in a new process, and in the same one with the model that it has
    trained. ``on_epoch`` is called after each epoch with its row; what it raises ends the training and reaches the
    caller, such as Optuna's ``TrialPruned``. ``choose=False`` keeps the weights of the last epoch, not of the best one.

    Returns one row per epoch: ``lr`` (of the head, at its end), ``train_loss``, ``train_accuracy`` (means over the
    samples while training, so with dropout, augmentation and mixing), ``val_loss``, ``val_accuracy`` (eval mode) and
    ``seconds``. The same ``seed`` gives the same numbers on the same CPU. Torch's global generator is seeded anew each
    epoch.

    Raises ``ValueError`` for unknown names, features of another model, or a checkpoint of other settings, and
    ``FloatingPointError`` when the loss is no longer a number. Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    s = Settings(**settings)
    train, val = as_images(train), as_images(val)
    compile = compile and can_compile() and compile
    if s.mix and isinstance(train, CachedFeatures):
        raise ValueError(f"mix={s.mix!r} mixes images, which cached features are not: pass the images to fit().")
    part = trainable_part(model, train, val).to(memory_format=torch.channels_last)
    saved = Checkpoint(checkpoint, asdict(s) | ({} if choose else {"choose": False}), model, (train, val))
    if rows := saved.finished():
        return pd.DataFrame(rows).set_index("epoch")

    rank, processes = rank_and_count()
    with saved.left_as_it_is(), accelerator(part, s.mixed_precision, compile) as accelerate:
        run = Run(model, part, train, val, s, accelerate)
        rows, best = saved.resume(run)
        run.prepare()
        bar = tqdm(total=s.epochs, initial=len(rows), unit="epoch", disable=not progress or rank > 0, leave=False)
        with bar, JointBatchNorm() if processes > 1 else nullcontext():
            compile_seconds = run.warm_up() if compile else None
            for epoch in range(len(rows), s.epochs):
                if _is_over(rows, s.patience):
                    break
                row = _epoch(run, epoch)
                if not choose or row["val_accuracy"] >= max((earlier["val_accuracy"] for earlier in rows), default=0):
                    best = run.weights()
                rows.append(row if compile_seconds is None else row | {"compile_seconds": compile_seconds})
                compile_seconds = compile_seconds and 0.0
                saved.keep(run, rows, best)
                bar.set_postfix_str(f"validation accuracy {row['val_accuracy']:.1%}")
                bar.update()
                if on_epoch:
                    on_epoch(rows[-1])
        model.load_state_dict(best, strict=False)
        model.eval()
    saved.finish(rows)
    return pd.DataFrame(rows).set_index("epoch")


def fit_phases(
    model: Classifier,
    train: Inputs,
    val: Inputs,
    phases: Sequence[dict],
    *,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """:func:`fit` in phases that unfreeze more and more; returns one history with a column ``phase`` (from 1).

    A phase is a dict with ``trainable`` (see :func:`~fmnist_utils.models.set_trainable`) and arguments of :func:`fit`;
    each starts from the best weights of the one before (Howard & Ruder, 2018, arXiv:1801.06146, call it gradual
    unfreezing). Cached features must have a border that the last phase allows: ``cache_features(…, border=…)``.
    ``checkpoint`` is the name of each phase's files, with ``-phase1`` and so on behind it.

    Raises ``ValueError`` for phases that freeze again what was trained, and whatever :func:`fit` raises. Explained in
    notebooks/04_resnet50_fine_tuning.ipynb.
    """
    histories, counts = [], []
    for number, phase in enumerate(phases, 1):
        set_trainable(model, phase["trainable"])
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        if counts != sorted(counts):
            raise ValueError(f"Phase {number} trains fewer layers than the one before: order the phases the other way.")
    for before, phase in enumerate(phases):
        arguments = dict(phase)
        set_trainable(model, arguments.pop("trainable"))
        name = f"{checkpoint}-phase{before + 1}" if checkpoint else None
        history = fit(model, train, val, **arguments, checkpoint=name, seed=seed + 1000 * before, progress=progress)
        histories.append(history.assign(phase=before + 1, trainable=counts[before]).reset_index(drop=True))
    history = pd.concat(histories, ignore_index=True)
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


def _epoch(run: Run, number: int) -> dict:
    """Train for one epoch and validate; the history's row."""
    s = run.settings
    # Seeding by epoch is what makes an interrupted run repeatable: no generator state has to be stored.
    torch.manual_seed(s.seed * 100_003 + number + 10_000_019 * rank_and_count()[0])
    run.order.manual_seed(s.seed * 100_003 + number)
    began = time.perf_counter()
    after_step = partial(run.average.update_parameters, run.plain) if run.average else None
    step = run.optimizer, run.scheduler, run.loss_function, run.accelerator
    train_loss, train_accuracy = train_one_epoch(run.part, run.loader, *step, mix=s.mix, after_step=after_step)
    if not math.isfinite(train_loss):
        where = f"in epoch {number + 1}: lower lr (now {s.lr}) and start again."
        raise FloatingPointError(f"The loss is {train_loss} {where}")
    with averaged(run.plain, run.average):
        val_loss, val_accuracy = validate(run.part, run.val_loader)
    return {
        "epoch": number + 1,
        "lr": run.scheduler.get_last_lr()[0],
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "seconds": time.perf_counter() - began,
    }


def train_one_epoch(
    model, loader, optimizer, scheduler, loss_function, accelerator, mix=None, after_step=None
) -> tuple[float, float]:
    """One pass over ``loader`` with a step per batch; returns (mean loss, accuracy), both over samples.

    With ``mix``, or labels that are probabilities [B, 10], an image counts as recognised when the class with the
    largest share is predicted. ``after_step`` is called after each step, for a moving average of the weights.
    """
    kinds = {"mixup": (MixUp,), "cutmix": (CutMix,), "mixup-or-cutmix": (MixUp, CutMix)}
    mixer = RandomChoice([kind(num_classes=len(CLASSES)) for kind in kinds[mix]]) if mix else None
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for (inputs, labels), weight in zip(loader, batch_weights(loader), strict=True):
        inputs, labels = inputs.to(accelerator.device), labels.to(accelerator.device)
        targets = labels
        if mixer:
            mixed, targets = mixer(inputs[:, None].float(), labels)
            inputs = mixed[:, 0].round().to(torch.uint8)
        labels = targets.argmax(1) if targets.ndim > 1 else labels
        logits = model(as_input(inputs))
        loss = loss_function(logits, targets)
        optimizer.zero_grad()
        accelerator.backward(loss * weight)
        optimizer.step()
        scheduler.step()
        if after_step:
            after_step()
        # Sums stay on the device: asking for a number in every step would make a GPU wait.
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return _means(loss_sum, correct, count)


@torch.no_grad()
def validate(model: nn.Module, loader) -> tuple[float, float]:
    """Mean cross-entropy (natural logarithm) and accuracy over the samples of ``loader``, in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    loss_sum, correct, count = 0.0, 0, 0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        logits = model(as_input(inputs)).float()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return _means(loss_sum, correct, count)


def _means(loss_sum, correct, count) -> tuple[float, float]:
    """Both over the samples of all processes, however many each had."""
    sums = total(torch.tensor([float(loss_sum), float(correct), count], dtype=torch.float64)).tolist()
    return sums[0] / sums[2], sums[1] / sums[2]


def _is_over(rows: list[dict], patience: int | None) -> bool:
    """Whether the best of the epochs so far is ``patience`` epochs ago."""
    accuracies = [row["val_accuracy"] for row in rows]
    return bool(rows) and patience is not None and len(rows) - 1 - accuracies.index(max(accuracies)) >= patience

"""The training loop: Accelerate underneath, visible on top.

Written out once and explained in ``notebooks/03_vgg16_transfer_learning.ipynb``; phases in
``notebooks/04_resnet50_fine_tuning.ipynb``.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2 import CutMix, MixUp
from tqdm import tqdm

from fmnist_utils.cache import CachedFeatures, as_input
from fmnist_utils.data import CLASSES, batch_weights, make_loader, replacing
from fmnist_utils.models import Classifier, changed_state, check_name, load_state, save_model, set_trainable
from fmnist_utils.scale.engines import half_precision
from fmnist_utils.scale.processes import from_first, joint_batch_norm, on_cpu, own_share, rank_and_count, total

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "exponential", "constant")
MIXES = ("mixup", "cutmix")


def fit(
    model: Classifier,
    train: Dataset,
    val: Dataset,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    backbone_lr: float | None = None,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    schedule: str = "one-cycle",
    decay: float = 0.9,
    label_smoothing: float = 0.0,
    mix: str | None = None,
    ema: float | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    mixed_precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    progress: bool = True,
    on_epoch: Callable[[dict], object] | None = None,
) -> pd.DataFrame:
    """Train what is not frozen in ``model``; leaves it in eval mode with the weights of the best validation accuracy.

    ``train`` and ``val`` are both images (:class:`~fmnist_utils.data.FashionMNIST`) or both
    :class:`~fmnist_utils.cache.CachedFeatures` of this model; with features only the layers behind the freeze border
    run. ``schedule`` changes the learning rate every batch: ``one-cycle`` (Smith, 2018, arXiv:1803.09820),
    ``exponential`` (times ``decay`` per epoch) or ``constant``.
    ``backbone_lr`` gives the backbone's layers a rate of their own, usually lower than the head's ``lr``.
    ``mix`` trains on pairs of images, torchvision's ``mixup`` (Zhang et al., 2018, arXiv:1710.09412) or ``cutmix`` (Yun
    et al., 2019, arXiv:1905.04899); ``ema`` validates and keeps an exponential moving average of the weights, such as
    0.99 (torch's ``AveragedModel``; Polyak & Juditsky, 1992), instead of the last ones.
    ``patience`` stops after that many epochs without a better validation accuracy. ``mixed_precision``: ``"auto"`` is
    bf16 (or fp16) on a CUDA GPU and float32 elsewhere; or Accelerate's ``"no"``, ``"fp16"``, ``"bf16"``. To a GPU the
    data move once, if they take less than half of its free memory. ``compile`` passes the model through
    ``torch.compile``, which pays in long trainings only; its time is in ``history.attrs["compile_seconds"]``.

    Started by ``torchrun`` or ``accelerate launch`` in several processes, each computes its part of every batch (of
    ``batch_size`` images in all), gradients, BatchNorm's statistics and metrics are those of the whole, and the first
    process writes the files. The result is that of one process up to rounding, and up to dropout and augmentation,
    which are drawn per process.

    ``checkpoint`` names a file without ending: an interrupted call, repeated, goes on after the last finished epoch and
    ends, on a CPU, with the same weights; a finished one leaves :func:`~fmnist_utils.models.save_model`'s two files,
    which the same call, repeated, loads instead of training again.
    ``on_epoch`` is called after each epoch with its row; what it raises ends the training and reaches the caller, such
    as Optuna's ``TrialPruned``.

    Returns one row per epoch: ``lr`` (of the head, at its end), ``train_loss``, ``train_accuracy`` (means over the
    samples while training, so with dropout, augmentation and mixing), ``val_loss``, ``val_accuracy`` (eval mode) and
    ``seconds``. The same ``seed`` gives the same numbers on the same CPU. Torch's global generator is seeded anew each
    epoch.

    Raises ``ValueError`` for unknown names, features of another model, or a checkpoint of other settings, and
    ``FloatingPointError`` when the loss is no longer a number. Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    unsettled = ("model", "train", "val", "checkpoint", "compile", "progress", "on_epoch")
    settings = {k: v for k, v in locals().items() if k not in unsettled}
    rank, processes = rank_and_count()
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least 1.")
    if batch_size < processes:
        raise ValueError(f"batch_size={batch_size} is too small for {processes} processes: each needs an image.")
    if mix is not None:
        check_name("mix", mix, MIXES)
        if isinstance(train, CachedFeatures):
            raise ValueError(f"mix={mix!r} mixes images, which cached features are not: pass the images to fit().")

    part = _trainable_part(model, train, val).to(memory_format=torch.channels_last)
    run = json.dumps([settings, model.config, model.weights, _fingerprint(train), _fingerprint(val)])
    if checkpoint:  # a phase starts where the one before has ended
        run += hashlib.sha256(b"".join(t.numpy().tobytes() for t in changed_state(model).values())).hexdigest()
    if checkpoint and (found := from_first(lambda: _finished(Path(checkpoint), run))):
        rows, state = found
        load_state(model, state, checkpoint).eval()
        return _as_history(rows, compile_seconds=0.0)

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, TorchDynamoPlugin

    plain = part
    with _left_as_found(plain, processes):
        accelerator = Accelerator(
            mixed_precision=choose_precision(mixed_precision),
            cpu=on_cpu(),
            dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=False) if compile else None,
            # Buffers agree without it, and processes may have different numbers of validation batches.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        model.to(accelerator.device)
        train, val = (on_device(data, accelerator.device) for data in (train, val))
        loader = make_loader(train, batch_size, shuffle=True, seed=seed, process=rank, processes=processes)
        steps = epochs * len(loader)
        slow = model.backbone if backbone_lr is not None else None
        opt = make_optimizer(part, optimizer, lr, weight_decay, slow, backbone_lr)
        scheduler = make_schedule(opt, schedule, steps, len(loader), decay)
        average = AveragedModel(part, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        val_part = Subset(val.view(0) if isinstance(val, CachedFeatures) else val, own_share(len(val)))
        val_loader = make_loader(val_part, 2 * batch_size)
        loss_function = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        after_step = (lambda: average.update_parameters(plain)) if ema else None

        progress_file = Path(f"{checkpoint}.resume.pt") if checkpoint else None
        rows, best = [], {}
        if state := from_first(lambda: _progress(progress_file, run)):
            rows, best = state["rows"], state["best"]
            model.load_state_dict(state["model"], strict=False)
            opt.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            if average is not None:
                average.load_state_dict(state["average"])
        part, opt = accelerator.prepare(part, opt)
        for norm in plain.modules() if processes > 1 else ():
            if isinstance(norm, _BatchNorm):
                norm.forward = partial(joint_batch_norm, norm)
        compile_seconds = _warm_up(part, plain, loader, val_loader, loss_function, accelerator) if compile else 0.0
        bar = tqdm(total=epochs, initial=len(rows), unit="epoch", disable=not progress or rank > 0, leave=False)
        for epoch in range(len(rows), epochs):
            if _is_over(rows, patience):
                break
            # Seeding by epoch is what makes an interrupted run repeatable: no generator state has to be stored.
            torch.manual_seed(seed * 100_003 + epoch + 10_000_019 * rank)
            loader.generator.manual_seed(seed * 100_003 + epoch)
            began = time.perf_counter()
            train_loss, train_accuracy = train_one_epoch(
                part, loader, opt, scheduler, loss_function, accelerator, mix=mix, after_step=after_step
            )
            if not math.isfinite(train_loss):
                raise FloatingPointError(
                    f"The loss is {train_loss} in epoch {epoch + 1}: lower lr (now {lr}) and start again."
                )
            with _averaged(plain, average):
                val_loss, val_accuracy = evaluate(part, val_loader)
                if val_accuracy >= max((row["val_accuracy"] for row in rows), default=0):
                    best = {k: v.clone() for k, v in changed_state(model).items()}
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
            if progress_file and rank == 0:
                _save_progress(progress_file, run, model, opt, scheduler, average, rows, best)
            bar.set_postfix_str(f"validation accuracy {val_accuracy:.1%}")
            bar.update()
            if on_epoch:
                on_epoch(rows[-1])
        bar.close()
    model.load_state_dict(best, strict=False)
    model.eval()
    if checkpoint:
        from_first(lambda: save_model(model, checkpoint, settings=settings, history=rows, run=_digest(run)))
        if rank == 0:
            progress_file.unlink(missing_ok=True)
    return _as_history(rows, compile_seconds)


def fit_phases(
    model: Classifier,
    train: Dataset,
    val: Dataset,
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
    compile_seconds = sum(history.attrs["compile_seconds"] for history in histories)
    history = pd.concat(histories, ignore_index=True)
    history.attrs["compile_seconds"] = compile_seconds
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


def train_one_epoch(
    model, loader, optimizer, scheduler, loss_function, accelerator, mix=None, after_step=None
) -> tuple[float, float]:
    """One pass over ``loader`` with a step per batch; returns (mean loss, accuracy), both over samples.

    With ``mix`` an image counts as recognised when the class with the larger share is predicted. ``after_step`` is
    called after each step, for a moving average of the weights.
    """
    mixer = {"mixup": MixUp, "cutmix": CutMix}[mix](num_classes=len(CLASSES)) if mix else None
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for (inputs, labels), weight in zip(loader, batch_weights(loader), strict=True):
        inputs, labels = inputs.to(accelerator.device), labels.to(accelerator.device)
        targets = labels
        if mixer:
            mixed, targets = mixer(inputs[:, None].float(), labels)
            inputs, labels = mixed[:, 0].round().to(torch.uint8), targets.argmax(1)
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
def evaluate(model: nn.Module, loader) -> tuple[float, float]:
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


def _trainable_part(model: Classifier, train: Dataset, val: Dataset) -> nn.Module:
    cached = [isinstance(data, CachedFeatures) for data in (train, val)]
    if not any(cached):
        return model
    if not all(cached):
        raise ValueError("train and val must both be images or both be cached features.")
    train.check(model)
    val.check(model)
    if train.border != val.border:
        raise ValueError(
            f"train was cached at border {train.border}, val at border {val.border}: use the same for both."
        )
    return model.split(train.border)[1]


def make_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    slow: nn.Module | None = None,
    slow_lr: float | None = None,
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD (Nesterov momentum 0.9) over the trainable parameters. Biases and norms are not decayed.

    Parameters of ``slow`` (a part of ``model``) get the rate ``slow_lr`` in groups of their own, behind the others.
    """
    check_name("optimizer", name, OPTIMIZERS)
    slow_ids = {id(p) for p in slow.parameters()} if slow is not None else set()
    groups: dict[tuple, list] = {}
    for p in sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: id(p) in slow_ids):
        rate = slow_lr if id(p) in slow_ids else lr
        groups.setdefault((id(p) in slow_ids, rate, weight_decay if p.ndim > 1 else 0.0), []).append(p)
    groups = [{"params": own, "lr": rate, "weight_decay": decay} for (_, rate, decay), own in groups.items()]
    fused = next(model.parameters()).is_cuda  # one kernel a step, where parameters are many and small
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(groups, lr=lr, fused=fused)


def make_schedule(optimizer, name: str, steps: int, steps_per_epoch: int, decay: float) -> LRScheduler:
    """The learning-rate schedule ``name`` from each group's own rate, stepped once per batch."""
    check_name("schedule", name, SCHEDULES)
    if name == "one-cycle":
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps + 1)
    return ExponentialLR(optimizer, gamma=decay ** (1 / steps_per_epoch) if name == "exponential" else 1.0)


def on_device(data: Dataset, device: torch.device) -> Dataset:
    """``data`` with its tensors on a GPU that has room for them, so that no batch has to travel."""
    names = ("features", "labels") if isinstance(data, CachedFeatures) else ("images", "labels")
    size = sum(getattr(data, name).nbytes for name in names)
    if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    data = copy.copy(data)
    for name in names:
        setattr(data, name, getattr(data, name).to(device))
    return data


def _warm_up(part, plain, loader, val_loader, loss_function, accelerator) -> float:
    """Compile for every batch size to come; returns the seconds. Weights and statistics stay as they were."""
    began = time.perf_counter()
    kept = copy.deepcopy(plain.state_dict())
    for training, batches in ((True, loader), (False, val_loader)):
        part.train(training)
        for size in sorted({len(batch) for batch in batches.batch_sampler}, reverse=True):
            inputs, labels = (x.to(accelerator.device) for x in batches.dataset.__getitems__(list(range(size))))
            with torch.set_grad_enabled(training):
                loss = loss_function(part(as_input(inputs)), labels)
            if training:
                accelerator.backward(loss)
    plain.zero_grad()
    plain.load_state_dict(kept)
    return time.perf_counter() - began


@contextmanager
def _left_as_found(model: nn.Module, processes: int):
    """Whatever happens within it, at its end every layer has its own ``forward`` and Accelerate no state of this run.

    Or the precision of a process's first training would bind all later ones, and notebook_launcher refuse to start.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=processes == 1)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=processes == 1)
        for layer in model.modules():
            vars(layer).pop("forward", None)
            vars(layer).pop("_original_forward", None)


def choose_precision(wanted: str) -> str:
    """Accelerate's name of the precision that ``wanted`` means here; ``"auto"`` is the fast one of the device."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if half_precision("cuda") == torch.bfloat16 else "fp16"


def _fingerprint(data: Dataset) -> str:
    # The key of features names their images, but not their labels.
    inputs = data.key.encode() if isinstance(data, CachedFeatures) else data.images.numpy().tobytes()
    return hashlib.sha256(inputs + data.labels.numpy().tobytes()).hexdigest()[:16]


def _is_over(rows: list[dict], patience: int | None) -> bool:
    if patience is None or not rows:
        return False
    accuracies = [row["val_accuracy"] for row in rows]
    return len(rows) - 1 - accuracies.index(max(accuracies)) >= patience


def _as_history(rows: list[dict], compile_seconds: float) -> pd.DataFrame:
    history = pd.DataFrame(rows).set_index("epoch")
    history.attrs["compile_seconds"] = compile_seconds
    return history


def _digest(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()[:16]


@contextmanager
def _averaged(model: nn.Module, average: AveragedModel | None):
    """Within it ``model`` has the averaged weights, if there are any."""
    if average is None:
        yield
        return
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)


def _finished(path: Path, run: str) -> tuple[list[dict], dict] | None:
    """History and weights of a finished training of the same settings."""
    card = path.with_name(path.name + ".json")
    if not card.is_file():
        return None
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except ValueError:
        return None  # damaged: trained anew and replaced
    if found.get("run") != _digest(run):
        return None
    return found["history"], load_file(path.with_name(path.name + ".safetensors"))


def _save_progress(path: Path, run: str, model, optimizer, scheduler, average, rows, best) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "run": run,
        "model": changed_state(model),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "rows": rows,
        "best": best,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _progress(path: Path | None, run: str) -> dict | None:
    """What :func:`_save_progress` has written last, if it has."""
    if path is None or not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("run") != run:
        raise ValueError(
            f"{path} belongs to a run with other settings, data or model: delete it to start anew, or use those."
        )
    return state

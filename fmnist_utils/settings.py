"""What decides the numbers of a training, and what is made of it: optimizer, learning-rate schedule, moving average.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Subset

from fmnist_utils import check_name
from fmnist_utils.cache import CachedFeatures, Inputs, as_input, layers_for
from fmnist_utils.checkpoints import changed_state
from fmnist_utils.data import make_loader
from fmnist_utils.models import Classifier
from fmnist_utils.scale.accelerator import on_device, warm_up
from fmnist_utils.scale.processes import own_share, rank_and_count

__all__ = ["Run", "Settings", "averaged", "make_optimizer", "make_schedule", "trainable_part"]

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "exponential", "constant")
MIXES = ("mixup", "cutmix", "mixup-or-cutmix")


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a training; the arguments of :func:`fit` by these names, all but ``epochs`` optional.

    ``schedule`` changes the learning rate every batch: ``one-cycle`` (Smith, 2018, arXiv:1803.09820), ``exponential``
    (times ``decay`` per epoch) or ``constant``. ``optimizer`` is ``adam``, ``adamw`` or ``sgd``. ``backbone_lr`` gives
    the backbone's layers a rate of their own, usually lower than the head's ``lr``. ``mix`` trains on pairs of images,
    torchvision's ``mixup`` (Zhang et al., 2018, arXiv:1710.09412) or ``cutmix`` (Yun et al., 2019, arXiv:1905.04899),
    or ``mixup-or-cutmix``, one drawn per batch. ``ema`` validates and keeps an exponential moving average of the
    weights, such as 0.99 (torch's ``AveragedModel``; Polyak & Juditsky, 1992), instead of the last ones. ``patience``
    stops after that many epochs without a better validation accuracy. ``mixed_precision``: ``"auto"`` is bf16 (or fp16)
    on a CUDA GPU and float32 elsewhere; or Accelerate's ``"no"``, ``"fp16"``, ``"bf16"``.
    """

    # Their order is part of a checkpoint's identity.
    epochs: int
    batch_size: int = 128
    lr: float = 1e-3
    backbone_lr: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    decay: float = 0.9
    label_smoothing: float = 0.0
    mix: str | None = None
    ema: float | None = None
    patience: int | None = None
    mixed_precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        processes = rank_and_count()[1]
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: train for at least 1.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: a batch needs at least 1 image.")
        if self.batch_size < processes:
            why = f"too small for {processes} processes: each needs an image."
            raise ValueError(f"batch_size={self.batch_size} is {why}")
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("mix", self.mix, (*MIXES, None))


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
    options = [{"params": some, "lr": rate, "weight_decay": decay} for (_, rate, decay), some in groups.items()]
    fused = next(model.parameters()).is_cuda  # one kernel a step, where parameters are many and small
    if name == "sgd":
        return torch.optim.SGD(options, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    return (torch.optim.Adam if name == "adam" else torch.optim.AdamW)(options, lr=lr, fused=fused)


def make_schedule(optimizer, name: str, steps: int, steps_per_epoch: int, decay: float) -> LRScheduler:
    """The learning-rate schedule ``name`` from each group's own rate, stepped once per batch."""
    check_name("schedule", name, SCHEDULES)
    if name == "one-cycle":
        return OneCycleLR(optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=steps + 1)
    return ExponentialLR(optimizer, gamma=decay ** (1 / steps_per_epoch) if name == "exponential" else 1.0)


@contextmanager
def averaged(model: nn.Module, average: AveragedModel | None):
    """Within it ``model`` has the averaged weights, if there are any."""
    if average is None:
        yield
        return
    last = copy.deepcopy(model.state_dict())
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(last)


def trainable_part(model: Classifier, train: Inputs, val: Inputs) -> nn.Module:
    """What is to be trained: the model, or for cached features the layers behind their border."""
    part, _ = layers_for(model, train), layers_for(model, val)
    train_border, val_border = (data.border if isinstance(data, CachedFeatures) else None for data in (train, val))
    if (train_border is None) != (val_border is None):
        raise ValueError("train and val must both be images or both be cached features.")
    if train_border != val_border:
        borders = f"train was cached at border {train_border}, val at border {val_border}"
        raise ValueError(f"{borders}: use the same for both.")
    return part


class Run:
    """What a training needs, set up on its device: loaders, optimizer, schedule, moving average, loss."""

    def __init__(
        self, model: Classifier, part: nn.Module, train: Inputs, val: Inputs, s: Settings, accelerator
    ) -> None:
        self.model, self.plain, self.settings, self.accelerator = model, part, s, accelerator
        model.to(accelerator.device)
        if min(s.batch_size, len(train)) == 1 and any(isinstance(layer, nn.BatchNorm1d) for layer in part.modules()):
            raise ValueError(
                "This model has batch normalisation, which cannot learn from batches of one image: train on at least 2 "
                "images with batch_size=2 or more."
            )
        train, val = (on_device(data, accelerator.device) for data in (train, val))
        rank, processes = rank_and_count()
        self.loader = make_loader(train, s.batch_size, shuffle=True, seed=s.seed, process=rank, processes=processes)
        self.order = self.loader.generator or torch.Generator()
        val_part = Subset(val.view(0) if isinstance(val, CachedFeatures) else val, own_share(len(val)))
        self.val_loader = make_loader(val_part, 2 * s.batch_size)
        slow = model.backbone if s.backbone_lr is not None else None
        self.optimizer = make_optimizer(part, s.optimizer, s.lr, s.weight_decay, slow, s.backbone_lr)
        steps = len(self.loader)
        self.scheduler = make_schedule(self.optimizer, s.schedule, s.epochs * steps, steps, s.decay)
        ema = get_ema_multi_avg_fn(s.ema) if s.ema else None
        self.average = AveragedModel(part, multi_avg_fn=ema, use_buffers=True) if ema else None
        self.loss_function = nn.CrossEntropyLoss(label_smoothing=s.label_smoothing)

    def prepare(self) -> None:
        """Hand model and optimizer to Accelerate: mixed precision, compilation, several processes."""
        self.part, self.optimizer = self.accelerator.prepare(self.plain, self.optimizer)

    def state(self) -> dict:
        """All that the next epoch starts from, as plain values and tensors."""
        average = self.average.state_dict() if self.average else None
        state = {"model": changed_state(self.model), "optimizer": self.optimizer.state_dict(), "average": average}
        return state | {"scheduler": self.scheduler.state_dict()}

    def restore(self, state: dict) -> None:
        """Put everything back to where :meth:`state` was called."""
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            self.average.load_state_dict(state["average"])

    def weights(self) -> dict[str, Tensor]:
        """A copy of what was validated."""
        with averaged(self.plain, self.average):
            return {key: value.clone() for key, value in changed_state(self.model).items()}

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss_function(self.part(as_input(inputs)), labels)

    def warm_up(self) -> float:
        """Compile for every batch size to come; returns the seconds."""
        return warm_up(self.plain, self.part, self.loader, self.val_loader, self.loss, self.accelerator)

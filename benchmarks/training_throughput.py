"""How near does the course's training loop come to the same model fed with one constant batch?

``python benchmarks/training_throughput.py`` measures images per second of ``train_one_epoch`` over ``make_loader``,
with augmentation, schedule and metrics, as ``fit`` calls it; and of a bare loop (forward, backward, step) on one batch
that is already preprocessed and on the device. Model, batch size, precision, memory layout and optimizer are the same;
both are compiled on a GPU and neither on a CPU. Epochs of the two alternate, so that a machine that slows down slows
down both, and medians count. The bar is 95% on a GPU: what keeps the model waiting is then negligible. What is missing
from 100% is augmenting, resizing, collecting batches and metrics.

``results/benchmarks/training_throughput-<profile>.json`` holds a row per model (``models``; ``share`` is ours divided
by the constant batch), every epoch's rate (``epochs``) and, for the training loop, the eight operators with the largest
share of the device's time (``operators``, by torch.profiler; on a GPU they are kernels, without one the CPU's time is
meant). On a GPU ``waits_in_epoch`` counts how often the loop made the host wait for the device before the last step was
issued (torch.cuda.set_sync_debug_mode; the goal is 0), and ``waits_at_end`` the reading of the metrics; both are null
on a CPU.
"""

import itertools
import re
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.ticker import PercentFormatter
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fmnist_utils import pick, plots
from fmnist_utils.data import load, make_loader
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.results import save_benchmark
from fmnist_utils.scale.accelerator import choose_precision, on_device
from fmnist_utils.scale.engines import half_precision
from fmnist_utils.settings import make_optimizer, make_schedule
from fmnist_utils.train import train_one_epoch

CUDA = torch.cuda.is_available()
#: Name in the figure: arguments of build_model, batch size, batches of an epoch. All layers learn.
MODELS = {
    "small CNN": (
        {"name": "small_cnn", "weights": None},
        pick(smoke=16, cpu=128, full=500),
        pick(smoke=2, cpu=20, full=110),
    ),
    "VGG16": (
        {"name": "vgg16", "head": "linear", "image_size": pick(smoke=32, cpu=32, full=112)},
        pick(smoke=4, cpu=32, full=250),
        pick(smoke=2, cpu=8, full=60),
    ),
}
if CUDA:
    MODELS["WRN-28-10"] = ({"name": "wide_resnet", "weights": None}, 250, 60)
REPEATS = pick(smoke=2, cpu=5, full=7)
PROFILED = pick(smoke=2, cpu=10, full=20)
BAR = 0.95


def seconds_of(work) -> float:
    """Seconds until the device has finished ``work``."""
    if CUDA:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def prepare(settings: dict):
    """(plain model, prepared model, prepared optimizer, scheduler, accelerator), as fit makes them."""
    accelerator = Accelerator(
        mixed_precision=choose_precision("auto"), dynamo_backend="inductor" if CUDA else "no", cpu=not CUDA
    )
    model = build_model(**settings, trainable="all", augment=Augment(flip=0.5, shift=0.1, erasing=0.5))
    model.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, "sgd", 1e-3, 5e-4)
    scheduler = make_schedule(optimizer, "one-cycle", 10**6, 10**6, 1.0)
    return model, *accelerator.prepare(model, optimizer), scheduler, accelerator


def top_operators(work, count: int = 8) -> list[dict]:
    """The operators (on a GPU: kernels) in which most of the time of ``work`` passes, with their shares."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        seconds_of(work)
    if CUDA:
        events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
        times = {e.key: e.self_device_time_total for e in events if not getattr(e, "is_user_annotation", False)}
    else:
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(times, key=times.get, reverse=True)[:count]
    return [{"operator": name[:200], "share": round(times[name] / sum(times.values()), 4)} for name in largest]


def measure(name: str, settings: dict, batch_size: int, batches: int) -> tuple[dict, list[dict], list[dict]]:
    """(row of the model, rows of its epochs, rows of its operators)."""
    _, model, optimizer, scheduler, accelerator = prepare(settings)
    some = load("train").subset(batch_size * batches)
    data = on_device(some, accelerator.device)
    loss_function = nn.CrossEntropyLoss()

    def epoch(loader=None, **more) -> None:
        loader = loader or make_loader(data, batch_size, shuffle=True)
        train_one_epoch(model, loader, optimizer, scheduler, loss_function, accelerator, **more)

    plain, _, other_optimizer, _, other_accelerator = prepare(settings)
    layers = nn.Sequential(plain.backbone, plain.head).train()
    images, labels = data.images[:batch_size], data.labels[:batch_size]
    with torch.no_grad():
        constant = plain.preprocess(images).contiguous(memory_format=torch.channels_last)
    layers = torch.compile(layers, dynamic=False) if CUDA else layers

    def constant_batch() -> None:
        for _ in range(batches):
            with other_accelerator.autocast():
                loss = loss_function(layers(constant), labels)
            other_optimizer.zero_grad()
            other_accelerator.backward(loss)
            other_optimizer.step()

    works = {"ours": epoch, "constant batch": constant_batch}
    warm_up = {way: seconds_of(work) for way, work in works.items()}
    rates: dict[str, list[float]] = {way: [] for way in works}
    for _, (way, work) in itertools.product(range(REPEATS), works.items()):
        rates[way].append(batch_size * batches / seconds_of(work))
    ours, reference = (float(np.median(rates[way])) for way in works)
    waits = count_waits(epoch) if CUDA else (None, None)
    few = on_device(some.select(range(batch_size * min(PROFILED, batches))), accelerator.device)
    operators = top_operators(lambda: epoch(make_loader(few, batch_size, shuffle=True)))
    row = {
        "model": name,
        "backbone": settings["name"],
        "weights": plain.weights,
        "image_size": plain.config["image_size"],
        "batch_size": batch_size,
        "batches": batches,
        "images_per_second": round(ours, 1),
        "constant_batch_images_per_second": round(reference, 1),
        "share": round(ours / reference, 4),
        "waits_in_epoch": waits[0],
        "waits_at_end": waits[1],
        "warm_up_seconds": round(warm_up["ours"], 2),
        "constant_batch_warm_up_seconds": round(warm_up["constant batch"], 2),
    }
    epochs = [{"model": name, "way": way, "images_per_second": round(r, 1)} for way in works for r in rates[way]]
    return row, epochs, [{"model": name, **operator} for operator in operators]


def count_waits(epoch) -> tuple[int, int]:
    """(how often the host waited for the GPU before the last step of ``epoch`` was issued, and after it)."""
    at_step = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            epoch(after_step=lambda: at_step.append(count(caught)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return at_step[-1], count(caught) - at_step[-1]


def count(caught: list[warnings.WarningMessage]) -> int:
    return sum("synchroniz" in str(warning.message) for warning in caught)


def main() -> None:
    torch.manual_seed(0)
    rows, epochs, operators = [], [], []
    for name, (settings, batch_size, batches) in MODELS.items():
        row, own_epochs, own_operators = measure(name, settings, batch_size, batches)
        print(row, flush=True)
        rows.append(row)
        epochs += own_epochs
        operators += own_operators
    headline = min(rows, key=lambda row: row["share"])
    path = save_benchmark(
        "training_throughput",
        setting=f"the training loop against one constant batch; the model with the smaller share, {headline['model']}, "
        f"{headline['image_size']} px, batch {headline['batch_size']}",
        ours=headline["images_per_second"],
        reference=headline["constant_batch_images_per_second"],
        unit="images/s",
        figure=draw(rows, operators),
        precision=str(half_precision("cuda") if CUDA else torch.float32).removeprefix("torch."),
        compiled=CUDA,
        models=rows,
        epochs=epochs,
        operators=operators,
    )
    print("wrote", path.name)


def draw(rows: list[dict], operators: list[dict]) -> plt.Figure:
    """Left the shares of the constant batch's rate, then for each model where the device's time goes."""
    plots.use_style()
    figure, axes = plt.subplots(
        1, 1 + len(rows), figsize=(1 + 5.2 * len(rows), 3.8), width_ratios=[0.55 * len(rows), *[1.4] * len(rows)]
    )
    names = [row["model"] for row in rows]
    bars = axes[0].bar(names, [row["share"] for row in rows], color=plots.COLORS["train"], width=0.75)
    for bar, row in zip(bars, rows, strict=True):
        label = f"{row['share']:.0%}\n{row['images_per_second']:,.0f}\nimages/s"
        place = (bar.get_x() + bar.get_width() / 2, bar.get_height() - 0.03)
        axes[0].annotate(label, place, ha="center", va="top", color="white", fontsize=9)
    axes[0].axhline(1, color=plots.COLORS["muted"], ls="--", lw=1.2)
    axes[0].set(ylim=(0, max(1.05, *(row["share"] for row in rows))), ylabel="images/s, relative to one constant batch")
    axes[0].set_title("Training loop")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].grid(axis="x", visible=False)
    for axis, name in zip(axes[1:], names, strict=True):
        own = [row for row in operators if row["model"] == name][::-1]
        bars = axis.barh(
            [f"{rank}. {short(row['operator'])}" for rank, row in zip(range(len(own), 0, -1), own, strict=True)],
            [row["share"] for row in own],
            color=plots.COLORS["muted"],
        )
        axis.bar_label(bars, [f"{row['share']:.0%}" for row in own], padding=3, fontsize=9)
        axis.set(
            xlim=(0, 1.18 * own[-1]["share"]), title=name, xlabel=f"share of the {'GPU' if CUDA else 'CPU'}'s time"
        )
        axis.tick_params(axis="y", labelsize=9)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(axis="y", visible=False)
    return figure


def short(operator: str) -> str:
    """A kernel's name without return type, template arguments, parameters and namespaces; at most 34 letters."""
    name = re.sub(r"\(anonymous namespace\)|^void |<.*|\(.*", "", operator)
    name = re.sub(r"^(autograd::engine::evaluate_function: |Optimizer\.\w+#|\w+::)+", "", name) or operator
    return name if len(name) <= 34 else f"{name[:33]}…"


if __name__ == "__main__":
    main()

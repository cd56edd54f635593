"""How near does the course's training loop come to the same model fed with one constant batch?"""

import warnings
from statistics import median

import torch
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin
from common import options, record, splits, timed
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fmnist_utils import pick
from fmnist_utils.data import make_loader
from fmnist_utils.models import build_model
from fmnist_utils.preprocess import Augment
from fmnist_utils.scale.accelerator import choose_precision, on_device
from fmnist_utils.scale.engines import half_precision
from fmnist_utils.settings import make_optimizer, make_schedule
from fmnist_utils.train import train_one_epoch

CUDA = torch.cuda.is_available()
VGG16 = {"name": "vgg16", "head": "linear", "image_size": pick(smoke=32, cpu=32, full=112)}
#: Arguments of build_model, batch size, batches of an epoch. All layers learn.
MODELS = {
    "small CNN": ({"name": "small_cnn", "weights": None}, *pick(smoke=(16, 2), cpu=(128, 20), full=(500, 110))),
    "VGG16": (VGG16, *pick(smoke=(4, 2), cpu=(32, 8), full=(250, 60))),
}
if CUDA:
    MODELS["WRN-28-10"] = ({"name": "wide_resnet", "weights": None}, 250, 60)
REPEATS = pick(smoke=2, cpu=5, full=7)
#: Models for which other ways to train are tried beside ``fit``'s.
COMPARED = ("small CNN", "WRN-28-10")
PROFILED = pick(smoke=2, cpu=10, full=20)


def prepare(settings: dict, mode: str | None = None):
    """(plain model, prepared model, prepared optimizer, scheduler, accelerator), as fit makes them; ``mode`` is
    torch.compile's."""
    plugin = TorchDynamoPlugin("inductor", mode, dynamic=False) if CUDA else None
    accelerator = Accelerator(mixed_precision=choose_precision("auto"), dynamo_plugin=plugin, cpu=not CUDA)
    model = build_model(**settings, trainable="all", augment=Augment(flip=0.5, shift=0.1, erasing=0.5))
    model.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, "sgd", 1e-3, 5e-4)
    scheduler = make_schedule(optimizer, "one-cycle", 10**6, 10**6, 1.0)
    return model, *accelerator.prepare(model, optimizer), scheduler, accelerator


def top_operators(work, count: int = 8) -> list[dict]:
    """The operators (on a GPU: kernels) in which most of the time of ``work`` passes, with their shares."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        timed(work)
    if CUDA:
        events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
        times = {e.key: e.self_device_time_total for e in events if not getattr(e, "is_user_annotation", False)}
    else:
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(times, key=times.get, reverse=True)[:count]
    return [{"operator": name[:200], "share": times[name] / sum(times.values())} for name in largest]


def constant_batch(settings: dict, data, batches: int):
    """(its model, an epoch of forward, backward and step on one batch that is already preprocessed)."""
    plain, _, optimizer, _, accelerator = prepare(settings)
    layers, loss_function = nn.Sequential(plain.backbone, plain.head).train(), nn.CrossEntropyLoss()
    with torch.no_grad():
        images = plain.preprocess(data.images).contiguous(memory_format=torch.channels_last)
    layers = torch.compile(layers, dynamic=False) if CUDA else layers

    def epoch() -> None:
        for _ in range(batches):
            with accelerator.autocast():
                loss = loss_function(layers(images), data.labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()

    return plain, epoch


def reordered(data, batch_size: int) -> list[tuple]:
    """The batches of an epoch, put into a new order where the data lie, at once instead of batch by batch."""
    order = torch.randperm(len(data), device=data.images.device)
    return list(zip(data.images[order].split(batch_size), data.labels[order].split(batch_size), strict=True))


def measure(name: str, settings: dict, batch_size: int, batches: int) -> tuple[dict, list[dict], list[dict]]:
    """(row of the model, rows of its epochs, rows of its operators)."""
    _, *prepared = prepare(settings)
    data = on_device(splits(train=batch_size * batches)["train"], prepared[-1].device)

    def train(loader, parts: list, **more) -> None:
        model, optimizer, scheduler, accelerator = parts
        train_one_epoch(model, loader, optimizer, scheduler, nn.CrossEntropyLoss(), accelerator, **more)

    def epoch(inputs=data, parts: list = prepared, **more) -> None:
        train(make_loader(inputs, batch_size, shuffle=True), parts, **more)

    plain, constant = constant_batch(settings, data.select(range(batch_size)), batches)
    works = {"ours": epoch, "constant batch": constant}
    if name in COMPARED:
        works["shuffled on the device"] = lambda: train(reordered(data, batch_size), prepared)
        if CUDA:
            graphs = prepare(settings, "reduce-overhead")[1:]
            works["CUDA graphs"] = lambda: epoch(parts=graphs)
            works["CUDA graphs, shuffled on the device"] = lambda: train(reordered(data, batch_size), graphs)
    warm_up, failed = {}, {}
    for way, work in [*works.items()]:
        try:
            warm_up[way] = timed(work)[1]
        except RuntimeError as error:
            if way in ("ours", "constant batch"):
                raise
            # CUDA graphs do not take every network; the other ways are to be measured all the same.
            failed[way] = f"failed: {str(error).strip().splitlines()[0][:200]}"
            del works[way]
    rates: dict[str, list[float]] = {way: [] for way in works}
    for _ in range(REPEATS):
        for way, work in works.items():
            rates[way].append(batch_size * batches / timed(work)[1])
    medians = {way: median(found) for way, found in rates.items()}
    ours, reference, *_ = medians.values()
    waits = count_waits(epoch) if CUDA else (None, None)
    few = data.select(range(batch_size * min(PROFILED, batches)))
    operators = top_operators(lambda: epoch(few))
    row = {"model": name, "backbone": settings["name"], "weights": plain.weights, "batches": batches}
    row |= {"image_size": plain.config["image_size"], "batch_size": batch_size, "share": ours / reference}
    row |= {"images_per_second": ours, "constant_batch_images_per_second": reference}
    row |= {"waits_in_epoch": waits[0], "waits_at_end": waits[1], "warm_up_seconds": warm_up["ours"]}
    row["constant_batch_warm_up_seconds"] = warm_up["constant batch"]
    row["other_ways"] = {way: rate / reference for way, rate in [*medians.items()][2:]} | failed
    print(row, flush=True)
    epochs = [{"model": name, "way": way, "images_per_second": rate} for way in works for rate in rates[way]]
    return row, epochs, [{"model": name, **operator} for operator in operators]


def count_waits(epoch) -> tuple[int, int]:
    """(how often the host waited for the GPU before the last step of ``epoch`` was issued, and after it)."""
    at_step = []
    with warnings.catch_warnings(record=True) as caught:

        def count() -> int:
            return sum("synchroniz" in str(warning.message) for warning in caught)

        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            epoch(after_step=lambda: at_step.append(count()))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return at_step[-1], count() - at_step[-1]


def main() -> None:
    options(__doc__)
    torch.manual_seed(0)
    rows, epochs, operators = zip(*(measure(name, *settings) for name, settings in MODELS.items()), strict=True)
    worst = min(rows, key=lambda row: row["share"])
    setting = f"the training loop against one constant batch; the model with the smaller share, {worst['model']}, "
    setting += f"{worst['image_size']} px, batch {worst['batch_size']}"
    precision = str(half_precision("cuda") if CUDA else torch.float32).removeprefix("torch.")
    fields = {"models": rows, "epochs": sum(epochs, []), "operators": sum(operators, [])}
    measured = worst["images_per_second"], worst["constant_batch_images_per_second"]
    record("training_throughput", setting, *measured, "images/s", precision=precision, compiled=CUDA, **fields)


if __name__ == "__main__":
    main()

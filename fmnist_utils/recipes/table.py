"""The recipes: arguments of ``build_model``, ``cache_features`` and of each phase of ``fit_phases``, by name.

The notebooks show what each one means. Images: all 60,000 in the ``full`` profile (5,000 of them for validation), a
subset in ``cpu`` and ``smoke``.
"""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from fmnist_utils import check_name, pick
from fmnist_utils.preprocess import Augment


class ByProfile(NamedTuple):
    """A value that depends on the profile; any other tuple in a recipe, such as a head of your own, is what it is."""

    smoke: Any
    cpu: Any
    full: Any


MIRROR = Augment(flip=1.0)
#: Training images in the profiles smoke, cpu and full, unless a recipe has its own.
IMAGES = ByProfile(300, 20_000, 55_000)
#: Sides in pixels that ResNet50 sees: on a CPU a small picture, so that a run takes minutes.
RESNET_PIXELS = ByProfile(32, 32, 224)
RESNET_IMAGES = ByProfile(300, 10_000, 55_000)
#: What most descriptions of this task train with; the rate falls by a tenth per epoch.
ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "exponential"}

RECIPES = {
    # All 13 convolutions frozen and VGG's own kind of head: the run that most descriptions of this task mean.
    "vgg16-frozen": {
        "model": {"name": "vgg16", "head": "classic", "image_size": 64},
        "phases": [
            {"trainable": "head", "epochs": 10, **ADAM, "batch_size": 256, "lr": 2e-4},
        ],
    },
    # The same network with a schedule that ends near zero and with smoothed labels.
    "vgg16-frozen-one-cycle": {
        "model": {"name": "vgg16", "head": "classic", "image_size": 64},
        "phases": [{"trainable": "head", "epochs": 10, "batch_size": 512, "lr": 4e-4, "label_smoothing": 0.1}],
    },
    # Notebook 03: stop after the block that transfers best.
    "vgg16-block3": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "pooled", "image_size": 56},
        "phases": [{"trainable": "head", "epochs": 10}],
    },
    # The winner of the search of notebook 06, on 3,000 images: results/benchmarks/search-full.json.
    "vgg16-tuned": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56, "dropout": 0.19},
        "phases": [{"trainable": "head", "epochs": 10, "lr": 0.00034, "weight_decay": 0.0146}],
    },
    # The best frozen VGG16: each image and its mirror image, in training and in the mean of predictions when testing.
    "vgg16-block3-two-views": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56, "augment": MIRROR},
        "phases": [{"trainable": "head", "epochs": 12, "weight_decay": 0.05}],
        "views": 2,
    },
    # Fine-tuning that two CPU cores finish in half an hour: two convolutions of block3 stay frozen, the third learns.
    "vgg16-block3-fine-tuned": {
        "model": {"name": "vgg16", "cut_after": "block3", "head": "conv", "image_size": 56},
        "phases": [
            {"trainable": "head", "epochs": 1, "lr": 1e-3, "weight_decay": 0.05},
            {"trainable": 3, "epochs": 3, "lr": 1e-3, "backbone_lr": 3e-4, "weight_decay": 0.05},
        ],
    },
    # Fine-tuning for a GPU: the whole network, block by block from the top at decreasing rates (7 layers are a block).
    # After 8 epochs with everything unfrozen the validation accuracy was still rising: the second one has 20.
    **{
        name: {
            "model": {"name": "vgg16", "head": "conv", "image_size": 112, "augment": Augment(flip=0.5, erasing=0.5)},
            "phases": [
                {"trainable": "head", "epochs": 2},
                {"trainable": 7, "epochs": 2, "lr": 5e-4, "backbone_lr": 1e-4, "weight_decay": 0.05},
                {"trainable": 14, "epochs": 2, "lr": 3e-4, "backbone_lr": 7e-5, "weight_decay": 0.05},
                {
                    "trainable": "all",
                    "epochs": epochs,
                    "lr": 3e-4,
                    "backbone_lr": 5e-5,
                    "weight_decay": 0.05,
                    "ema": 0.999,
                },
            ],
            "images": ByProfile(64, 2_000, 55_000),
            "mirror": True,
        }
        for name, epochs in (("vgg16-fine-tuned", 8), ("vgg16-fine-tuned-longer", ByProfile(1, 20, 20)))
    },
    # The pictures VGG16 was made for, which only a GPU computes in minutes.
    "vgg16-frozen-224": {
        "model": {"name": "vgg16", "head": "classic", "image_size": ByProfile(32, 32, 224)},
        "phases": [{"trainable": "head", "epochs": 10, "batch_size": 512, "lr": 4e-4, "label_smoothing": 0.1}],
        "images": ByProfile(64, 2_000, 55_000),
    },
    "resnet50-two-phase": {
        "model": {"name": "resnet50", "head": "gap-256", "image_size": RESNET_PIXELS},
        "phases": [
            {"trainable": "head", "epochs": 10, **ADAM, "weight_decay": 1e-4},
            {"trainable": 16, "epochs": 5, **ADAM, "weight_decay": 1e-4, "lr": 1e-5, "schedule": "constant"},
        ],
        "images": RESNET_IMAGES,
    },
    # Published with batches of 16; four times as many images keep the cores busy at the same rate.
    "resnet50-two-hidden": {
        "model": {"name": "resnet50", "head": "gap-256-128", "image_size": RESNET_PIXELS},
        "phases": [{"trainable": 10, "epochs": 10, **ADAM, "batch_size": 64}],
        "images": RESNET_IMAGES,
    },
    # Notebook 04: everything unfrozen after the head, and BatchNorm keeps ImageNet's statistics.
    "resnet50-fine-tuned": {
        "model": {
            "name": "resnet50",
            "head": "gap-256",
            "image_size": ByProfile(32, 32, 112),
            "batchnorm": "eval",
            "augment": Augment(flip=0.5, erasing=0.5),
        },
        "phases": [
            {"trainable": "head", "epochs": ByProfile(1, 4, 4)},
            {
                "trainable": "all",
                "epochs": ByProfile(1, 4, 20),
                "lr": 5e-4,
                "backbone_lr": 1e-4,
                "weight_decay": 0.05,
                "ema": ByProfile(0.5, 0.9, 0.999),
            },
        ],
        "images": ByProfile(64, 2_000, 55_000),
        "mirror": True,
    },
    "resnet50-linear": {
        "model": {
            "name": "resnet50",
            "head": "linear",
            "image_size": RESNET_PIXELS,
            "augment": Augment(flip=0.5, rotation=10),
        },
        "phases": [
            {"trainable": "head", "epochs": 15, **ADAM},
            {"trainable": "all", "epochs": 5, **ADAM, "backbone_lr": 3e-4, "schedule": "one-cycle"},
        ],
        "images": ByProfile(64, 3_000, 55_000),
    },
    # The baseline from scratch; its images are mirrored when testing, too.
    "small-cnn": {
        "model": {"name": "small_cnn", "weights": None, "augment": Augment(flip=0.5)},
        "phases": [{"trainable": "all", "epochs": 7, "lr": 4e-3, "weight_decay": 0.05, "label_smoothing": 0.05}],
        "mirror": True,
    },
    # For the best accuracy in minutes of a GPU: WRN-28-10 and two smaller ones with the changes of images that Zhong et
    # al. (2017, arXiv:1708.04896) trained on this data with (mirroring, shifts by up to 4 pixels, erasing) and a
    # schedule for fewer epochs. Batches of 250 divide 55,000 and 5,000, so that compiled code meets one shape.
    # Elsewhere small pictures show that they run.
    **{
        name: {
            "model": {
                "name": backbone,
                "weights": None,
                "image_size": ByProfile(8, 12, 28),
                "augment": Augment(flip=0.5, shift=4, erasing=0.5),
            },
            "phases": [
                {
                    "trainable": "all",
                    "epochs": ByProfile(1, 2, 80),
                    "batch_size": ByProfile(32, 50, 250),
                    "optimizer": "sgd",
                    "lr": ByProfile(0.05, 0.05, 0.2),
                    "weight_decay": 5e-4,
                    "label_smoothing": 0.1,
                    "ema": ByProfile(0.5, 0.9, 0.999),
                    "compile": ByProfile(False, False, True),
                }
            ],
            "images": ByProfile(64, 2_000, 55_000),
            "mirror": True,
        }
        for name, backbone in (
            ("wide-resnet-best", "wide_resnet"),
            ("wide-resnet-16-8", "wide_resnet_16_8"),
            ("wide-resnet-16-4", "wide_resnet_16_4"),
        )
    },
}

#: What can be left out of a recipe, to see what it contributes; ``mirror`` is the mirror image when testing.
INGREDIENTS = ("flip", "shift", "erasing", "label_smoothing", "ema", "mirror")

#: What can be added, one at a time or together: settings for the last phase. Epochs, weight decay, batch and rate are
#: those of the wide residual networks (the rate grows with the batch; Goyal et al., 2017, arXiv:1706.02677).
ADDITIONS = {
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "mixup-or-cutmix": {"mix": "mixup-or-cutmix"},
    "longer": {"epochs": ByProfile(2, 4, 160)},
    "more-decay": {"weight_decay": 1e-3},
    "larger-batch": {"batch_size": ByProfile(64, 100, 500), "lr": ByProfile(0.1, 0.1, 0.4)},
    # Every training image, as published numbers have it: nothing is held out, so no epoch can be chosen.
    "all-images": {"choose": False},
}


def add(recipe: dict, addition: str) -> dict:
    """``recipe`` with one of ``ADDITIONS``."""
    check_name("addition", addition, tuple(ADDITIONS))
    *earlier, last = recipe["phases"]
    if addition == "all-images":
        earlier = [phase | ADDITIONS[addition] for phase in earlier]
        recipe = recipe | {"images": ByProfile(64, 2_000, 60_000), "validation": False}
    return recipe | {"phases": [*earlier, last | ADDITIONS[addition]]}


def leave_out(recipe: dict, ingredient: str) -> dict:
    """``recipe`` less one of ``INGREDIENTS``; raises ``ValueError`` where it has none of that."""
    check_name("ingredient", ingredient, INGREDIENTS)
    augment = recipe["model"].get("augment") or Augment()
    ingredients = {"mirror": recipe.get("mirror"), **asdict(augment)}
    for phase in recipe["phases"]:
        ingredients |= phase
    if not ingredients.get(ingredient):
        raise ValueError(f"This recipe has no {ingredient!r} to leave out.")
    if ingredient == "mirror":
        return recipe | {"mirror": False}
    if ingredient in asdict(augment):
        return recipe | {"model": {**recipe["model"], "augment": replace(augment, **{ingredient: 0.0})}}
    return recipe | {"phases": [{k: v for k, v in phase.items() if k != ingredient} for phase in recipe["phases"]]}


def of_profile(value):
    """``value``, or the one of a :class:`ByProfile` that the current profile picks."""
    return pick(**value._asdict()) if isinstance(value, ByProfile) else value

"""Which ingredients help a wide residual network from scratch? One at a time, decided on validation images."""

import functools
from pathlib import Path
from statistics import mean, stdev

from common import options, record, splits, timed

from fmnist_utils import profile
from fmnist_utils.evaluate import predict, score
from fmnist_utils.models import build_model
from fmnist_utils.recipes import ADDITIONS, IMAGES, RECIPES, add, of_profile
from fmnist_utils.results import default_folder, read_record, where_and_when, write_record
from fmnist_utils.train import fit_phases

NAME, SEEDS = "wide-resnet-16-4", (0, 1)
SINGLE = [name for name in ADDITIONS if name != "all-images"]
#: Those of which only one can be had.
MIXING = ("mixup", "cutmix", "mixup-or-cutmix")
#: Each by itself, and those together that gained.
VARIANTS = ("plain", *SINGLE, "together")


def file_of(variant: str, seed: int) -> Path:
    return default_folder() / "benchmarks" / f"ingredients-{profile()}" / f"{variant}-seed{seed}.json"


def rows_of(variant: str) -> list[dict]:
    """The finished trainings of a variant, the mean of whose accuracy is to be compared."""
    files = [file_of(variant, seed) for seed in SEEDS]
    return [read_record(file, needed=("added", "val_accuracy")) for file in files if file.is_file()]


def accuracy_of(variant: str) -> float:
    return mean(row["val_accuracy"] for row in rows_of(variant))


def gained() -> list[str]:
    """The additions with a higher mean than the plain recipe, of the ways to mix images the best."""
    if missing := [variant for variant in ("plain", *SINGLE) if len(rows_of(variant)) < len(SEEDS)]:
        raise SystemExit(f"What is best together is known after all of: {', '.join(missing)}.")
    better = [name for name in SINGLE if accuracy_of(name) > accuracy_of("plain")]
    mixing = max((name for name in better if name in MIXING), key=accuracy_of, default=None)
    return [name for name in better if name not in MIXING or name == mixing]


def learn(variant: str) -> None:
    """Train a variant with the seeds that are missing; a file each, so that an interrupted run goes on."""
    added = gained() if variant == "together" else [] if variant == "plain" else [variant]
    recipe = functools.reduce(add, added, RECIPES[NAME])
    count = of_profile(recipe.get("images", IMAGES))
    images = splits(train=count, val=min(5_000, count))
    phases = [{key: of_profile(value) for key, value in phase.items()} for phase in recipe["phases"]]
    for seed in (seed for seed in SEEDS if not file_of(variant, seed).is_file()):
        model = build_model(**{key: of_profile(value) for key, value in recipe["model"].items()}, seed=seed)
        history, seconds = timed(lambda: fit_phases(model, *images.values(), phases, seed=seed, progress=False))  # noqa: B023
        found = score(predict(model, images["val"], mirror=recipe["mirror"]), images["val"].labels)
        row = {"variant": variant, "added": added, "seed": seed, "val_accuracy": round(found["accuracy"], 5)}
        row |= {"train_images": count, "epochs": len(history), "seconds": round(seconds, 1)} | where_and_when()
        print("wrote", write_record(file_of(variant, seed), row).name, row["val_accuracy"], flush=True)


def main() -> None:
    asked = options(
        __doc__,
        only={"nargs": "+", "choices": VARIANTS, "help": "train these and stop; what is finished is not repeated"},
        chosen="print the additions of the best variant, without 'longer', for --with of another recipe",
    )
    if asked.chosen:
        best = max((variant for variant in VARIANTS if rows_of(variant)), key=accuracy_of)
        return print(*(name for name in rows_of(best)[0]["added"] if name != "longer"))
    for variant in asked.only or VARIANTS:
        learn(variant)
    if asked.only:
        return None
    table = []
    for variant in VARIANTS:
        rows = rows_of(variant)
        accuracies = [row["val_accuracy"] for row in rows]
        table.append({"variant": variant, "added": rows[0]["added"], "val_accuracy": mean(accuracies)})
        table[-1] |= {"sd": stdev(accuracies), "by_seed": accuracies, "seconds": mean(row["seconds"] for row in rows)}
    best = max(table, key=lambda row: row["val_accuracy"])
    setting = f"{NAME}, mean of {len(SEEDS)} seeds, validation images: {best['variant']} against the recipe as it is"
    fields = {"seeds": SEEDS, "variants": table, "chosen": best["added"]}
    return record(
        "ingredients", setting, 100 * best["val_accuracy"], 100 * table[0]["val_accuracy"], "% correct", **fields
    )


if __name__ == "__main__":
    main()

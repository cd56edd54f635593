"""README's tables, made from the files under ``results/`` alone, and only by ``python -m fmnist_utils.results``."""

import re
from pathlib import Path

from fmnist_utils import ROOT
from fmnist_utils.results.reading import load_results
from fmnist_utils.results.schema import read_record, records_in
from fmnist_utils.results.writing import write_text


def results_table(folder: Path = ROOT / "results") -> str:
    """README's results table in Markdown, made from ``results/`` alone."""
    lines = [
        "| run | weights | training images | size | test accuracy | macro F1 | trainable | time | hardware |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in load_results(folder).to_dict("records"):
        cores = run["hardware.cores"]
        device = f"{cores} CPU core{'s' if cores > 1 else ''} ({run['hardware.cpu']})"
        if run["hardware.device"] != "cpu":
            device = run["hardware.gpu"] if run["hardware.device"] == "cuda" else f"Apple GPU ({run['hardware.cpu']})"
        weights = run.get("weights_origin")
        if not isinstance(weights, str):  # recorded before it was written down
            weights = "ImageNet" if run["weights"].startswith("imagenet") else "random"
        weights = weights.replace("|", "/")
        accuracy = f"{run['metrics.test_accuracy']:.2%}"
        if len(run["seeds"]) > 1:
            accuracy += f" ± {100 * run['metrics.test_accuracy_sd']:.2f} ({len(run['seeds'])} seeds)"
        lines.append(
            f"| `{run['recipe']}-{run['profile']}` | {weights} | {run['train_images']:,} | {run['image_size']} px "
            f"| {accuracy} | {run['metrics.macro_f1']:.4f} | {run['parameters.trainable']:,} "
            f"| {run['seconds.total'] / 60:.1f} min | {device} |"
        )
    return "\n".join(lines)


def benchmarks_table(folder: Path = ROOT / "results") -> str:
    """README's table of benchmarks in Markdown: the headline pair of each file under ``results/benchmarks``."""
    lines = ["| benchmark | ours | against | | what was measured |", "|---|---:|---:|---|---|"]
    for path in records_in(folder / "benchmarks"):
        found = read_record(path, needed=("name", "profile"))
        if found["profile"] == "smoke" or "ratio" not in found:
            continue
        found = read_record(path, needed=("ours", "reference", "unit", "setting"))
        link = f"[`{path.stem}`](results/benchmarks/{path.name})"
        pair = " | ".join(
            f"{value:,.0f}" if (value := found[key]) >= 100 else f"{value:.3g}" for key in ("ours", "reference")
        )
        lines.append(f"| {link} | {pair} | {found['unit']} | {found['setting']} |")
    return "\n".join(lines)


def with_tables(readme: str, folder: Path = ROOT / "results") -> str:
    """``readme`` with :func:`results_table` and :func:`benchmarks_table` between the markers of each."""
    for marker, table in (("results", results_table(folder)), ("benchmarks", benchmarks_table(folder))):
        between = re.compile(rf"(?<=<!-- {marker}:start)([^>]*-->\n).*?(?=<!-- {marker}:end -->)", re.DOTALL)
        readme = between.sub(lambda match, table=table: match[1] + table + "\n", readme)
    return readme


def update_readme(folder: Path = ROOT / "results") -> bool:
    """Bring the tables of the README beside ``folder`` up to date; whether anything changed.

    Raises ``ValueError`` where a file under ``folder`` cannot be used, and names it.
    """
    readme = folder.parent / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = with_tables(before, folder)
    if after != before:
        write_text(readme, after)
    return after != before

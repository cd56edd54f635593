"""The tables of the Markdown pages, made from ``results/`` alone, and only by ``python -m fmnist_utils.results``."""

import os
import re
from pathlib import Path

from fmnist_utils import ROOT
from fmnist_utils.results.reading import load_results
from fmnist_utils.results.schema import read_record, records_in
from fmnist_utils.results.writing import write_text


def results_table(folder: Path = ROOT / "results") -> str:
    """A row per recorded run in Markdown, the best first."""
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


def benchmarks_table(folder: Path = ROOT / "results", page: Path | None = None) -> str:
    """The headline pair of each file under ``results/benchmarks`` in Markdown, with links from ``page`` (README)."""
    base = page.parent if page else folder.parent
    lines = ["| benchmark | ours | against | | what was measured |", "|---|---:|---:|---|---|"]
    for path in records_in(folder / "benchmarks"):
        found = read_record(path, needed=("name", "profile"))
        if found["profile"] == "smoke" or "ratio" not in found:
            continue
        found = read_record(path, needed=("ours", "reference", "unit", "setting"))
        link = f"[`{path.stem}`]({Path(os.path.relpath(path, base)).as_posix()})"
        pair = " | ".join(
            f"{value:,.0f}" if (value := found[key]) >= 100 else f"{value:.3g}" for key in ("ours", "reference")
        )
        lines.append(f"| {link} | {pair} | {found['unit']} | {found['setting']} |")
    return "\n".join(lines)


def times_table(folder: Path = ROOT / "results") -> str:
    """Minutes and memory of each notebook in Markdown, as ``notebooks/run_all.py`` measured them on a CPU.

    The last row is all of them in the smoke profile, the check of a machine.
    """
    lines = ["| notebook | minutes | most memory |", "|---|---:|---:|"]

    def line(name: str, needed: list[dict]) -> str:
        minutes = sum(one["seconds"] for one in needed) / 60
        gigabytes = max(one["peak_memory_mb"] for one in needed) / 1000
        return f"| {name} | {minutes:.1f} | {gigabytes:.1f} GB |"

    for profile in ("cpu", "smoke"):
        path = folder / "benchmarks" / f"notebook_times-{profile}.json"
        if path.is_file():
            times = read_record(path, needed=("notebooks",))["notebooks"]
            if profile == "cpu":
                lines += [line(name.replace("_", " "), [needed]) for name, needed in times.items()]
            else:
                lines.append(line(f"all {len(times)} with `--profile smoke`", list(times.values())))
    return "\n".join(lines)


def with_tables(text: str, folder: Path = ROOT / "results", page: Path | None = None) -> str:
    """``text`` of a Markdown page with the tables of this file between the markers of each, where it has them."""
    makers = {
        "results": lambda: results_table(folder),
        "benchmarks": lambda: benchmarks_table(folder, page),
        "times": lambda: times_table(folder),
    }
    for marker, table in makers.items():
        between = re.compile(rf"(?<=<!-- {marker}:start)([^>]*-->\n).*?(?=<!-- {marker}:end -->)", re.DOTALL)
        text = between.sub(lambda match, table=table: match[1] + table() + "\n", text)
    return text


def update_pages(folder: Path = ROOT / "results") -> list[str]:
    """Bring the tables of the pages in the project of ``folder`` up to date; the names of those that changed.

    Raises ``ValueError`` where a file under ``folder`` cannot be used, and names it.
    """
    changed = []
    for page in sorted({*folder.parent.glob("*.md"), *folder.parent.glob("*/*.md")}):
        before = page.read_text(encoding="utf-8")
        if (after := with_tables(before, folder, page)) != before:
            write_text(page, after)
            changed.append(page.relative_to(folder.parent).as_posix())
    return changed

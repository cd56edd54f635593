"""Execute the notebooks in order, and note how long each takes and the memory it needs.

``python notebooks/run_all.py`` saves them with their outputs in ``runs/notebooks``, and the times in
``runs/benchmarks/notebook_times-<profile>.json``. With the beginning of a name (``03``) it runs that notebook alone, with
``solutions`` those of the exercises, with ``solutions/03`` one of them. ``--profile smoke`` tells within minutes whether
a machine can run the course. ``--in-place --record`` is how the outputs and numbers of the course were made.
"""

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from PIL import Image

from fmnist_utils import PROFILES, ROOT, profile
from fmnist_utils.results import default_folder, read_record, where_and_when, write_record, write_text
from fmnist_utils.sources.files import shown


class MeasuredClient(NotebookClient):
    """A notebook client that asks, after every cell, how much memory the kernel has needed at most."""

    peak_mb = 0.0

    async def async_execute_cell(self, *args, **kwargs):
        cell = await super().async_execute_cell(*args, **kwargs)
        process = psutil.Process(self.km.provisioner.process.pid)
        status = Path("/proc") / str(process.pid) / "status"
        if status.is_file():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            self.peak_mb = int(line.split()[1]) * 1024 / 1e6
        else:
            self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)
        return cell


def with_palette(png: str) -> str:
    """A PNG in base64 with at most 256 colours: about a third of the size, at no loss that one would see."""
    picture, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def with_links_from(source: str, old: Path, new: Path) -> str:
    """Markdown of a notebook that moves from folder ``old`` to ``new``, its links to files elsewhere put right."""

    def moved(match: re.Match) -> str:
        target = (old / match[1]).resolve()
        if target.parent == old or not target.exists():
            return match[0]
        return f"]({Path(os.path.relpath(target, new)).as_posix()}"

    return re.sub(r"\]\(([^)#\s]+)", moved, source)


def execute(path: Path, saved: Path) -> dict[str, float]:
    """Run one notebook in its own folder, save it with outputs, return its ``seconds`` and ``peak_memory_mb``."""
    notebook = nbformat.read(path, as_version=4)
    client = MeasuredClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": path.parent}},
    )
    began = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - began
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a finished progress bar leaves an output of blanks
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = with_palette(output.data["image/png"])
        elif cell.cell_type == "markdown" and saved != path:
            cell.source = with_links_from(cell.source, path.parent, saved.parent)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    write_text(saved, nbformat.writes(notebook) + "\n")
    return {"seconds": round(seconds, 1), "peak_memory_mb": round(client.peak_mb)}


def selected(name: str) -> list[Path]:
    """The notebooks that ``name`` stands for: all, one by the beginning of its name, or (some of) the solutions."""
    if name.partition("/")[0] == "solutions":
        return sorted((ROOT / "notebooks" / "solutions").glob(f"{name.partition('/')[2]}*.ipynb"))
    folder = ROOT / "notebooks" / ("solutions" if name.endswith("_solutions") else "")
    return sorted(folder.glob(f"{name}*.ipynb"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="beginning of a notebook's name, 'solutions', 'solutions/03'")
    parser.add_argument("--profile", choices=PROFILES, help="how much is computed; else FMNIST_PROFILE or the default")
    parser.add_argument("--in-place", action="store_true", help="save in notebooks/ itself instead of runs/notebooks")
    parser.add_argument("--record", action="store_true", help="write all numbers to results/ instead of runs/")
    given = parser.parse_args()
    for variable, value in (("FMNIST_RECORD", "1" if given.record else None), ("FMNIST_PROFILE", given.profile)):
        if value:
            os.environ[variable] = value  # for the notebooks, too
    paths = selected(given.name)
    solutions = bool(paths) and paths[0].parent.name == "solutions"
    if not paths:
        sys.exit(f"No notebook's name begins with {given.name!r}.")
    name = "solution_times" if solutions else "notebook_times"
    output = default_folder() / "benchmarks" / f"{name}-{profile()}.json"
    times = read_record(output, needed=["notebooks"])["notebooks"] if output.is_file() else {}
    for path in paths:
        saved = path if given.in_place else ROOT / "runs" / path.relative_to(ROOT)
        # Only ASCII here: a Windows console may know nothing else.
        print(f"{path.stem}:", end=" ", flush=True)
        times[path.stem] = execute(path, saved)
        print("{seconds:.0f} s, at most {peak_memory_mb:,} MB of memory".format(**times[path.stem]), flush=True)
        record = {"name": name, "profile": profile(), "notebooks": dict(sorted(times.items()))}
        write_record(output, record | where_and_when())
    print(f"with outputs in {shown(saved.parent)}, times in {shown(output)}")


if __name__ == "__main__":
    main()

"""Execute the notebooks in order, in place, and record how long each takes and the memory it needs.

``python notebooks/run_all.py`` is also how the saved outputs were made; with ``solutions`` it runs those of the
exercises, with the beginning of a name (``03``) that notebook alone. It writes
``results/benchmarks/notebook_times-<profile>.json`` (or ``solution_times``).
"""

import base64
import datetime
import io
import json
import sys
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from PIL import Image

from fmnist_utils import ROOT, profile
from fmnist_utils.results import hardware, versions, write_text


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


def execute(path) -> dict[str, float]:
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
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    write_text(path, nbformat.writes(notebook) + "\n")
    return {"seconds": round(seconds, 1), "peak_memory_mb": round(client.peak_mb)}


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    pattern = "solutions/*.ipynb" if wanted == "solutions" else f"{wanted}*.ipynb"
    paths = sorted((ROOT / "notebooks").glob(pattern))
    if not paths:
        sys.exit(f"No notebook's name begins with {wanted!r}.")
    name = "solution_times" if wanted == "solutions" else "notebook_times"
    output = ROOT / "results" / "benchmarks" / f"{name}-{profile()}.json"
    times = json.loads(output.read_text())["notebooks"] if output.is_file() else {}
    for path in paths:
        print(f"{path.stem} …", end=" ", flush=True)
        times[path.stem] = execute(path)
        print("{seconds:.0f} s, at most {peak_memory_mb:,} MB of memory".format(**times[path.stem]), flush=True)
        record = {"name": name, "profile": profile(), "notebooks": dict(sorted(times.items()))}
        record |= {"hardware": hardware(), "versions": versions(), "date": datetime.date.today().isoformat()}
        write_text(output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

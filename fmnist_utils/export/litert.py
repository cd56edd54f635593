"""What :mod:`fmnist_utils.export` needs for LiteRT (``.tflite``, once TensorFlow Lite): an environment of its own.

litert-torch works with an older torch than the course's own environment may have. So it is installed into a second one,
whose Python runs this file for each step: ``python -m fmnist_utils.export.litert convert …`` or ``… run …``.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fmnist_utils import ROOT

#: What the environment holds: the converter, the runtime, and what building one of the course's models takes.
PACKAGES = ("litert-torch>=0.10", "ai-edge-litert>=2", "torch<2.15", "torchvision", "pandas", "safetensors")
FOLDER = ROOT / "data" / "cache" / "litert-environment"


def find(folder: str | Path | None = None) -> Path | None:
    """The Python of LiteRT's environment in ``folder``, or None where there is none or it is not complete.

    The default is the environment variable ``FMNIST_LITERT`` or else ``data/cache/litert-environment``. Instead of a
    folder it may be the Python of an environment of your own, which has ``PACKAGES``.
    """
    folder = _folder(folder)
    return folder if folder.is_file() else _python(folder) if (folder / "complete").is_file() else None


def _folder(folder: str | Path | None) -> Path:
    return Path(folder or os.environ.get("FMNIST_LITERT") or FOLDER).expanduser().absolute()


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment(folder: str | Path | None = None) -> Path:
    """What :func:`find` finds; where that is nothing, the environment is made first (7 GB, minutes).

    Raises ``ValueError`` for a folder with anything else in it, or for the environment this runs in, and
    ``RuntimeError`` where the installation failed, or cannot work (Windows: the converter has no packages for it).
    """
    if python := find(folder):
        return python
    if os.name == "nt":
        raise RuntimeError("LiteRT's converter runs on Linux and macOS only: on Windows, use WSL, or export to ONNX.")
    folder = _folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise ValueError(f"{folder} holds other files: name a new folder, or an environment, for LiteRT.")
    if folder.resolve() == Path(sys.prefix).resolve():
        raise ValueError(f"{folder} is the environment this runs in, whose torch must stay: name another for LiteRT.")
    print(f"installing litert-torch into {folder}: once, 7 GB, minutes", flush=True)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run([_python(folder), "-m", "pip", "install", "--prefer-binary", "--quiet", *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"The environment for LiteRT in {folder} could not be made ({error}); it takes a network and 7 GB of disk, "
            "and on Debian the package python3-venv. The same command goes on where it stopped."
        ) from error
    (folder / "complete").touch()
    return _python(folder)


def convert(saved: Path, file: Path, python: Path, int8: bool = False) -> None:
    """Write the model that :func:`fmnist_utils.checkpoints.save_model` wrote to ``saved`` as LiteRT's ``file``.

    ``images``, uint8 [1, 28, 28], in; ``probabilities``, float32 [1, 10], out. ``int8`` stores the weights in 8 bits,
    with one scale per channel, and rounds activations to 8 bits where the file is run (dynamic-range quantisation), so
    it takes no images. Raises ``RuntimeError`` with the converter's last words.
    """
    _inside(python, "convert", saved.absolute(), file.absolute(), *(["int8"] if int8 else []))


def interpret(file: Path, images: np.ndarray, python: Path, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, float32 [N, 10]; seconds of each image, float64 [N]) of uint8 [N, 28, 28], one after the other.

    LiteRT's interpreter runs it on the CPU; its first images also pay for warming up.
    """
    with TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.npy"), Path(folder, "outputs.npz")
        np.save(inputs, images)
        _inside(python, "run", Path(file).absolute(), inputs, outputs, threads)
        with np.load(outputs) as arrays:
            return arrays["probabilities"], arrays["seconds"]


def _inside(python: Path, *words) -> None:
    command = [python, "-m", "fmnist_utils.export.litert", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(
            f"LiteRT ({python}) could not {words[0]} {words[1]} (exit {done.returncode}):\n{done.stderr[-2000:]}"
        )


# The two functions below run in the other environment.


def _convert(saved: str, file: str, precision: str = "float32") -> None:
    import litert_torch
    import torch
    from torch import nn

    from fmnist_utils.checkpoints import load_model

    class Network(nn.Module):  # the dictionary names the output
        def __init__(self) -> None:
            super().__init__()
            self.model = load_model(saved)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"probabilities": self.model(images).softmax(1)}

    images = torch.zeros(1, 28, 28, dtype=torch.uint8)
    litert_torch.convert(Network().eval(), sample_kwargs={"images": images}).export(file)
    if precision == "int8":
        from ai_edge_quantizer import quantizer, recipe

        quantised = quantizer.Quantizer(file, recipe.dynamic_wi8_afp32()).quantize()
        Path(file).write_bytes(quantised.quantized_model)


def _run(file: str, images: str, outputs: str, threads: str) -> None:
    from time import perf_counter

    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(file, num_threads=int(threads)).get_signature_runner()
    probabilities, seconds = [], []
    for image in np.load(images)[:, None]:
        began = perf_counter()
        probabilities.append(network(images=image)["probabilities"])
        seconds.append(perf_counter() - began)
    np.savez(outputs, probabilities=np.concatenate(probabilities), seconds=np.array(seconds))


if __name__ == "__main__":
    {"convert": _convert, "run": _run}[sys.argv[1]](*sys.argv[2:])

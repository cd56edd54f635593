"""The file from which an interrupted training goes on. The first process writes it, all of them read it."""

import io
from pathlib import Path

import torch

from fmnist_utils.scale.processes import from_first, is_first
from fmnist_utils.sources.files import replacing


class Progress:
    """``<name>.resume.pt`` beside a model that is to be saved as ``path``, a name without an ending."""

    def __init__(self, path: Path) -> None:
        self.file = path.with_name(f"{path.name}.resume.pt")

    def read(self) -> dict | None:
        """What was written last, its tensors on the CPU; None where there is nothing."""

        def load() -> dict | None:
            return torch.load(self.file, map_location="cpu", weights_only=True) if self.file.is_file() else None

        return from_first(load)

    def write(self, state: dict) -> None:
        """Replace what was there, whole or not at all; OSError with a sentence where the disk is full."""
        if not is_first():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # writing it to a full disk, torch would not say that the disk is full
        torch.save(state, content)
        with replacing(self.file) as temporary:
            temporary.write_bytes(content.getbuffer())

    def remove(self) -> None:
        if is_first():
            self.file.unlink(missing_ok=True)

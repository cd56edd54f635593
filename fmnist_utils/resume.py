"""A training that goes on where it was interrupted, and is loaded when it was finished.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import io
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fmnist_utils.checkpoints import card_and_file, changed_state, load_model, read_card, save_model
from fmnist_utils.data import replacing
from fmnist_utils.models import Classifier
from fmnist_utils.scale.processes import from_first, is_first
from fmnist_utils.sources.files import expanded, file_sha256

__all__ = ["Checkpoint"]

#: By model: a hash of the weights that fit() left it with, and by checkpoint those that fit() had found. So a cell that
#: is run again finds its own run, although the model has learned meanwhile.
_LEFT: WeakKeyDictionary[Classifier, tuple[str, dict[str, str]]] = WeakKeyDictionary()


#: Version 0.1.0 had this, too, in a run's identity, behind the settings.
_EARLIER = ', "unsettled": ["model", "train", "val", "checkpoint", "compile", "progress", "on_epoch"]}'


class Checkpoint:
    """One run of :func:`~fmnist_utils.train.fit` on disk: its progress, and at its end the saved model.

    ``path`` is without an ending, or None: then nothing is read or written. ``settings`` (those of ``fit``), the
    model's architecture, weights and where training started from, and ``data`` (fingerprints) make the run's identity.
    """

    def __init__(self, path: str | Path | None, settings: dict, model: Classifier, data: list[str]) -> None:
        self.active, self.path = bool(path), expanded(path or "none")
        self.settings, self.model = settings, model
        if self.active:
            self.run = json.dumps([settings, model.config, model.weights, *data]) + self._start()
            self.names = (self.run, self.run.replace("}", _EARLIER, 1))

    def _start(self) -> str:
        """Hash of the weights that this run begins with: a phase starts where the one before has ended."""
        now, name = _hash(self.model.state_dict()), str(self.path.absolute())
        left, starts = _LEFT.get(self.model, (None, {}))
        if left != now or name not in starts:
            starts[name] = _hash(changed_state(self.model))
        _LEFT[self.model] = (now, starts)
        return starts[name]

    @contextmanager
    def left_as_it_is(self) -> Generator[None, None, None]:
        """Within it the run trains the model; what it leaves, even when interrupted, counts as its own doing."""
        try:
            yield
        finally:
            if self.active:
                self._leave()

    def _leave(self) -> None:
        _LEFT[self.model] = (_hash(self.model.state_dict()), _LEFT[self.model][1])

    def finished(self) -> list[dict] | None:
        """The rows of a finished run, whose weights are loaded into the model; None where there is none.

        Raises ``ValueError`` where the files are another run's, which would be lost.
        """
        if not self.active or not (card := from_first(self._card)):
            return None
        if card.get("run") not in map(_digest, self.names):
            other = _difference(card.get("settings", {}), self.settings)
            raise ValueError(
                f"{self.path} is a finished model of another run ({other}): give this one another checkpoint name, or "
                "delete the two files to train anew."
            )
        # Built anew: a later phase may have changed what the file does not hold.
        self.model.load_state_dict(from_first(lambda: load_model(self.path).state_dict()))
        self.model.eval()
        self._leave()
        if is_first():
            self._file.unlink(missing_ok=True)  # left where the process was killed at its very end
        return card["history"]

    def _card(self) -> dict | None:
        file, text = card_and_file(self.path)
        if not (file.is_file() and text.is_file()):
            return None
        try:
            card = read_card(self.path)
        except ValueError:
            return None  # damaged: trained anew and replaced
        return card if card["sha256"] == file_sha256(file) else None

    def resume(self, optimizer, scheduler, average) -> tuple[list[dict], dict[str, Tensor]]:
        """(rows so far, best weights so far), after putting everything back to where the last epoch ended."""
        state = from_first(self._progress)
        if state is None:
            return [], {}
        self.model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if average is not None:
            average.load_state_dict(state["average"])
        return state["rows"], state["best"]

    def _progress(self) -> dict | None:
        if not self.active or not self._file.is_file():
            return None
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if (run := state.get("run")) not in self.names:
            other = _difference(json.JSONDecoder().raw_decode(run)[0][0], self.settings) if run else "other settings"
            raise ValueError(
                f"{self._file} belongs to a run with other settings, data or model ({other}): use those to go on with "
                "it, or give this run another checkpoint name."
            )
        return state

    @property
    def _file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.resume.pt")

    def keep(self, optimizer, scheduler, average, rows: list[dict], best: dict[str, Tensor]) -> None:
        """Write down where the run is, after an epoch."""
        if not self.active or not is_first():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "run": self.run,
            "model": changed_state(self.model),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "average": average.state_dict() if average is not None else None,
            "rows": rows,
            "best": best,
        }
        content = io.BytesIO()  # writing it to a full disk, torch would not say that the disk is full
        torch.save(state, content)
        with replacing(self._file) as temporary:
            temporary.write_bytes(content.getbuffer())

    def finish(self, rows: list[dict]) -> None:
        """Save the model with its history; the progress is then of no more use."""
        if not self.active:
            return
        card = {"settings": self.settings, "history": rows, "run": _digest(self.run)}
        from_first(lambda: save_model(self.model, self.path, **card))
        if is_first():
            self._file.unlink(missing_ok=True)


def _hash(state: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in state.values())).hexdigest()


def _digest(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()[:16]


def _difference(there: dict, here: dict) -> str:
    """What is set otherwise, in words."""
    changed = [f"{key}={there.get(key)!r}, not {value!r}" for key, value in here.items() if there.get(key) != value]
    return "; ".join(changed) or "other images, labels, model or starting weights"

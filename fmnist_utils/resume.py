"""A training that goes on where it was interrupted, and is loaded when it was finished.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor

from fmnist_utils.cache import CachedFeatures, Inputs
from fmnist_utils.checkpoints import card_and_file, changed_state, load_model, read_card, save_model
from fmnist_utils.data import fingerprint
from fmnist_utils.models import Classifier
from fmnist_utils.scale.processes import from_first
from fmnist_utils.scale.progress import Progress
from fmnist_utils.settings import Run
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
    model's architecture, weights and where training started from, and ``data`` make the run's identity.
    """

    def __init__(self, path: str | Path | None, settings: dict, model: Classifier, data: Sequence[Inputs]) -> None:
        self.path = expanded(path) if path else None
        self.settings, self.model = settings, model
        if self.path:
            self.progress = Progress(self.path)
            # The key of features names their images, but not their labels.
            pairs = ((d.key if isinstance(d, CachedFeatures) else d.images, d.labels) for d in data)
            names = [fingerprint(*pair)[:16] for pair in pairs]
            self.run = json.dumps([settings, model.config, model.weights, *names]) + self._start(self.path)
            self.names = (self.run, self.run.replace("}", _EARLIER, 1))

    def _start(self, path: Path) -> str:
        """Hash of the weights that this run begins with: a phase starts where the one before has ended."""
        now, name = fingerprint(*self.model.state_dict().values()), str(path.absolute())
        left, starts = _LEFT.get(self.model, (None, {}))
        if left != now or name not in starts:
            starts[name] = fingerprint(*changed_state(self.model).values())
        _LEFT[self.model] = (now, starts)
        return starts[name]

    @contextmanager
    def left_as_it_is(self) -> Generator[None]:
        """Within it the run trains the model; what it leaves, even when interrupted, counts as its own doing."""
        try:
            yield
        finally:
            if self.path:
                weights = self.model.state_dict().values()
                _LEFT[self.model] = (fingerprint(*weights), _LEFT[self.model][1])

    def finished(self) -> list[dict] | None:
        """The rows of a finished run, whose weights are loaded into the model; None where there is none.

        Raises ``ValueError`` where the files are another run's, which would be lost.
        """
        if not (path := self.path) or not (card := from_first(lambda: _sound_card(path))):
            return None
        if card.get("run") not in [fingerprint(name)[:16] for name in self.names]:
            other = _difference(card.get("settings", {}), self.settings)
            raise ValueError(
                f"{path} is a finished model of another run ({other}): give this one another checkpoint name, or "
                "delete the two files to train anew."
            )
        with self.left_as_it_is():
            # Built anew: a later phase may have changed what the file does not hold.
            self.model.load_state_dict(from_first(lambda: load_model(path).state_dict()))
        self.model.eval()
        self.progress.remove()  # left where the process was killed at its very end
        return card["history"]

    def resume(self, run: Run) -> tuple[list[dict], dict[str, Tensor]]:
        """(rows so far, best weights so far), after putting everything back to where the last epoch ended."""
        state = self.progress.read() if self.path else None
        if state is None:
            return [], {}
        if (name := state.get("run")) not in self.names:
            other = _difference(json.JSONDecoder().raw_decode(name)[0][0], self.settings) if name else "other settings"
            raise ValueError(
                f"{self.progress.file} belongs to a run with other settings, data or model ({other}): use those to go "
                "on with it, or give this run another checkpoint name."
            )
        run.restore(state)
        return state["rows"], state["best"]

    def keep(self, run: Run, rows: list[dict], best: dict[str, Tensor]) -> None:
        """Write down where the run is, after an epoch."""
        if self.path:
            self.progress.write({"run": self.run, **run.state(), "rows": rows, "best": best})

    def finish(self, rows: list[dict]) -> None:
        """Save the model with its history; the progress is then of no more use."""
        if path := self.path:
            card = {"settings": self.settings, "history": rows, "run": fingerprint(self.run)[:16]}
            from_first(lambda: save_model(self.model, path, **card))
            self.progress.remove()


def _sound_card(path: Path) -> dict | None:
    """The card of a saved model, unless there is none or it is damaged: then the training begins anew."""
    file, text = card_and_file(path)
    if not (file.is_file() and text.is_file()):
        return None
    try:
        card = read_card(path)
    except ValueError:
        return None
    return card if card["sha256"] == file_sha256(file) else None


def _difference(there: dict, here: dict) -> str:
    """What is set otherwise, in words."""
    changed = [f"{key}={there.get(key)!r}, not {value!r}" for key, value in here.items() if there.get(key) != value]
    return "; ".join(changed) or "other images, labels, model or starting weights"

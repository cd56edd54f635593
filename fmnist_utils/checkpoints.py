"""Trained models on disk, and trainings that go on where they were interrupted.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fmnist_utils.data import replacing
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model, file_sha256
from fmnist_utils.scale.processes import from_first, is_first

__all__ = ["Checkpoint", "changed_state", "load_model", "load_state", "save_model"]


def save_model(model: Classifier, path: str | Path, **card) -> Path:
    """Write ``<path>.safetensors`` (what training changed) and ``<path>.json`` (how to rebuild the rest, and ``card``).

    Pretrained weights that are as they came are not stored but named by hash, so a head takes a few hundred KB. What
    ``torch.compile`` or ``DataParallel`` made of a model is saved as the model within. Raises ``ValueError`` for a
    model that :func:`~fmnist_utils.models.build_model` would not build again, such as one with an exchanged layer.
    Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's
    model = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
    file, text = _files(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Both are complete before either replaces an earlier file, because they only load together.
    with replacing(file) as temporary, replacing(text) as temporary_text:
        save_file(_different_from_named_weights(model), temporary)
        card = {**card, "model": model.config, "weights": model.weights, "sha256": file_sha256(temporary)}
        temporary_text.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8", newline="\n")
    return file


def load_model(path: str | Path) -> Classifier:
    """Rebuild a model written by :func:`save_model`, in eval mode; ``path`` with or without an ending.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` where a file is damaged or the pretrained weights
    found here are not those the model was trained on, and ``WeightsUnavailable`` where there are none.
    """
    file, text = _files(path)
    try:
        card = json.loads(text.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{text} is damaged ({error}): copy it and {file.name} again.") from error
    if not isinstance(card, dict) or not {"model", "weights", "sha256"} <= card.keys():
        raise ValueError(f"{text} is not the card of a saved model: it lacks model, weights or sha256.")
    if (digest := file_sha256(file)) != card["sha256"]:
        raise ValueError(f"{file} does not belong to {text.name} (SHA-256 {digest[:12]}…): copy both files again.")
    try:
        model = build_model(**card["model"])
    except TypeError as error:  # an argument of an earlier or later version
        raise ValueError(f"{text} was written by another version of fmnist_utils ({error}).") from error
    if model.weights != card["weights"]:
        raise ValueError(
            f"{text.name} was trained on {card['weights']}, but the weights found here are {model.weights}. "
            "Restore data/weights/ from the repository."
        )
    return load_state(model, load_file(file), file).eval()


def load_state(model: Classifier, state: dict[str, Tensor], source: str | Path) -> Classifier:
    """Load what :func:`save_model` stored into ``model``, built as its own was; ``ValueError`` where it doesn't fit."""
    expected = model.state_dict()
    # Pretrained layers that nothing changed are not in the file.
    needed = {key for key in expected if model.weights == "none" or not key.startswith("backbone.")}
    problems = [f"{key} is missing" for key in sorted(needed - state.keys())]
    problems += [f"{key} belongs to another model" for key in sorted(state.keys() - expected.keys())]
    problems += [
        f"{key} is {list(tensor.shape)}, not {list(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit its model: {', '.join(problems[:5])}.")
    model.load_state_dict(state, strict=False)
    return model


def changed_state(model: Classifier) -> dict[str, Tensor]:
    """The part of the state dict that training can change now: all of it unless pretrained layers are frozen."""
    frozen = set()
    if model.weights != "none":
        for name, module in model.named_modules():
            parameters = list(module.named_parameters(recurse=False))
            if parameters and not any(p.requires_grad for _, p in parameters):
                frozen |= {f"{name}.{key}" for key, _ in [*parameters, *module.named_buffers(recurse=False)]}
    return {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in frozen}


def _different_from_named_weights(model: Classifier) -> dict[str, Tensor]:
    """What a file must hold so that the model comes back, whatever was trained and frozen again meanwhile."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        built = build_model(**model.config)
    except WeightsUnavailable:  # gone since the model was built: then all of it is stored
        return state
    for what, of in _ASPECTS.items():
        if (here := of(model)) != (there := of(built)):
            lines = zip_longest(str(here).splitlines(), str(there).splitlines(), fillvalue="nothing")
            change = next(f"{a.strip()} for {b.strip()}" for a, b in lines if a != b)
            raise ValueError(
                f"This model's {what} changed after build_model() ({change}), and load_model() would build it without: "
                "pass what you want to build_model, or keep the whole model with torch.save(model, path)."
            )
    if model.weights == "none":
        return state
    original, trainable = built.state_dict(), changed_state(model).keys()
    return {
        key: value
        for key, value in state.items()
        if not key.startswith("backbone.") or key in trainable or not torch.equal(value, original[key])
    }


#: What build_model decides besides the tensors.
_ASPECTS = {
    "layers": repr,
    "image size": lambda model: model.preprocess.image_size,
    "normalisation": lambda model: torch.stack([model.preprocess.scale, model.preprocess.offset]).tolist(),
}


def _files(path: str | Path) -> tuple[Path, Path]:
    """The tensors' file and the card of a model saved as ``path``; ``~`` is the home folder, endings may be there."""
    path = Path(path).expanduser()
    name = path.name.removesuffix(".safetensors").removesuffix(".json")
    return path.with_name(f"{name}.safetensors"), path.with_name(f"{name}.json")


# ------------------------------------------------------------------------------------------- interrupted trainings

#: By model: a hash of the weights that fit() left it with, and by checkpoint those that fit() had found. So a cell that
#: is run again finds its own run, although the model has learned meanwhile.
_LEFT: WeakKeyDictionary[Classifier, tuple[str, dict[str, str]]] = WeakKeyDictionary()


class Checkpoint:
    """One run of :func:`~fmnist_utils.train.fit` on disk: its progress, and at its end the saved model.

    ``path`` is without an ending, or None: then nothing is read or written. ``settings`` (those of ``fit``), the
    model's architecture, weights and where training started from, and ``data`` (fingerprints) make the run's identity.
    """

    def __init__(self, path: str | Path | None, settings: dict, model: Classifier, data: list[str]) -> None:
        self.path = Path(path).expanduser() if path else None
        self.settings, self.model = settings, model
        if self.path:
            self.run = json.dumps([settings, model.config, model.weights, *data]) + self._start()

    def _start(self) -> str:
        """Hash of the weights that this run begins with: a phase starts where the one before has ended."""
        now, name = _hash(self.model.state_dict()), str(self.path.absolute())
        left, starts = _LEFT.get(self.model, (None, {}))
        if left != now or name not in starts:
            starts[name] = _hash(changed_state(self.model))
        _LEFT[self.model] = (now, starts)
        return starts[name]

    @contextmanager
    def left_as_it_is(self) -> Iterator[None]:
        """Within it the run trains the model; what it leaves, even when interrupted, counts as its own doing."""
        try:
            yield
        finally:
            if self.path:
                self._leave()

    def _leave(self) -> None:
        _LEFT[self.model] = (_hash(self.model.state_dict()), _LEFT[self.model][1])

    def finished(self) -> list[dict] | None:
        """The rows of a finished run, whose weights are loaded into the model; None where there is none.

        Raises ``ValueError`` where the files are another run's, which would be lost.
        """
        if self.path is None or not (card := from_first(self._card)):
            return None
        if card.get("run") != _digest(self.run):
            other = _difference(card.get("settings", {}), self.settings)
            raise ValueError(
                f"{self.path} is a finished model of another run ({other}): give this one another checkpoint name, or "
                "delete the two files to train anew."
            )
        # Built anew: a later phase may have changed what the file does not hold.
        self.model.load_state_dict(from_first(lambda: load_model(self.path).state_dict()))
        self.model.eval()
        self._leave()
        return card["history"]

    def _card(self) -> dict | None:
        file, text = _files(self.path)
        if not (file.is_file() and text.is_file()):
            return None
        try:
            card = json.loads(text.read_text(encoding="utf-8"))
        except ValueError:
            return None  # damaged: trained anew and replaced
        return card if isinstance(card, dict) and card.get("sha256") == file_sha256(file) else None

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
        if self.path is None or not self._file.is_file():
            return None
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if (run := state.get("run")) != self.run:
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
        if self.path is None or not is_first():
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
        with replacing(self._file) as temporary:
            torch.save(state, temporary)

    def finish(self, rows: list[dict]) -> None:
        """Save the model with its history; the progress is then of no more use."""
        if self.path is None:
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

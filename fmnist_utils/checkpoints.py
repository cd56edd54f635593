"""Trained models on disk: save, load, and what of a model has to be stored.

Explained in ``notebooks/03_vgg16_transfer_learning.ipynb``.
"""

import json
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fmnist_utils.data import replacing
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model
from fmnist_utils.sources.files import file_sha256
from fmnist_utils.sources.saved import card_and_file, read_card, saved_models

__all__ = ["card_and_file", "changed_state", "load_model", "read_card", "save_model", "saved_models"]


def save_model(model: Classifier, path: str | Path, **card) -> Path:
    """Write ``<path>.safetensors`` (what training changed) and ``<path>.json`` (how to rebuild the rest, and ``card``).

    Pretrained weights that are as they came are not stored but named by hash, so a head takes a few hundred KB. What
    ``torch.compile`` or ``DataParallel`` made of a model is saved as the model within. Raises ``ValueError`` for a
    model that :func:`~fmnist_utils.models.build_model` would not build again, such as one with an exchanged layer.
    Explained in notebooks/03_vgg16_transfer_learning.ipynb.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's
    model = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else model
    file, text = card_and_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Both are complete before either replaces an earlier file, because they only load together.
    with replacing(file) as temporary, replacing(text) as temporary_text:
        # What the card says of the architecture stands in the hashed file, too: a damaged card would build another one.
        content = save(_different_from_named_weights(model), {"built": _built(model.config, model.weights)})
        temporary.write_bytes(content)
        card = {**card, "model": model.config, "weights": model.weights, "sha256": file_sha256(temporary)}
        temporary_text.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8", newline="\n")
    return file


def load_model(path: str | Path) -> Classifier:
    """Rebuild a model written by :func:`save_model`, in eval mode; ``path`` with or without an ending.

    Raises ``FileNotFoundError`` for a missing file, ``ValueError`` where a file is damaged, and ``WeightsUnavailable``,
    which says where it looked, where the very pretrained weights that the model was trained on are not found.
    """
    (file, text), card = card_and_file(path), read_card(path)
    if (digest := file_sha256(file)) != card["sha256"]:
        raise ValueError(f"{file} does not belong to {text.name} (SHA-256 {digest[:12]}…): copy both files again.")
    with safe_open(file, "pt") as tensors:  # files of version 0.1.0 have no metadata
        if (tensors.metadata() or {}).get("built", built := _built(card["model"], card["weights"])) != built:
            raise ValueError(f"{text} is damaged: it does not describe {file.name}. Copy both files again.")
    try:
        model = _rebuilt(card["model"], card["weights"])
    except TypeError as error:  # an argument of an earlier or later version
        raise ValueError(f"{text} was written by another version of fmnist_utils ({error}).") from error
    if model.weights != card["weights"]:
        raise ValueError(
            f"{text.name} was trained on {card['weights']}, but the weights found here are {model.weights}. "
            "Restore data/weights/ from the repository."
        )
    return _loaded(model, load_file(file), file).eval()


def _rebuilt(config: dict, weights: str) -> Classifier:
    """The model of these arguments, on the very pretrained weights of this identity."""
    return build_model(**config, weights_sha256=weights.partition(":")[2])


def _built(config: dict, weights: str) -> str:
    return json.dumps([config, weights], sort_keys=True)


def _loaded(model: Classifier, state: dict[str, Tensor], source: str | Path) -> Classifier:
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
        built = _rebuilt(model.config, model.weights)
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

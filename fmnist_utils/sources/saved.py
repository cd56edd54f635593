"""The two files of a saved model, written by `fmnist_utils.checkpoints`: their names, and what the card says."""

import json
from pathlib import Path

from fmnist_utils import ROOT
from fmnist_utils.sources.files import expanded


def card_and_file(path: str | Path) -> tuple[Path, Path]:
    """The tensors' file and the card of a model saved as ``path``; ``~`` is the home folder, endings may be there."""
    path = expanded(path)
    name = path.name.removesuffix(".safetensors").removesuffix(".json")
    return path.with_name(f"{name}.safetensors"), path.with_name(f"{name}.json")


def read_card(path: str | Path) -> dict:
    """The card of a saved model: what rebuilds it, and what was written with it.

    Raises ``FileNotFoundError`` where there is none and ``ValueError`` where it is damaged.
    """
    file, text = card_and_file(path)
    try:
        card = json.loads(text.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{text} is damaged ({error}): copy it and {file.name} again.") from error
    whole = isinstance(card, dict) and "weights" in card
    if not (whole and isinstance(card.get("model"), dict) and isinstance(card.get("sha256"), str)):
        raise ValueError(f"{text} is not the card of a saved model: it lacks model, weights or sha256.")
    if "test_time_flip" in card:  # as version 0.1.0 called it
        card["mirror"] = card.pop("test_time_flip")
    return card


def saved_models(folder: Path = ROOT / "data" / "models") -> dict[str, Path]:
    """Name and path, without ending, of every model saved in ``folder``."""
    cards = sorted(folder.glob("*.json"))
    return {card.stem: card.with_suffix("") for card in cards if card.with_suffix(".safetensors").is_file()}

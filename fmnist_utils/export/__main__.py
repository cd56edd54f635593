"""``python -m fmnist_utils.export``: a trained model as one ONNX or LiteRT file."""

import argparse
import json
import shutil
from pathlib import Path

from fmnist_utils import check_name
from fmnist_utils.checkpoints import load_model, read_card, saved_models
from fmnist_utils.data import load, train_val_split
from fmnist_utils.export import litert
from fmnist_utils.export.onnx import export_litert, export_onnx, parity
from fmnist_utils.sources.files import expanded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a model in data/models, or the path of a saved one without its ending")
    parser.add_argument("--folder", type=expanded, default=Path("exports"), help="where the files go (exports)")
    parser.add_argument("--int8", action="store_true", help="quantise it; ONNX with 512 training images")
    parser.add_argument("--litert", action="store_true", help="a .tflite file instead; sets up an environment, once")
    parser.add_argument("--environment", type=Path, help="folder for --litert (data/cache/litert-environment)")
    arguments = parser.parse_args()
    shipped = saved_models()
    path = shipped.get(arguments.name, expanded(arguments.name))
    if not path.with_name(path.name + ".json").is_file():
        try:
            check_name("model", arguments.name, tuple(shipped))
        except ValueError as error:
            parser.error(f"{error} Or give the path of a saved model, without its ending.")
    if arguments.environment and not arguments.litert:
        parser.error("--environment is for --litert.")
    model = load_model(path)
    card = read_card(path)
    kept = ("recipe", "profile", "command", "data", "metrics", "mirror")
    card = {key: card[key] for key in kept if key in card} | {"source_sha256": card["sha256"]}
    python = litert.environment(arguments.environment) if arguments.litert else None
    if arguments.litert:
        file = export_litert(model, arguments.folder / path.name, python=python, int8=arguments.int8, **card)
    else:
        if arguments.int8:  # whose accuracy is its own
            card |= {"int8": train_val_split(load("train"))[0].subset(512), "test": load("test")}
        file = export_onnx(model, arguments.folder / path.name, **card)
        shutil.copyfile(Path(__file__).with_name("classify.py"), file.with_name("classify.py"))
    against_torch = parity(model, file, load("test").subset(256), python=python)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB) and its card {file.name}.json")
    if file.suffix == ".onnx":
        print(f"python {file.with_name('classify.py')} {file} PICTURE uses it without torch")
        exported = json.loads(file.with_name(f"{file.name}.json").read_text(encoding="utf-8"))
        if counted := exported.get("metrics_of_this_file"):
            accuracy, images = counted["test_accuracy"], counted["test_images"]
            print(f"its own accuracy: {accuracy:.2%} of {images:,} test images, not mirrored")
    print(
        f"against torch on 256 test images: probabilities differ by at most {against_torch['max_difference']:.1g}, "
        f"same class for {against_torch['same_class']:.1%}"
    )


if __name__ == "__main__":
    main()

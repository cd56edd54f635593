"""Which layer transfers? A small head on what each block of a frozen network puts out, for several networks.

Explained in notebooks/03_vgg16_transfer_learning.ipynb, which does the same step by step for one network.
"""

import torch
import torch.nn.functional as F
from common import options, record, splits
from torch.optim.lr_scheduler import OneCycleLR

from fmnist_utils import pick
from fmnist_utils.data import FashionMNIST, make_loader
from fmnist_utils.models import Classifier, WeightsUnavailable, build_model, make_head, summary
from fmnist_utils.scale.engines import default_device

TRAIN, VAL, EPOCHS = pick(smoke=(60, 40, 1), cpu=(2_500, 2_500, 8), full=(10_000, 5_000, 8))
SEEDS = pick(smoke=(0, 1), cpu=(0, 1, 2), full=(0, 1, 2))
SMALL, LARGE = pick(smoke=(32, 64), cpu=(64, 96), full=(64, 224))
RANDOM = {"weights": None, "trainable": "head"}
#: (network, image size, further arguments of ``build_model``).
NETWORKS = [("vgg16", SMALL, {}), ("vgg16", SMALL, RANDOM), ("resnet50", SMALL, {}), ("vgg16", LARGE, {})]
NAMES = {"vgg16": "VGG16", "resnet50": "ResNet50"}


@torch.no_grad()
def features_by_block(model: Classifier, data: FashionMNIST) -> dict[str, torch.Tensor]:
    """What each block puts out, averaged to at most 4×4: float32 [N, features], convolutions in bfloat16."""
    device = default_device()
    model.to(device, memory_format=torch.channels_last)
    parts = {name: [] for name, _ in model.backbone.named_children()}
    for images, _ in make_loader(data, 32):
        x = model.preprocess(images.to(device)).contiguous(memory_format=torch.channels_last)
        for name, block in model.backbone.named_children():
            with torch.autocast(device, torch.bfloat16):
                x = block(x)
            parts[name].append(F.adaptive_avg_pool2d(x.float(), min(4, x.shape[-1])).flatten(1).cpu())
    return {name: torch.cat(batches) for name, batches in parts.items()}


def probe(x: torch.Tensor, y: torch.Tensor, x_val: torch.Tensor, y_val: torch.Tensor, seed: int) -> float:
    """Validation accuracy of a head that learned on features ``x`` with labels ``y``."""
    torch.manual_seed(seed)
    head = make_head(x.shape[1], 0, 0, (256,), True, 0.5)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=0)
    schedule = OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * -(-len(y) // 128) + 1)
    head.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(128):
            loss = F.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (head.eval()(x_val).argmax(1) == y_val).float().mean().item()


def point(layer: str, x: torch.Tensor, x_val: torch.Tensor, data: dict[str, FashionMNIST], about: dict) -> dict:
    """A row of the file: the layer, and the accuracies of all seeds."""
    seeds = [probe(x, data["train"].labels, x_val, data["val"].labels, seed) for seed in SEEDS]
    row = about | {"layer": layer, "features": x.shape[1], "by_seed": seeds}
    row |= {"val_accuracy": sum(seeds) / len(seeds), "sd": torch.tensor(seeds).std().item()}
    print(row, flush=True)
    return row


def probed(name: str, size: int, changes: dict, data: dict[str, FashionMNIST]) -> list[dict]:
    """Rows of every block of a network; raises ``WeightsUnavailable``."""
    model = build_model(name, image_size=size, head="linear", **changes)
    mflops = summary(model).MFLOPs.cumsum()
    blocks, blocks_val = (features_by_block(model, data[split]) for split in ("train", "val"))
    about = {"network": NAMES[name], "weights": model.weights, "weights_origin": model.weights_origin}
    about["image_size"] = size
    return [point(k, blocks[k], blocks_val[k], data, about | {"mflops": mflops[k]}) for k in blocks]


def main() -> None:
    options("Which layer transfers?")
    data, left_out = splits(train=TRAIN, val=VAL), []
    pixels = [data[split].images.flatten(1).float() for split in ("train", "val")]
    about = {"network": "pixels", "weights": "none", "weights_origin": "none", "image_size": 28, "mflops": 0.0}
    points = [point("pixels", *pixels, data, about)]
    for network in NETWORKS:
        try:
            points += probed(*network, data)
        except WeightsUnavailable as error:
            left_out.append(f"{NAMES[network[0]]}: no ImageNet weights")
            print(error)
    blocks = [row for row in points if row["network"] == "VGG16" and row["image_size"] == SMALL]
    best, last = max(blocks[:5], key=lambda row: row["val_accuracy"]), blocks[4]
    setting = f"VGG16, {SMALL} px, frozen: a head on {best['layer']} against one on {last['layer']}, "
    fields = {"points": points, "train_images": TRAIN, "val_images": VAL, "epochs": EPOCHS, "seeds": list(SEEDS)}
    accuracies = (100 * row["val_accuracy"] for row in (best, last))
    setting += f"{TRAIN:,} training and {VAL:,} validation images"
    record("which_layer", setting, *accuracies, "% correct", **fields, left_out=left_out)


if __name__ == "__main__":
    main()

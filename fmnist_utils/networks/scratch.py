"""Networks trained from scratch: a small convolutional one and wide residual ones."""

from collections import OrderedDict

from torch import Tensor, nn


def small_cnn_backbone() -> nn.Sequential:
    def convolutions(*widths: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return layers

    # One thin convolution at full size: there the work is, and most of the time of a CPU.
    return nn.Sequential(
        OrderedDict(
            block1=nn.Sequential(*convolutions(1, 16), nn.MaxPool2d(2)),
            block2=nn.Sequential(*convolutions(16, 64, 64), nn.MaxPool2d(2)),
            block3=nn.Sequential(*convolutions(64, 128, 128)),
        )
    )


class WideBlock(nn.Module):
    """Pre-activation residual block of two 3×3 convolutions; a 1×1 convolution adapts the shortcut where sizes change.

    As in the authors' code, that shortcut starts behind the first normalisation and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        change = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        return change + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet_backbone(blocks: int, width: int) -> nn.Sequential:
    groups, inputs = OrderedDict(stem=nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False))), 16
    for number, outputs in enumerate((16 * width, 32 * width, 64 * width), 1):
        first = WideBlock(inputs, outputs, stride=1 if number == 1 else 2)
        groups[f"group{number}"] = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
        inputs = outputs
    groups["group3"].extend([nn.BatchNorm2d(inputs), nn.ReLU()])
    for layer in nn.Sequential(groups).modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(groups)

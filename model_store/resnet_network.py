"""ResNet-18 (He et al., https://arxiv.org/abs/1512.03385), for pictures of any size."""

import torch
from torch import nn
from torch.nn import functional

_WIDTHS = (64, 128, 256, 512)


class ResNet18(nn.Module):
    """Probabilities, float32 [n, classes], from pictures uint8 [n, 3, H, W]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # The batch norm behind it has a shift of its own, so no convolution here has one.
        self.stem = nn.Conv2d(3, _WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(_WIDTHS[0])
        blocks: list[nn.Module] = []
        before = _WIDTHS[0]
        for stage, width in enumerate(_WIDTHS):
            blocks += [_Block(before, width, stride=2 if stage else 1), _Block(width, width, stride=1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(before, classes)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities, float32 [n, classes]: what training needs."""
        stem = torch.relu(self.stem_norm(self.stem(images.float() / 255)))
        features = self.blocks(functional.max_pool2d(stem, 3, stride=2, padding=1))
        logits: torch.Tensor = self.last(features.mean(dim=(2, 3)))
        return logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(images), dim=1)


class _Block(nn.Module):
    """Two convolutions and a shortcut around them, which has a convolution of its own where the shape changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first_norm(self.first(images)))
        return torch.relu(self.second_norm(self.second(first)) + self.shortcut(images))

"""The original report's CNN: 1,276,234 parameters, 80.13% after its 20 epochs."""

from __future__ import annotations

from torch import Tensor, nn

from cifar_lab.errors import InputError


class CNN(nn.Module):
    """Three 3x3 convolutions, each with 2x2 max-pooling and ReLU, then three linear layers.

    Images (B, 3, image_size, image_size) -> logits (B, num_classes). With ``width=32`` and
    ``dropout=0.5`` it is the original report's network: convolutions 3→32→64→128, flatten 2048,
    dropout, linear 512, ReLU, dropout, linear 256, ReLU, linear 10.

    Raises:
        InputError: a width below 1, a dropout outside [0, 1), images that can't be halved thrice.
    """

    def __init__(
        self, *, width: int, dropout: float, num_classes: int = 10, image_size: int = 32
    ) -> None:
        super().__init__()
        if width < 1:
            raise InputError(
                f"width={width}: must be at least 1 (the original report's CNN has 32)"
            )
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout}: must lie in [0, 1) (the original report has 0.5)")
        if image_size < 8:
            raise InputError(f"image_size={image_size}: must be at least 8: it is halved thrice")
        side = image_size // 8
        # ReLU after the pooling: both keep the order of values, so that the outputs and gradients
        # are those of the original report's order to the bit, at a quarter of ReLU's work
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * width * side**2, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, image_size, image_size)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

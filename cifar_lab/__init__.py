"""A Hydra + PyTorch Lightning laboratory for CIFAR-10."""

__version__ = "0.1.0"

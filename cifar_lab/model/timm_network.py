"""Any network of timm (github.com/huggingface/pytorch-image-models), untrained."""

from __future__ import annotations

from typing import Any

from torch import nn

from cifar_lab.errors import InputError


def timm_network(
    *,
    name: str,
    small_stem: bool,
    options: dict[str, Any] | None = None,
    num_classes: int = 10,
    image_size: int = 32,
) -> nn.Module:
    """A network of timm with one logit per class and its first weights; nothing is downloaded.

    Images (B, 3, H, W) -> logits (B, num_classes).

    Args:
        name: as ``timm.list_models()`` has it, e.g. resnet18, convnext_atto, efficientnet_b0.
        small_stem: for small images: the first convolution gets stride 1 (and a kernel of 3x3
            where it was larger), and a max-pooling layer right after it is left out, as in ResNets
            for CIFAR (arXiv:1512.03385, 4.2). Without it most networks see 32x32 as one pixel.
        options: further arguments of ``timm.create_model``, e.g. ``{drop_path_rate: 0.1}``, or
            ``{patch_size: 4}`` of a vision transformer.
        num_classes: of the dataset.
        image_size: of the images; for networks that are made for one size, as transformers are.

    Raises:
        InputError: timm isn't there, has no such network, or its stem can't be adapted.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError("name: networks of timm need it: pip install 'cifar-lab[timm]'") from error
    if not timm.is_model(name):
        from cifar_lab.config.messages import suggestion

        known = timm.list_models()
        raise InputError(f"name={name}: timm has no such network{suggestion(name, known)}")
    architecture, dot, weights = name.partition(".")
    if dot:
        raise InputError(
            f"name={name}: {weights} names trained weights, and a network of timm begins "
            f"untrained; give name={architecture}"
        )
    given = options or {}
    # of files and addresses none: a record names options too, and init_from says what it reads
    files = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    for key in ("num_classes", "img_size", "pretrained", *files):
        if key in given:
            raise InputError(f"options.{key}: is the data's, or none of this; leave it out")
    fixed = (timm.get_pretrained_cfg(name) or _Unknown()).fixed_input_size
    size: dict[str, Any] = {"img_size": image_size} if fixed else {}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, **size, **given
        )
    except Exception as error:
        raise InputError(f"name={name}: {str(error).splitlines()[0]}") from error
    if small_stem:
        _adapt_stem(network, name, fixed)
    return network


class _Unknown:
    fixed_input_size = False


def _adapt_stem(network: nn.Module, name: str, fixed: bool) -> None:
    config = network.pretrained_cfg
    first = config.get("first_conv") if isinstance(config, dict) else None
    convolution = network.get_submodule(first) if isinstance(first, str) else None
    if fixed or not isinstance(convolution, nn.Conv2d):
        raise InputError(
            f"small_stem=true: {name} has no first convolution to adapt; set small_stem=false (of "
            "a vision transformer +model.options.patch_size=4 makes smaller patches)"
        )
    if max(convolution.stride) == 1:
        return  # as VGG's: nothing to adapt
    pooling = _pooling_after(network, str(first))
    if max(convolution.kernel_size) > 3:
        parent, _, attribute = str(first).rpartition(".")
        smaller = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            3,
            padding=1,
            bias=convolution.bias is not None,
        )
        nn.init.kaiming_normal_(smaller.weight, mode="fan_out", nonlinearity="relu")
        if smaller.bias is not None:
            nn.init.zeros_(smaller.bias)
        setattr(network.get_submodule(parent), attribute, smaller)
    else:
        convolution.stride = (1, 1)
    if pooling is not None:
        parent, _, attribute = pooling.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())


def _pooling_after(network: nn.Module, first: str) -> str | None:
    """The name of the max-pooling that belongs to the stem, if there is one.

    ResNets call it so; elsewhere it comes before the second convolution.
    """
    if isinstance(getattr(network, "maxpool", None), nn.Module):
        return "maxpool"
    names: list[str] = [name for name, _ in network.named_modules()]
    for name in names[names.index(first) + 1 :]:
        module = network.get_submodule(name)
        if isinstance(module, nn.MaxPool2d):
            return name
        if isinstance(module, nn.Conv2d):
            return None
    return None

"""What the fork server imports once, so that no job pays for it.

The one module with effects at import: that is how ``multiprocessing`` preloads. It starts no thread
and doesn't touch CUDA: a fork must inherit neither.
"""

from __future__ import annotations

import atexit
import gc
import os
import pkgutil
from importlib import import_module

# What jobs import late, found as the difference of sys.modules before and after one.
LIBRARIES = (
    "filelock",
    "hydra._internal.callbacks",
    "hydra._internal.logging_config",
    "hydra.core.utils",
    "lightning.pytorch.callbacks",
    "matplotlib.backends.backend_agg",
    "pydantic.type_adapter",
    "tensorboard.plugins.hparams.metadata",
    "torch.utils.serialization",
    "torch.utils.tensorboard",
    "torchmetrics",
)
ROOMS = ("data", "model", "training")


def _load() -> None:
    for name in (*LIBRARIES, "cifar_lab.sweep.worker"):
        import_module(name)
    for room in ROOMS:
        package = import_module(f"cifar_lab.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    from filelock import FileLock  # noqa: F401  # loads the parts that the package loads late


# a group of its own: Ctrl-C and a SIGTERM to the sweep's group are the supervisor's to pass on
os.setpgid(0, 0)
_load()
# what was imported is never garbage: a collection in a fork would copy every page of it
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # else extension modules report leaks when the server ends

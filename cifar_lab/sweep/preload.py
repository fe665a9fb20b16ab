"""What the fork server imports and opens once, so that no job pays for it.

The one module with effects at import: that is how ``multiprocessing`` preloads. It leaves no thread
behind and doesn't touch CUDA: a fork must inherit neither.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import pkgutil
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from cifar_lab.records.environment import git_state
from cifar_lab.sweep import process

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
    "torch.utils.flop_counter",
    "torch.utils.serialization",
    "torch.utils.tensorboard",
    "torchmetrics",
)
PACKAGES = ("data", "model", "training")


def _load() -> None:
    for name in (*LIBRARIES, "cifar_lab.sweep.worker"):
        import_module(name)
    for name in PACKAGES:
        package = import_module(f"cifar_lab.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    from filelock import FileLock  # noqa: F401  # loads the parts that the package loads late


def _told(path: str) -> dict[str, object] | None:
    with open(path, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # granted when all is said, and when the supervisor dies
        told: dict[str, object] | None = json.load(file)
    return told


def _open_data(node: dict[str, object]) -> None:
    """Opens the dataset that the sweep's jobs share; their memory of it is this process's.

    Nothing is fetched here, and what goes wrong is left for the check of the points to say.
    """
    from cifar_lab.data.augment import Pipeline
    from cifar_lab.data.datamodule import DataModule
    from cifar_lab.run.build import log_to_stderr

    target = pkgutil.resolve_name(str(node.pop("_target_")))
    # what decides nothing about the source, and may not fit as it stands here
    neutral = {"loader": "device", "transform": None, "val_size": 0, "drop_last": False}
    data = target(**{**node, **neutral}, augment=Pipeline(transforms={}), seed=0)
    source = data.source
    data.offline = True
    with log_to_stderr():
        DataModule.inherited[source] = data.open()
    DataModule.inherited[source].numbers  # noqa: B018  # kept in it: no job counts copies anew


def _end() -> None:
    """Ends the server, and not what it forked, without taking apart what it has imported."""
    if os.getpid() == process.server_pid:
        os._exit(0)


# at once, also amid imports: it holds the sweep's output open, and `... | tail` waits for its end
process.die_with_parent()
# a group of its own: Ctrl-C and a SIGTERM to the sweep's group are the supervisor's to pass on
os.setpgid(0, 0)
process.server_pid = os.getpid()
gc.disable()  # nearly nothing that imports make is garbage, and looking for it takes half a second
_load()
git_state(Path(__file__).parents[1])  # of the code that all jobs will run, whatever is edited now
if data_file := os.environ.pop(process.DATA_VARIABLE, None):
    with suppress(Exception):
        if (data_node := _told(data_file)) is not None:
            _open_data(data_node)
# what was imported is never garbage: a collection in a fork would copy every page of it
gc.freeze()
gc.enable()
atexit.register(_end)

"""What libraries say goes to the log, and what nobody can act on goes nowhere.

Read in lightning 2.6.6, torch 2.15, tensorboard 2.21, matplotlib 3.11. Lightning#n is
https://github.com/Lightning-AI/pytorch-lightning/issues/n
"""

from __future__ import annotations

import logging
import warnings

_LIGHTNING = ("lightning", "lightning.pytorch", "lightning.fabric")
# rank_zero_info and the adverts come from these (whichever was imported last logs)
_LIGHTNING_TALK = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


class _NoAdverts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "💡 Tip" not in record.getMessage()


def route_library_logging() -> None:
    """Gives Lightning's messages to the root logger's handlers, and drops its adverts.

    Lightning writes "GPU available" and the like to standard error through handlers of its own;
    here they become ordinary INFO records, which the run's handlers put into train.log. Call it
    after importing lightning and before making a Trainer; calling it again changes nothing.
    """
    import lightning.pytorch  # noqa: F401  (adds its handlers when imported, so not after this)

    for name in _LIGHTNING:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
        logger.propagate = True
    for name in _LIGHTNING_TALK:
        logger = logging.getLogger(name)
        if not any(isinstance(old, _NoAdverts) for old in logger.filters):
            # litlogger and litmodels, at every start: Lightning#21430
            logger.addFilter(_NoAdverts())
    # "building the font cache; this may take a moment", once per machine
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for message, category in _IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category)


# Start of the message: nothing that the person at the keyboard could change or has not chosen.
_IGNORED = (
    # val_size=0, as the original report trains: nothing is held out on purpose
    (r"You defined a `validation_step` but have no `val_dataloader`", UserWarning),
    (r"Total length of `list` across ranks is zero", UserWarning),
    # we log once per epoch, whatever the interval: Lightning#4649
    (r"The number of training batches \(\d+\) is smaller than the logging interval", UserWarning),
    # our metrics are summed over the ranks before they are logged (Classifier._means)
    (r"It is recommended to use `self\.log\('[^']+', \.\.\., sync_dist=True\)`", UserWarning),
    # `freeze` keeps BatchNorm layers there, and a network of one's own does it on purpose
    (r"Found \d+ module\(s\) in eval mode at the start of training", UserWarning),
    # trainer.accelerator=cpu was asked for
    (r"GPU available but not used", UserWarning),
    # on a cluster's login node; who started us is our own business (cifar_lab.records.processes)
    (r"The `srun` command is available on your system but is not used", UserWarning),
    # 16-mixed: the scaler skips its first steps until the scale fits: Lightning#5558
    (r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`", UserWarning),
    # Lightning's own use of torch's pytree, every step: Lightning#21326. Last, which makes it the
    # first filter that a warning is held against.
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
)

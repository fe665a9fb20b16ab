from __future__ import annotations

import logging

from cifar_lab.training.library_logging import quiet_libraries

FIT_AND_TEST = """
import sys, logging
from conftest import Toy, ToyData
from lightning.pytorch import Trainer
from cifar_lab.training.loggers.metrics_csv import MetricsCsv
from cifar_lab.training.callbacks.test_figures import Pictures
from cifar_lab.training.callbacks.progress import ProgressBar
from cifar_lab.training.library_logging import quiet_libraries
from cifar_lab.training.loggers.tensorboard import TensorBoard

folder = sys.argv[1]
logging.basicConfig(filename=folder + "/train.log", level=logging.INFO)
quiet_libraries()
for val in (2, 0):
    trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=folder,
        logger=[TensorBoard(save_dir=folder), MetricsCsv(save_dir=folder)],
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[ProgressBar(), Pictures()])
    toy, data = Toy(), ToyData(train=4, val=val, test=3)
    trainer.fit(toy, datamodule=data)
    trainer.test(toy, datamodule=data, verbose=False)
print("ours")
"""


def test_a_fit_and_a_test_print_nothing_but_ours(tmp_path, run_python):
    done = run_python(FIT_AND_TEST, str(tmp_path))
    assert done.stderr == ""
    assert done.stdout == "ours\n"
    log = (tmp_path / "train.log").read_text()
    assert "GPU available" in log
    assert "`Trainer.fit` stopped" in log
    assert "epoch 2/2: " in log
    assert "Tip" not in log


def test_calling_it_twice_adds_no_second_filter():
    quiet_libraries()
    quiet_libraries()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        assert len(logging.getLogger(name).filters) == 1


def test_a_warning_that_one_can_act_on_still_appears(recwarn):
    import warnings

    quiet_libraries()
    warnings.warn("data.root: the disk is almost full", UserWarning, stacklevel=1)
    assert len(recwarn) == 1

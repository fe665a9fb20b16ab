"""Which keys there are: with what was chosen, with other options, and by other names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lab.config.overrides import searchpath_override
from cifar_lab.config.schema import CONFIG_NAME, conf_dir
from cifar_lab.records.digest import flatten

# What other programs call it. On the right a key, a group, or a choice of one.
_OTHER_NAMES = {
    "trainer.max_epochs": "epochs num_epochs n_epochs nepochs train_epochs total_epochs epoch",
    "trainer.max_steps": "steps num_steps n_steps total_steps iterations iters max_iters",
    "trainer.devices": "gpus num_gpus n_gpus ngpus gpu gpu_id gpu_ids num_devices world_size",
    "trainer.accelerator": "device cuda use_cuda no_cuda cpu mps",
    "trainer.precision": "amp fp16 bf16 half use_amp mixed_precision dtype",
    "trainer.gradient_clip_val": (
        "clip clip_grad grad_clip gradient_clip max_grad_norm grad_clip_norm clip_grad_norm"
    ),
    "trainer.accumulate_grad_batches": (
        "accumulate accum accum_steps grad_accum accumulation_steps gradient_accumulation "
        "gradient_accumulation_steps"
    ),
    "data.batch_size": "bs batch batchsize train_batch_size batch_size_train mini_batch_size",
    "data.workers": "workers num_workers n_workers nworkers dataloader_workers",
    "data.val_size": "val_split validation_split val_ratio valid_size validation_size",
    "data.root": "data_dir datadir data_root data_path dataset_path dataset_dir root",
    "optimizer.lr": "learning_rate learningrate base_lr init_lr initial_lr max_lr eta lr0",
    "optimizer.weight_decay": "wd decay weightdecay l2 l2_reg",
    "optimizer.momentum": "mom beta",
    "loss.label_smoothing": "smoothing ls",
    "scheduler.warmup_fraction": "warmup warmup_steps warmup_epochs warmup_ratio",
    "callbacks=early_stopping": "early_stopping earlystopping early_stop patience",
    "callbacks=ema": "ema use_ema ema_decay",
    "init_from": "pretrained weights checkpoint ckpt ckpt_path load_from finetune from_pretrained",
    "hydra.run.dir": (
        "output_dir outdir out output save_dir save_path log_dir logdir exp_dir run_dir run_name "
        "exp_name experiment_name work_dir workdir"
    ),
    "resume": "resume_from resume_from_checkpoint auto_resume restart",
    "seed": "random_seed manual_seed rng_seed random_state",
    "threads": "num_threads n_threads cpu_threads",
    "model": "arch architecture net network backbone model_name",
    "data": "dataset dataset_name",
    "optimizer": "optim opt",
    "scheduler": "sched lr_scheduler lr_schedule schedule",
    "augment": "aug augmentation augmentations transform transforms data_augmentation",
    "loss": "criterion loss_fn",
    "logger": "wandb mlflow use_wandb tensorboard tb",
    "tta": "test_time_augmentation",
    "debug=fast": "fast_dev_run dry_run smoke_test",
}
_KEY_OF = {word: key for key, words in _OTHER_NAMES.items() for word in words.split()}
_CLOSE, _CLOSER = 0.6, 0.75


def alias(word: str) -> str | None:
    """What the last part of a key is called here, as a key, a group or a choice of one."""
    return _KEY_OF.get(word.rpartition(".")[2].lower().replace("-", "_"))


def said_of_unknown(key: str, overrides: Sequence[str]) -> str:
    """What to say after ``KEY: unknown key``: the option that has it, or the key that is meant."""
    known, choices, targets = _known(key, overrides)
    group, _, rest = key.partition(".")
    chosen = choices.get(group)
    by_option = _keys_by_option(group) if rest else {}
    having = [name for name, keys in by_option.items() if key in keys and name != chosen]
    if having and key not in known:
        verb = "has" if len(having) == 1 else "have"
        return f" with {group}={chosen} ({group}={', '.join(having)} {verb} it)"
    if key in known:  # a dictionary is merged into the node that is there
        return _new_in_node(key, known, overrides)
    word = _meant(key, known) or _meant(key, [k for keys in by_option.values() for k in keys])
    if word and not f"{key}.".startswith(f"{word}."):
        return f" (did you mean {word}?)"
    node = key.rpartition(".")[0]
    takes = node in targets and node != "trainer"  # which has all of Lightning's
    return f"; +{key}=... adds it where its _target_ takes it" if takes else ""


def _new_in_node(path: str, known: Sequence[str], overrides: Sequence[str]) -> str:
    """How the keys are given that a dictionary adds to a node."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = override.value()
        if override.key_or_group == path and isinstance(value, dict):
            keys = [f"{path}.{key}" for key in value if key != "_target_"]
            new = [f"+{key}=..." for key in keys if key not in known]
            if new:
                return f" in its dictionary, which adds none to the node; give {' '.join(new)}"
    return ""


def meant_by(word: str) -> str | None:
    """The key, group or choice that a word stands for that is no override; None: nobody knows."""
    from cifar_lab.config.compose import register

    register()
    known, _, _ = _known(word, ())
    return word if word in known else _meant(word, known)


def _meant(key: str, known: Sequence[str]) -> str | None:
    group, _, last = key.rpartition(".")
    if (here := alias(key)) and known:
        return here
    named = [k for k in known if k.rpartition(".")[2] == last and k != key]
    if not group and named:
        return named[0]  # a bare `lr` means `optimizer.lr`
    for near in _close(last, [k for k in known if k.rpartition(".")[0] == group], cutoff=_CLOSE):
        return near
    for near in difflib.get_close_matches(key, known, n=1, cutoff=_CLOSER):
        return near
    return next(iter([] if group else _close(last, known, cutoff=_CLOSER)), None)


def _close(word: str, keys: Sequence[str], *, cutoff: float) -> list[str]:
    """The key whose last part is nearest to a word."""
    by_last = {k.rpartition(".")[2]: k for k in keys}
    return [by_last[near] for near in difflib.get_close_matches(word, by_last, 1, cutoff)]


def _known(key: str, overrides: Sequence[str]) -> tuple[list[str], dict[str, Any], set[str]]:
    """With what the person chose, as far as it composes: keys, options, nodes with a target."""
    chosen = [o for o in overrides if _chooses(o) and o.lstrip("+").partition("=")[0] != key]
    own = searchpath_override(overrides)
    for choice in ([*chosen, *own], own, []):
        GlobalHydra.instance().clear()
        initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="cifar_lab")
        try:
            cfg = hydra_compose(CONFIG_NAME, overrides=choice, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError):
            continue
        choices = dict(cfg.hydra.runtime.choices)
        container = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(container, dict)
        del container["hydra"]
        nodes = {str(name): node for name, node in container.items()}
        targets = {
            k.removesuffix("._target_") for k, _ in flatten(nodes) if k.endswith("._target_")
        }
        keys = _of_a_person(nodes)
        groups = {k[: i.start()] for k in keys for i in re.finditer(r"\.", k)}
        return sorted({*keys, *groups, *(g for g in choices if "/" not in g)}), choices, targets
    return [], {}, set()


def _chooses(override: str) -> bool:
    key, equals, _ = override.partition("=")
    return bool(equals) and ("." not in key or key == "hydra.searchpath")


def _of_a_person(container: dict[str, Any]) -> list[str]:
    return [k for k, _ in flatten(container) if not k.rpartition(".")[2].startswith("_")]


def _keys_by_option(group: str) -> dict[str, list[str]]:
    """The keys that each option of a group has, in our ``conf/`` and in the person's."""
    folders = [folder / group for folder in (conf_dir(), Path.cwd() / "conf")]
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    found = {}
    for name in names:
        node: dict[str, Any] = {}
        for part in _parts(folders, name, depth=0):
            node |= part
        found[name] = _of_a_person({group: node})
    return found


def _parts(folders: Sequence[Path], name: str, *, depth: int) -> Iterator[dict[str, Any]]:
    """What an option's file holds, after the files of its group that it begins with."""
    for folder in folders:
        try:
            read = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # said where it is chosen
            continue
        if isinstance(read, dict):
            defaults = read.pop("defaults", None)
            for other in defaults if isinstance(defaults, list) else []:
                if isinstance(other, str) and depth < 5:
                    yield from _parts(folders, other, depth=depth + 1)
            yield {str(key): value for key, value in read.items()}
        return

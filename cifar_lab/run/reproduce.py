"""A finished run, run again from what its folder says, and held against it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.overrides import normalized
from cifar_lab.config.schema import Root
from cifar_lab.config.targets import check_targets_of_record
from cifar_lab.errors import InputError
from cifar_lab.records import checkpoint_file as files
from cifar_lab.records.checkpoint_file import DamagedError
from cifar_lab.records.digest import changes_no_result, config_digest, deciding
from cifar_lab.records.environment import git_state, package_versions
from cifar_lab.records.record import FILE_NAME, Git, RunRecord, Start, made_otherwise
from cifar_lab.run.build import build, device_name
from cifar_lab.run.run import Request, run

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PACKAGE = Path(__file__).parents[1]
# Of a run's own clock.
_CLOCK = ("images_per_s",)
# Finished runs that differ by the seed alone, so that a spread can be told.
_LEAST_SEEDS = 3
_CONFIDENCE = 0.95
_NAMED = 3


@dataclass
class Reproduction:
    """What came of running a run again.

    Attributes:
        folder: of the new run.
        status: its exit status; the rest is empty where that isn't 0.
        otherwise: what it was made with that is different here; "" where nothing is.
        same: what agrees to the bit, a line each.
        differing: what does not, a line each.
        verdict: in one line.
        reproduced: to the bit, or where something is different here within the spread of seeds.
    """

    folder: Path
    status: int
    otherwise: str = ""
    same: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    verdict: str = ""
    reproduced: bool = False


@dataclass(frozen=True)
class Plan:
    """A run that is to be run again, built once to see that it can be.

    Attributes:
        original: its folder.
        record: of it.
        asked: the new run.
        otherwise: what the run was made with that is different here; "" where nothing is.
        exact: it must come to the same bits.
    """

    original: Path
    record: RunRecord
    asked: Request
    otherwise: str
    exact: bool


def plan(
    folder: Path, overrides: Sequence[str] = (), *, out: Path | None = None, trust: Sequence[str]
) -> Plan:
    """Builds the run of a folder again, without running it.

    Nothing is fetched: the images must be on this machine, wherever they are.

    Args:
        folder: of a finished run; it may come from anybody.
        overrides: of keys that change no result (``data.root=…``), and ``init_from``.
        out: the new folder; None: beside the old one.
        trust: modules of the person's own that its parts may come from.

    Raises:
        InputError: it can't be built as it was, or not on the same images.
    """
    started = time.perf_counter()
    record = _finished(folder)
    _check_overrides(overrides)
    assert record.config is not None
    check_targets_of_record(record.config, also=trust)
    out = _beside(folder) if out is None else out
    if (out / FILE_NAME).exists():
        raise InputError(f"--out {out}: holds a run; choose another folder")
    cfg = _config(record, overrides)
    said = _overrides(record, overrides)
    asked = Request(cfg, run_dir=out.absolute(), overrides=said, started=started)
    _check_same_run(record, asked.config)
    if record.threads:  # of a run that left the number to its machine, too
        import torch

        torch.set_num_threads(record.threads)
    parts = build(cfg, asked.config, asked.run_dir)
    found = parts.data.dataset
    if not record.data.holds(found.digest):
        raise InputError(
            f"{folder}: these images ({found.digest[:12]}) are not those of the run "
            f"({record.data.digest[:12]}); give those with data.root=…"
        )
    if parts.trainer.world_size > 1:
        _check_command(said, asked.config)
    here = Start(
        git=Git(**git_state(_PACKAGE)),
        packages=package_versions(),
        device=device_name(parts.trainer),
        threads=_threads(),
    )
    otherwise = made_otherwise(record.all_starts, here)
    on_cpu = parts.trainer.strategy.root_device.type == "cpu"
    return Plan(folder, record, asked, otherwise, exact=on_cpu and not otherwise)


def reproduce(planned: Plan) -> Reproduction:
    """Runs what was planned, and compares: weights, metrics, predictions.

    It is reproduced where all agree to the bit. On another device, with other packages or other
    code, and on a GPU, it is too where the test accuracy is as near as two seeds are to each other
    (a 95% interval from the finished runs beside it that differ by the seed alone, 3 or more).
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import env_override

    asked = planned.asked
    HydraConfig.instance().set_config(asked.cfg)
    with env_override(asked.cfg.hydra.job.env_set):
        status = run(asked)
    done = Reproduction(asked.run_dir, status, planned.otherwise)
    if status == 0:
        _compare(planned, done)
    return done


# --- the same configuration -----------------------------------------------------------------------


def _finished(folder: Path) -> RunRecord:
    if not (folder / FILE_NAME).is_file():
        raise InputError(f"{folder}: holds no {FILE_NAME}; give the folder of a finished run")
    try:
        record = RunRecord.read(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: its {FILE_NAME}: {error}") from error
    if record.status != "finished":
        raise InputError(
            f"{folder}: this run is {record.status}, and there is no result to compare with"
        )
    if not record.config or not record.data.digest:
        raise InputError(f"{folder}: its {FILE_NAME} has no configuration or no images")
    return record


def _beside(folder: Path) -> Path:
    numbers = iter(range(1, 10**6))
    free = (folder.with_name(f"{folder.name}-again-{number}") for number in numbers)
    return next(path for path in free if not path.exists())


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in normalized(overrides):
        key = override.lstrip("+~").partition("=")[0]
        if not changes_no_result(key) and key != "init_from":
            raise InputError(
                f"{override}: would make it another run; only keys that change no result may be "
                "given, e.g. data.root, and init_from where those weights lie elsewhere now"
            )


def _config(record: RunRecord, overrides: Sequence[str]) -> DictConfig:
    """What the record says, in the place of what would be composed here."""
    from omegaconf import OmegaConf, open_dict

    cfg = compose([])
    values = {k: v for k, v in (record.config or {}).items() if not changes_no_result(k)}
    # these change nothing, and yet belong to the run
    values |= {k: v for k, v in (record.config or {}).items() if k in ("monitors", "logger")}
    if unknown := sorted(set(values) - set(Root.__dataclass_fields__)):
        raise InputError(f"{unknown[0]}: is a key of another version of cifar_lab")
    if isinstance(source := values.get("init_from"), dict):
        values["init_from"] = source.get("torchvision") or source.get("path")
    with open_dict(cfg):
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        if "offline" in cfg.data:  # a record may name any address, and any place for a cache
            cfg.data.offline, cfg.data.cache = True, None
        cfg.resume = "never"
        if cfg.data.get("root") is not None and not Path(str(cfg.data.root)).exists():
            cfg.data.root = None  # of another machine: they may be found where they usually lie
        given = OmegaConf.from_dotlist([o.lstrip("+") for o in normalized(overrides)])
        for key in _leaves(given):
            OmegaConf.update(cfg, key, OmegaConf.select(given, key), force_add=True)
    return cfg


def _leaves(given: Any) -> Iterator[str]:
    from omegaconf import OmegaConf

    from cifar_lab.records.digest import flatten

    for key, _ in flatten(OmegaConf.to_container(given)):  # type: ignore[arg-type]  # a mapping
        yield key


def _overrides(record: RunRecord, more: Sequence[str]) -> list[str]:
    """What the new run's record says was typed: the old one's, with what is given now."""
    given = {o.lstrip("+~").partition("=")[0] for o in more}
    dropped = {*given, "hydra.run.dir", "resume"}
    kept = [o for o in record.overrides if o.lstrip("+~").partition("=")[0] not in dropped]
    return [*kept, *more]


def _check_same_run(record: RunRecord, config: dict[str, Any]) -> None:
    then, now = deciding(record.config or {}), deciding(config)
    keys = [k for k in sorted({*then, *now}) if then.get(k) != now.get(k)]
    if keys:
        first = ", ".join(f"{k} ({then.get(k)} then, {now.get(k)} here)" for k in keys[:_NAMED])
        raise InputError(f"can't be built as it was; these differ: {first}")


def _check_command(overrides: Sequence[str], config: dict[str, Any]) -> None:
    # Lightning starts the other processes by a command line, and they compose what it says
    if config_digest(run_config(compose(overrides))) != config_digest(config):
        raise InputError(
            "this run had several processes, which are started by its command, and here that "
            f"means another configuration: {' '.join(overrides)}"
        )


def _threads() -> int:
    import torch

    return torch.get_num_threads()


# --- the same result ------------------------------------------------------------------------------


def _compare(planned: Plan, done: Reproduction) -> None:
    old, new = planned.original, done.folder
    record, again = planned.record, RunRecord.read(new)
    for compare in (
        partial(_weights, old, new, record, again),
        partial(_metrics, record, again),
        partial(_predictions, old, new),
    ):
        same, line = compare()
        (done.same if same else done.differing).append(line)
    if not done.differing:
        done.verdict, done.reproduced = "reproduced to the bit", True
    elif planned.exact:
        done.verdict = (
            "not reproduced: nothing that it was made with is different here, and yet the bits are"
        )
    else:
        done.reproduced, done.verdict = _within_spread(old, record, again)


def _weights(old: Path, new: Path, record: RunRecord, again: RunRecord) -> tuple[bool, str]:
    import torch

    try:
        before, now = (_tested(f, r) for f, r in ((old, record), (new, again)))
    except DamagedError as error:
        # a run without checkpoints has none here either; one that lost them can't be compared
        lost = (old / files.FOLDER).exists() or (new / files.FOLDER).exists()
        return not lost, f"weights      not compared ({error})"
    names = [*before, *(name for name in now if name not in before)]
    differing = [
        name
        for name in names
        if name not in before or name not in now or not torch.equal(before[name], now[name])
    ]
    if not differing:
        return True, f"weights      the same to the bit ({len(names)} tensors)"
    shared = [name for name in differing if name in before and name in now]
    apart = [
        float((before[n].double() - now[n].double()).abs().max())
        for n in shared
        if before[n].shape == now[n].shape and before[n].numel()
    ]
    by = f", by up to {max(apart):.3g}" if apart else ""
    first = ", ".join(differing[:_NAMED])
    return False, f"weights      {len(differing)} of {len(names)} tensors differ{by}: {first}"


def _tested(folder: Path, record: RunRecord) -> dict[str, Any]:
    if record.tested == "best" and record.best_step is not None:
        return dict(files.best_checkpoint(folder, record.best_step)[1]["state_dict"])
    return dict(files.load(folder / files.FOLDER / files.LAST)["state_dict"])


def _metrics(record: RunRecord, again: RunRecord) -> tuple[bool, str]:
    before, now = ({k: v for k, v in r.metrics.items() if k not in _CLOCK} for r in (record, again))
    names = [*before, *(name for name in now if name not in before)]
    differing = [n for n in names if before.get(n) != now.get(n) or (n in before) != (n in now)]
    if not differing:
        return True, f"metrics      the same to the bit ({len(names)})"
    values = ", ".join(f"{n} {before.get(n)} then, {now.get(n)} here" for n in differing[:_NAMED])
    return False, f"metrics      {len(differing)} of {len(names)} differ: {values}"


def _predictions(old: Path, new: Path) -> tuple[bool, str]:
    name = "predictions.npz"
    try:
        # an array of objects would be unpickled
        with np.load(old / name, allow_pickle=False) as a, np.load(new / name) as b:
            before, now = a["logits"], b["logits"]
            same_labels = np.array_equal(a["labels"], b["labels"])
    except (OSError, ValueError, KeyError) as error:
        return False, f"predictions  not compared: {old / name} can't be read ({error})"
    if before.shape != now.shape or not same_labels:
        return False, "predictions  of other images"
    if np.array_equal(before, now):
        return True, f"predictions  the same to the bit ({len(now)} images)"
    other = int((before.argmax(1) != now.argmax(1)).sum())
    by = float(np.abs(before.astype(np.float64) - now).max())
    return False, f"predictions  {other} of {len(now)} images get another class; logits by {by:.3g}"


def _within_spread(folder: Path, record: RunRecord, again: RunRecord) -> tuple[bool, str]:
    """Whether two seeds would differ as much; never where no spread is recorded."""
    from scipy import stats

    before, now = record.metrics.get("test/acc"), again.metrics.get("test/acc")
    if before is None or now is None:
        return False, "not reproduced to the bit, and there is no test accuracy to compare"
    accuracies = _of_seeds(folder, record)
    apart = f"test accuracy {now:.4f} here, {before:.4f} then"
    if (count := len(accuracies)) < _LEAST_SEEDS:
        return False, (
            f"not reproduced to the bit ({apart}), and {count} recorded seeds tell no spread: it "
            f"takes {_LEAST_SEEDS} finished runs beside it that differ by the seed alone"
        )
    # of the difference of two runs, each with the deviation that the seeds show
    quantile = float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))
    allowed = quantile * math.sqrt(2) * statistics.stdev(accuracies.values())
    within = abs(now - before) <= allowed
    where = f"the spread of {count} seeds ({allowed:.4f} for two runs, 95%)"
    word = "reproduced within" if within else "not reproduced: outside"
    return within, f"{word} {where}: {apart}"


def _of_seeds(folder: Path, record: RunRecord) -> dict[int, float]:
    """Test accuracies by seed: of the run, and of those beside it that are it but for the seed."""
    mine = {k: v for k, v in deciding(record.config or {}).items() if k != "seed"}
    found: dict[int, float] = {}
    for path in sorted(folder.absolute().parent.glob(f"*/{FILE_NAME}")):
        try:
            other = RunRecord.read(path.parent)
        except (OSError, ValueError):
            continue
        accuracy, config = other.metrics.get("test/acc"), other.config
        if other.status != "finished" or accuracy is None or not config or other.seed is None:
            continue
        settings = {k: v for k, v in deciding(config).items() if k != "seed"}
        if settings == mine and other.data.digest == record.data.digest:
            found.setdefault(other.seed, accuracy)
    if record.seed is not None and record.metrics.get("test/acc") is not None:
        found[record.seed] = float(record.metrics["test/acc"] or 0)
    return found

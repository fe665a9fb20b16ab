"""A finished run, run again from what its folder says, and held against it."""

from __future__ import annotations

import copy
import math
import shlex
import statistics
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_lab.config.compose import compose, run_config
from cifar_lab.config.messages import first_line
from cifar_lab.config.overrides import assignment, hydra_quoted
from cifar_lab.config.schema import Root
from cifar_lab.config.targets import check_targets_of_record, target_nodes
from cifar_lab.config.validate import MOST_THREADS
from cifar_lab.errors import InputError
from cifar_lab.records.checkpoint_file import DamagedError
from cifar_lab.records.digest import MOVED, changes_no_result, config_digest, deciding, key_of
from cifar_lab.records.environment import git_state, package_versions
from cifar_lab.records.files import expanded
from cifar_lab.records.record import FILE_NAME, Git, RunRecord, Start, made_otherwise, record_of
from cifar_lab.run.build import build
from cifar_lab.run.load import read_ended, tested_checkpoint
from cifar_lab.run.run import Request, run
from cifar_lab.run.trainer import device_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PACKAGE = Path(__file__).parents[1]
# Of a run's own clock.
_CLOCK = ("images_per_s",)
# Finished runs that differ by the seed alone, so that a spread can be told.
_LEAST_SEEDS = 3
_CONFIDENCE = 0.95
# What is said anew, by key.
Given = dict[str, str | list[str]]
_NAMED = 3
# What a run needs that its folder doesn't hold, and how to say where it lies now.
_FLAGS = {"data.root": "--data", "init_from": "--init-from", "distill.from": "--distill-from"}


@dataclass
class Reproduction:
    """What came of running a run again.

    Attributes:
        folder: of the new run.
        status: its exit status; the rest is empty where that isn't 0.
        same: what agrees to the bit, a line each.
        differing: what does not, a line each.
        lacking: what could not be compared, a line each.
        verdict: in one line.
        reproduced: to the bit, or where something is different here within the spread of seeds.
    """

    folder: Path
    status: int
    same: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
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
        notes: what else a reader has to know, a line each.
    """

    original: Path
    record: RunRecord
    asked: Request
    otherwise: str
    exact: bool
    notes: tuple[str, ...] = ()


def plan(
    folder: Path,
    *,
    data: str | None = None,
    init_from: str | None = None,
    distill_from: Sequence[str] = (),
    out: Path | None = None,
    trust: Sequence[str] = (),
) -> Plan:
    """Builds the run of a folder again, without running it.

    No images are fetched: they must be on this machine, wherever they are.

    Args:
        folder: of a finished run; it may come from anybody.
        data: where its images lie now; None: where they lay, else where they are usually found.
        init_from: where the weights lie now that it began with.
        distill_from: where the runs lie now that it learned from, in their order.
        out: the new folder; None: beside the old one. One that holds a start of this very run is
            gone on with.
        trust: modules of the person's own that its parts may come from.

    Raises:
        InputError: it can't be built as it was, or not on the same images.
    """
    started = time.perf_counter()
    folder = expanded(folder).resolve()
    record = _finished(folder)
    config = _config_of(record, trust)
    out = (_beside(folder) if out is None else expanded(out)).absolute()
    if out.resolve() == folder:
        raise InputError(f"--out {out}: is the run itself; give another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).exists():
        raise InputError(f"--out {out}: holds other things; give a new folder")
    asked_for = {"data.root": data, "init_from": init_from, "distill.from": [*distill_from] or None}
    given: Given = {key: value for key, value in asked_for.items() if value is not None}
    said = _overrides(record, given)
    if "distill" in config and trust:
        said.append(f"distill.trust=[{','.join(trust)}]")
    cfg = _config(config, given, said)
    command = _command(folder, given, out, trust)
    asked = Request(cfg, run_dir=out, overrides=said, started=started, continued_by=command)
    with _said_here(folder):
        config = asked.config
    _check_same_run(record, config)
    _set_threads(record)
    with _said_here(folder):
        parts = build(cfg, config, out)
    found = parts.data.dataset
    if not record.data.holds(found.digest):
        raise InputError(
            f"{folder}: these images ({found.digest[:12]}) are not those of the run "
            f"({record.data.digest[:12]}); give those with --data PATH"
        )
    if parts.trainer.world_size > 1:
        _check_command(said, asked.config, trust)
    here = Start(
        git=Git(**git_state(_PACKAGE)),
        packages=package_versions(config),
        device=device_name(parts.trainer),
        threads=_threads(),
    )
    otherwise = made_otherwise(record.all_starts, here)
    on_cpu = parts.trainer.strategy.root_device.type == "cpu"
    notes: tuple[str, ...] = ()
    if record.config_digest != config_digest(record.config or {}):
        notes = ("its configuration is not that of its digest: it has been changed since",)
    return Plan(folder, record, asked, otherwise, on_cpu and not otherwise, notes)


def reproduce(planned: Plan) -> Reproduction:
    """Runs what was planned, and compares: weights, metrics, predictions.

    It is reproduced where all agree to the bit. On another device, with other packages or other
    code, and on a GPU, it is too where the test accuracy is as near as two seeds are to each other
    (a 95% interval from the finished runs beside it that differ by the seed alone, 3 or more).

    Raises:
        InputError: the new folder can't be written, or holds another run.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import env_override

    asked = planned.asked
    HydraConfig.instance().set_config(asked.cfg)
    try:
        with env_override(asked.cfg.hydra.job.env_set):
            status = run(asked)
    except InputError as error:  # of the folder, which has another name here
        raise InputError(str(error).replace("hydra.run.dir", "--out")) from error
    done = Reproduction(asked.run_dir, status)
    if status == 0:
        _compare(planned, done)
    return done


# --- the same configuration -----------------------------------------------------------------------


@contextmanager
def _said_here(folder: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        text = str(error).replace("distill.trust=", "--trust ")
        flags = (flag for key, flag in _FLAGS.items() if text.startswith(f"{key}="))
        where = "".join(f"; {flag} says where it lies now" for flag in flags)
        raise InputError(f"{folder}: can't be built here: {text}{where}") from error


def _finished(folder: Path) -> RunRecord:
    record = read_ended(folder)
    if record.status != "finished":
        raise InputError(
            f"{folder}: this run is {record.status}, and there is no result to compare with"
        )
    data = (record.config or {}).get("data", {})
    if not record.config or not isinstance(data, dict) or not record.data.digest:
        raise InputError(f"{folder}: its {FILE_NAME} has no configuration or no images")
    return record


def _beside(folder: Path) -> Path:
    numbers = iter(range(1, 10**6))
    free = (folder.with_name(f"{folder.name}-again-{number}") for number in numbers)
    return next(path for path in free if not path.exists())


def _config_of(record: RunRecord, trust: Sequence[str]) -> dict[str, Any]:
    """What decides of the record's configuration, and its monitors, checked.

    Loggers are those of here: a record's might send things to wherever it says.
    """
    recorded = copy.deepcopy(record.config or {})
    for _, node in target_nodes(recorded, ""):  # parts that have moved since an older version
        module, dot, name = str(node["_target_"]).rpartition(".")
        node["_target_"] = f"{MOVED.get(module, module)}{dot}{name}"
    kept = {k: v for k, v in recorded.items() if not changes_no_result(k)}
    kept["monitors"] = recorded.get("monitors") or {}  # some metrics are theirs
    if isinstance(callbacks := kept.get("callbacks"), dict):
        own = {k: v for k, v in callbacks.items() if not changes_no_result(f"callbacks.{k}")}
        kept["callbacks"] = own
    if isinstance(distill := kept.get("distill"), dict):
        distill["from"] = _teachers(distill.get("from"))
        distill["trust"] = list(trust)  # a person's to give: a record may name any module
    check_targets_of_record(kept, also=trust)
    if unknown := sorted(set(kept) - set(Root.__dataclass_fields__)):
        raise InputError(f"{unknown[0]}: is a key of another version of cifar_lab")
    return kept


def _teachers(source: Any) -> Any:
    """The folders of the runs that it learned from, for the checkpoints that its record names."""
    paths = source.get("paths") if isinstance(source, dict) else None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return source
    return [str(Path(path).parent.parent) for path in paths]


def _config(recorded: dict[str, Any], given: Given, overrides: Sequence[str]) -> DictConfig:
    """What the record says, in the place of what would be composed here."""
    from omegaconf import OmegaConf, open_dict, read_write
    from omegaconf.errors import OmegaConfBaseException

    cfg = compose([])
    values = dict(recorded)
    if isinstance(source := values.get("init_from"), dict):
        values["init_from"] = source.get("torchvision") or source.get("path")
    with open_dict(cfg):
        for key, value in values.items():
            try:
                OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            except OmegaConfBaseException as error:
                raise InputError(f"{key}={value}: {first_line(str(error))}") from error
        if "offline" in cfg.data:  # a record may name any address, and any place for a cache
            cfg.data.offline, cfg.data.cache = True, None
        cfg.resume = "auto"
        if cfg.data.get("root") is not None and not Path(str(cfg.data.root)).exists():
            cfg.data.root = None  # of another machine: they may be found where they usually lie
        for key, text in given.items():
            if key == "data.root" and "root" not in cfg.data:
                raise InputError(f"--data {text}: this run's images are drawn by code")
            if key == "init_from" and recorded.get("init_from") is None:
                raise InputError(f"--init-from {text}: this run began with no other's weights")
            if key == "distill.from" and not recorded.get("distill"):
                raise InputError(f"--distill-from {text[0]}: this run learned from no other")
            OmegaConf.update(cfg, key, text)
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.overrides.task = list(overrides)
    return cfg


def _overrides(record: RunRecord, given: Given) -> list[str]:
    """What the new run's record says was typed: the old one's, with what is given now.

    Without Hydra's own, which might name code (`hydra.callbacks`), and without addresses.
    """
    dropped = (*given, "distill.trust", "resume", "data.sources", "data.cache", "data.offline")
    kept = []
    for override in record.overrides:
        key = key_of(override)
        if key not in dropped and not key.startswith(("hydra.", "hydra/", "-")):
            kept.append(override)
    for key, value in given.items():
        if isinstance(value, str):
            kept.append(assignment(key, value))
        else:
            kept.append(f"{key}=[{','.join(map(hydra_quoted, value))}]")
    return kept


def _check_same_run(record: RunRecord, config: dict[str, Any]) -> None:
    then, now = deciding(record.config or {}), deciding(config)
    keys = [k for k in sorted({*then, *now}) if then.get(k) != now.get(k)]
    if keys:
        first = ", ".join(f"{k} ({then.get(k)} then, {now.get(k)} here)" for k in keys[:_NAMED])
        raise InputError(f"can't be built as it was; these differ: {first}")


def _check_command(overrides: Sequence[str], config: dict[str, Any], trust: Sequence[str]) -> None:
    # Lightning starts the other processes by a command line, and they compose what it says
    composed = run_config(compose(overrides))
    check_targets_of_record(composed, also=trust)
    trusted = [(one.get("distill") or {}).get("trust") for one in (composed, config)]
    if config_digest(composed) != config_digest(config) or trusted[0] != trusted[1]:
        raise InputError(
            "this run had several processes, which are started by its command, and here that "
            f"means another configuration: {' '.join(overrides)}"
        )


def _command(folder: Path, given: Given, out: Path, trust: Sequence[str]) -> str:
    """What goes on where the reproduction was stopped, and compares."""
    words = []
    for key, value in given.items():
        for text in [value] if isinstance(value, str) else value:
            words += [_FLAGS[key], text]
    words += [word for module in trust for word in ("--trust", module)]
    line = ["python", "-m", "cifar_lab.reproduce", str(folder), *words, "--out", str(out)]
    return shlex.join(line)


def _set_threads(record: RunRecord) -> None:
    """Of a run that left the number to its machine, too."""
    import torch

    if record.threads is None:
        return
    if not 1 <= record.threads <= MOST_THREADS:
        raise InputError(f"threads={record.threads}: must lie in 1..{MOST_THREADS}")
    torch.set_num_threads(record.threads)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


# --- the same result ------------------------------------------------------------------------------


# Whether they are the same to the bit (None: can't be compared), and what a line says of it.
_Compared = tuple[bool | None, str]


def _compare(planned: Plan, done: Reproduction) -> None:
    old, new = planned.original, done.folder
    record, again = planned.record, RunRecord.read(new)
    compared = {
        "weights": _weights(old, new, record, again),
        "metrics": _metrics(record, again),
        "predictions": _predictions(old, new),
    }
    for name, (same, said) in compared.items():
        lines = {True: done.same, False: done.differing, None: done.lacking}[same]
        lines.append(f"{name:<13}{said}")
    if not done.differing:
        lacking = [name for name, (same, _) in compared.items() if same is None]
        partly = f", without {_listed(lacking)} to compare" if lacking else ""
        done.verdict, done.reproduced = f"reproduced to the bit{partly}", True
    elif planned.exact:
        other = _listed([name for name, (same, _) in compared.items() if same is False])
        done.verdict = (
            f"not reproduced: nothing that it was made with is different here, and yet {other} are"
        )
    elif _same_answers(compared, record, again):
        # another version may sum a mean up in another order
        done.verdict = "reproduced to the bit, but for the last digits of metrics"
        done.reproduced = True
    else:
        done.reproduced, done.verdict = _within_spread(old, record, again)


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _same_answers(compared: Mapping[str, _Compared], record: RunRecord, again: RunRecord) -> bool:
    before, now = record.metrics, again.metrics
    losses = before.get("test/loss"), now.get("test/loss")
    near = losses[0] is not None and losses[1] is not None
    near = near and math.isclose(float(losses[0] or 0), float(losses[1] or 0), rel_tol=1e-5)
    same = compared["weights"][0] and compared["predictions"][0]
    return bool(same and near and before.get("test/acc") == now.get("test/acc"))


def _weights(old: Path, new: Path, record: RunRecord, again: RunRecord) -> _Compared:
    try:
        before, now = (
            dict(tested_checkpoint(folder, its)[1]["state_dict"])
            for folder, its in ((old, record), (new, again))
        )
    except DamagedError as error:
        return None, f"not compared: {error}"
    names = [*before, *(name for name in now if name not in before)]
    differing = [name for name in names if not _same_tensor(before.get(name), now.get(name))]
    if not differing:
        return True, f"the same to the bit ({len(names)} tensors)"
    apart = [
        float((before[n].double() - now[n].double()).abs().max())
        for n in differing
        if _comparable(before.get(n), now.get(n)) and before[n].numel()
    ]
    by = f", by up to {max(apart):.3g}" if apart else ""
    first = ", ".join(differing[:_NAMED])
    return False, f"{len(differing)} of {len(names)} tensors differ{by}: {first}"


def _same_tensor(a: Any, b: Any) -> bool:
    import torch

    return _comparable(a, b) and a.dtype == b.dtype and torch.equal(a, b)


def _comparable(a: Any, b: Any) -> bool:
    import torch

    both = (a, b)  # of a folder that may come from anybody
    dense = all(isinstance(t, torch.Tensor) and t.layout == torch.strided for t in both)
    return dense and a.shape == b.shape and not (a.is_quantized or b.is_quantized)


def _metrics(record: RunRecord, again: RunRecord) -> _Compared:
    before, now = ({k: v for k, v in r.metrics.items() if k not in _CLOCK} for r in (record, again))
    shared = [name for name in before if name in now]  # an older version had other monitors
    alone = [name for name in (*before, *now) if name not in shared]
    if not shared:
        return None, "not compared: there are none of the same name"
    more = f"; in one of both alone: {', '.join(alone)}" if alone else ""
    differing = [name for name in shared if before[name] != now[name]]
    if not differing:
        return True, f"the same to the bit ({len(shared)}){more}"
    values = ", ".join(f"{n} {before[n]} then, {now[n]} here" for n in differing[:_NAMED])
    return False, f"{len(differing)} of {len(shared)} differ: {values}{more}"


def _predictions(old: Path, new: Path) -> _Compared:
    name = "predictions.npz"
    try:
        _check_stored(old / name)
        # an array of objects would be unpickled
        with np.load(old / name, allow_pickle=False) as a, np.load(new / name) as b:
            before, now = a["logits"], b["logits"]
            same_labels = np.array_equal(a["labels"], b["labels"])
        if before.dtype.kind != "f":
            raise ValueError(f"its logits are {before.dtype}")
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        return None, f"not compared: {old / name} can't be read ({first_line(str(error))})"
    if before.shape != now.shape or not same_labels:
        return False, "are of other images"
    if np.array_equal(before, now):
        return True, f"the same to the bit ({len(now)} images)"
    other = int((before.argmax(1) != now.argmax(1)).sum())
    by = float(np.abs(before.astype(np.float64) - now).max())
    return False, f"{other} of {len(now)} images get another class; logits differ by up to {by:.3g}"


def _check_stored(path: Path) -> None:
    # a run packs nothing; numpy would unpack whatever a file says that it holds
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type]
    if packed:
        raise ValueError(f"{packed[0]} in it is compressed")


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
        if (other := record_of(path.parent)) is None:
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

"""The processes of one run: who started them, how many there are, and which of them this one is.

Launchers say so in environment variables, and the same variables lie about in shells: whatever an
allocation, a batch script or torchrun starts inherits them. One of them alone proves nothing, so
all that a launcher sets must be there and agree; else this process was started alone, is the first
of its run, and starts the others itself. Everything that asks "am I the first?" asks here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cifar_lab.errors import InputError

# What the first process of a run tells those that Lightning starts from it: its process id, and
# the checkpoint that all continue from.
FIRST_VARIABLE = "CIFAR_LAB_FIRST_PROCESS"
RESUME_VARIABLE = "CIFAR_LAB_RESUME_FROM"
# By each of these a library would take a process that was started alone for one of several.
_STRAY = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
)
_STRAY_PREFIX = "TORCHELASTIC_"
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
# SLURM numbers the steps that srun starts from 0; what it calls a step besides lies above:
# a batch script, the shell of an allocation (slurm.h: SLURM_MAX_NORMAL_STEP_ID)
_SRUN_STEPS = 0xFFFFFFF0
# Launchers that a run can't take part in, by the variable that says how many they started.
_UNKNOWN = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "JSM_NAMESPACE_SIZE": "jsrun"}


@dataclass(frozen=True)
class World:
    """The processes of a run as this one sees them.

    Attributes:
        launcher: ``torchrun`` or ``srun``, which started all of them; ``lightning``, where a run's
            first process started this one; empty where this process was started alone.
        size: how many torchrun or srun started, else 1.
        rank: 0 for the first process, which alone writes the record.
        local_rank: the number among those of this machine, which is that of its device.
        nodes: how many machines they are on; None where nothing says so.
        said: what says ``size``, for messages.
    """

    launcher: str = ""
    size: int = 1
    rank: int = 0
    local_rank: int = 0
    nodes: int | None = None
    said: str = ""

    @property
    def joined(self) -> bool:
        """Whether the processes were started side by side, each for itself."""
        return self.launcher in ("torchrun", "srun")


def find(environment: Mapping[str, str] | None = None) -> World:
    """What the variables of this process's environment (or of the one given) come to."""
    variables = os.environ if environment is None else environment
    first = variables.get(FIRST_VARIABLE)
    if first is not None and first != str(os.getpid()):
        local_rank = max(1, _number(variables, "LOCAL_RANK") or 0)
        return World("lightning", rank=local_rank, local_rank=local_rank)
    if all(variables.get(name) for name in _TORCHRUN):
        names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE")
        return _joined(variables, "torchrun", names) or World()
    step = _number(variables, "SLURM_STEP_ID")
    if step is not None and step < _SRUN_STEPS:
        # an allocation's own numbers go by the names of a step's; the step's come first
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
        names = (size, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
        return _joined(variables, "srun", names) or World()
    return World()


def rank() -> int:
    """This process's number in its run: 0 for the first one, which alone writes the record."""
    return find().rank


def settle() -> World:
    """`find`; a process that was started alone forgets the variables that say otherwise.

    Libraries read them, too, and so do the processes that this one starts.

    Raises:
        InputError: several processes were started in a way in which they can't become one run.
    """
    variables, world = os.environ, find()
    if world.launcher == "lightning" and variables[FIRST_VARIABLE] != str(os.getppid()):
        # its first process has been killed, or a run's own code has started another run
        raise InputError(
            f"{FIRST_VARIABLE}={variables[FIRST_VARIABLE]}: a run sets it for the processes that "
            "it starts, and this one's parent is another process; unset it"
        )
    if world.launcher:
        return world
    for name, launcher in _UNKNOWN.items():
        if (size := _number(variables, name) or 1) > 1:
            raise InputError(
                f"{name}={size}: {launcher} started {size} processes, each of which would be a "
                "run of its own; start one, or several with torchrun or srun"
            )
    for name in [n for n in variables if n in _STRAY or n.startswith(_STRAY_PREFIX)]:
        del variables[name]
    return world


@contextmanager
def first_of(arguments: Sequence[str], resume_from: Path | None) -> Iterator[None]:
    """While it lasts, Lightning can start further processes of the run that this one begins.

    It starts them by this program's name and arguments, in this environment.

    Args:
        arguments: of the run, its folder among them.
        resume_from: the checkpoint that all continue from.
    """
    if find().launcher:
        yield
        return
    main = sys.modules["__main__"]
    argv, spec = sys.argv, main.__spec__
    sys.argv = [argv[0], *arguments]
    main.__spec__ = find_spec("cifar_lab.__main__")  # `python -m` of that, in a sweep's worker too
    os.environ[FIRST_VARIABLE] = str(os.getpid())
    os.environ[RESUME_VARIABLE] = str(resume_from or "")
    try:
        yield
    finally:
        sys.argv, main.__spec__ = argv, spec
        for name in (FIRST_VARIABLE, RESUME_VARIABLE, *_STRAY):  # Lightning leaves its own behind
            os.environ.pop(name, None)


def resume_from() -> Path | None:
    """The checkpoint that the first process told the others to continue from."""
    path = os.environ.get(RESUME_VARIABLE)
    return Path(path) if path else None


def _joined(
    variables: Mapping[str, str], launcher: str, names: tuple[str, str, str, str]
) -> World | None:
    size, rank, local_rank, nodes = (_number(variables, name) for name in names)
    if size is None or rank is None or local_rank is None or not local_rank <= rank < size:
        return None
    if size == 1:  # no world of its own: it may start others, whoever started it
        return None
    return World(launcher, size, rank, local_rank, nodes, f"{names[0]}={size}")


def _number(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, "")
    return int(text) if text.isdecimal() else None

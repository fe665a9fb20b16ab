"""`python -m cifar_lab.dashboard [PATH]`: TensorBoard on the runs below PATH, by short names.

TensorBoard names a run by its folder: ``runs/2026-11-22/15-54-34-1a2b3c/tensorboard``. Here it is
given a temporary folder of links, named by when a run began and what was varied
(``11-22 15.54 resnet10 lr0.1``), which follows what happens below PATH.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from os import walk
from pathlib import Path

from cifar_lab.config.command import Parser, run_command
from cifar_lab.config.port import HOST, listen, port_of
from cifar_lab.errors import InputError
from cifar_lab.records.record import FILE_NAME, record_of

_USAGE = "python -m cifar_lab.dashboard [PATH] [--port N]"
_HELP = f"""{__doc__}
    {_USAGE}

PATH    runs and sweeps below it (outputs)
--port  6006, or the next one that is free
"""
EVENTS = "tensorboard"  # in a run folder
SWEEP_FILE = "sweep.json"
FIRST_PORT = 6006
POLL_S = 5.0
# outputs/runs/2026-11-22/15-54-34-1a2b3c, and likewise a sweep's
_STARTED = re.compile(r"\d{4}-(?P<day>\d\d-\d\d)/(?P<hour>\d\d)-(?P<minute>\d\d)-\d\d-\w+$")
_LONGEST = 50  # characters of what was varied
_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C (130) or SIGTERM (143); 2 where PATH is no folder."""
    return run_command(arguments, _dashboard, text=_HELP, stopped="dashboard ended")


def _dashboard(words: list[str]) -> int:
    parser = Parser(_USAGE)
    parser.add_argument("path", nargs="?", default="outputs")
    parser.add_argument("--port", type=int)
    given = parser.parse_args(words)
    serve(Path(given.path), port=given.port)
    return 0


def serve(root: Path, *, port: int | None) -> None:
    """Shows the runs below ``root``, present and to come, until `Interrupted`.

    Raises:
        InputError: ``root`` is no folder, or the port is taken or no port.
    """
    if not root.is_dir():
        raise InputError(
            f"PATH={root}: there is no such folder; give one that holds runs, such as outputs"
        )
    with listen(port, first=FIRST_PORT) as free:  # TensorBoard opens one by its number
        port = port_of(free)
    with tempfile.TemporaryDirectory(prefix="cifar_lab-dashboard-") as folder:
        links = Links(root.resolve(), Path(folder))
        links.refresh()
        address = _launch(folder, port)
        count = len(links.names)
        found = f"{count} runs" if count else "no runs yet, they appear as they start"
        print(f"cifar_lab: {root}: {found}; Ctrl-C ends it\n{address}#custom_scalars", flush=True)
        while True:
            time.sleep(POLL_S)
            links.refresh()


class Links:
    """A folder of links to the event folders of all runs below ``root``.

    A run keeps the name it was given first, whatever comes later.

    Attributes:
        names: of every run folder, the link's path below ``folder``.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.names: dict[Path, str] = {}
        self._root = root
        self._folder = folder

    def refresh(self) -> None:
        """Adds the runs that have begun and removes those whose folder is gone."""
        runs = list(runs_below(self._root))
        for gone in self.names.keys() - set(runs):
            (self._folder / self.names.pop(gone)).unlink()
        for run in runs:
            if run not in self.names:
                self._add(run)

    def _add(self, run: Path) -> None:
        name = short_name(run, self._root)
        # the same was varied in the same minute
        if name in self.names.values():
            name = f"{name} {run.name.rpartition('-')[2]}"
        if name in self.names.values():
            name = f"{name} {len(self.names)}"
        link = self._folder / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(run / EVENTS, target_is_directory=True)
        self.names[run] = name


def runs_below(root: Path) -> Iterator[Path]:
    """Run folders with events at or below ``root``, in the order of their names."""
    for folder, children, _ in walk(root):
        here = Path(folder)
        if EVENTS in children and any((here / EVENTS).glob("*tfevents*")):
            yield here
            children.clear()
        # in place: walk() goes on with what is left
        children[:] = sorted(c for c in children if c not in ("checkpoints", ".hydra"))


def short_name(run: Path, root: Path) -> str:
    """When and what: ``11-22 15.54 resnet10 lr0.1``; in a sweep ``11-22 15.54/lr0.1-seed0``.

    Where ``root`` is the sweep's own folder or the run's, without when.
    """
    if (run.parent / SWEEP_FILE).exists():
        words = _DIGEST.sub("", run.name)
        return words if root in (run, run.parent) else f"{_label(run.parent, root)}/{words}"
    return f"{_label(run, root)} {_varied(run)}".strip()


def _label(folder: Path, root: Path) -> str:
    """When it started, or else what the person has named it."""
    if match := _STARTED.search(folder.as_posix()):
        return f"{match['day']} {match['hour']}.{match['minute']}"
    return "" if folder == root else folder.relative_to(root).as_posix().replace("/", " ")


def _varied(run: Path) -> str:
    from cifar_lab.config.names import job_words
    from cifar_lab.records.digest import changes_no_result, key_of

    if (record := record_of(run)) is None:  # TensorBoard shows its curves all the same
        return f"no {FILE_NAME}"
    chosen = [
        override
        for override in record.overrides
        if "hydra" not in override and not changes_no_result(key_of(override))
    ]
    words = job_words(chosen)
    name = " ".join(words)
    while len(name) > _LONGEST and len(words) > 1:  # whole words, and a sign that there are more
        words.pop()
        name = " ".join([*words, "…"])
    return name or "defaults"


def _launch(folder: str, port: int) -> str:
    """Starts the server in a thread and TensorBoard's reader as a child; its address."""
    from tensorboard import program
    from tensorboard.program import TensorBoardServerException

    board = program.TensorBoard()
    board.configure(
        argv=["tensorboard"],
        logdir=folder,
        host=HOST,
        port=port,
        reload_interval=POLL_S,
    )
    said = io.StringIO()
    try:
        # an advert of its data server, and a word for TensorFlow: nothing to act on
        with redirect_stderr(said):
            return str(board.launch())
    except TensorBoardServerException as error:
        raise InputError(f"--port={port}: {' '.join(str(error.msg).split())}") from error
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise


if __name__ == "__main__":
    sys.exit(main())

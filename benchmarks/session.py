"""One session: everything measured in turns, then shown and written, however it ends."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import random_images, show, startup
from benchmarks.contenders import MAKERS, NETWORKS, Contender, Workload, outside
from benchmarks.machine import caption, describe
from benchmarks.measurement import Measurement
from benchmarks.rounds import measure
from cifar_lab import signals
from cifar_lab.errors import InputError
from cifar_lab.records.files import write_atomically
from cifar_lab.records.record import now

SCHEMA = 1
_SHORT_LEAVES_OUT = (
    "short form: the cnn alone, 3 rounds of 20 steps; it leaves out resnet10, [1,1,1,1], the tuned "
    "bare loop, ours in bf16 and the start-up"
)


class Session:
    """One call of the program."""

    def __init__(self, given: argparse.Namespace, temporary: Path) -> None:
        self._given = given
        self._data = temporary / "data"
        self._temporary = temporary
        self._started = datetime.now()
        self._measurements: list[Measurement] = []
        # rich takes 80 columns for a file, too few for the tables
        self._console = Console(width=None if sys.stdout.isatty() else 120)
        self._described = describe(given.device, given.threads)
        device = self._described["machine"]["device"]
        self._on_gpu = device != "cpu"
        self._workload = Workload(
            data=self._data,
            network="cnn",
            batch_size=1,
            steps=1,
            device=device,
            precision=given.precision,
            threads=given.threads,
            workers=given.workers,
        )

    def run(self) -> int:
        """All tables; what was measured is shown and written however it ends."""
        given = self._given
        self._console.print(caption(self._described), highlight=False)
        if given.short:
            self._console.print(_SHORT_LEAVES_OUT, highlight=False)
        folder = self._made_folder()  # before hours of measuring are lost
        self._make_data()
        try:
            for network in given.networks:
                self._measure(network, self._contenders(network))
            if given.startup:
                self._measure(startup.TABLE, startup.contenders(self._for("cnn")))
        finally:
            with signals.shielded():
                self._close(folder)
        return 1 if show.failures(self._measurements) else 0

    def _make_data(self) -> None:
        random_images.make(self._data, self._given.images)
        if not (self._given.startup or self._given.imports):
            return
        # decoded beforehand: the start-up is that on cached data
        root, cache = self._data / random_images.ZIP_NAME, self._workload.cache
        command = [sys.executable, "-m", "cifar_lab.data", f"root={root}", f"cache={cache}"]
        subprocess.run(command, check=True, capture_output=True)

    def _contenders(self, network: str) -> list[Contender]:
        workload = self._for(network)
        return [
            *(MAKERS[name](workload) for name in self._given.contenders),
            *(
                outside(also.name, also.command)
                for also in self._given.also
                if also.network in (None, network)
            ),
        ]

    def _for(self, network: str) -> Workload:
        chosen, given = NETWORKS[network], self._given
        return replace(
            self._workload,
            network=network,
            batch_size=given.batch_size or chosen.batch_size[self._on_gpu],
            steps=given.steps or chosen.steps[self._on_gpu],
        )

    def _measure(self, table: str, contenders: Sequence[Contender]) -> None:
        given = self._given
        for one in measure(
            table, contenders, rounds=given.rounds, timeout_s=given.timeout, folder=self._temporary
        ):
            self._measurements.append(one)
            print(_line(one, given.rounds), file=sys.stderr, flush=True)

    def _close(self, folder: Path) -> None:
        measurements = self._measurements
        if not measurements:
            with suppress(OSError):
                folder.rmdir()
            return
        if any(m.table == startup.TABLE for m in measurements):
            corrected = startup.with_interpreter(
                [m for m in measurements if m.table == startup.TABLE]
            )
            measurements = [m for m in measurements if m.table != startup.TABLE] + corrected
        # first: whatever becomes of the tables, hours of measuring are kept
        write_atomically(folder / "bench.json", json.dumps(self._report(measurements), indent=2))
        for network in NETWORKS:
            if rows := [m for m in measurements if m.table == network]:
                self._console.print(show.speed_table(network, rows, on_gpu=self._on_gpu))
        if rows := [m for m in measurements if m.table == startup.TABLE]:
            self._console.print(show.startup_table(rows))
        for line in show.failures(measurements):
            print(f"benchmarks: failed: {line}", file=sys.stderr)
        show.draw(measurements, folder, caption=caption(self._described))
        self._console.print(f"written to {folder}", highlight=False, soft_wrap=True)

    def _made_folder(self) -> Path:
        default = Path("outputs/bench") / f"{self._started:%Y-%m-%d-%H%M%S}"
        folder: Path = (self._given.out or default).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise InputError(
                f"--out={folder}: can't be written ({error.strerror}); choose another folder"
            ) from error
        return folder

    def _report(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        given = vars(self._given)
        return {
            "schema": SCHEMA,
            "started": self._started.astimezone().isoformat(timespec="seconds"),
            "ended": now().isoformat(),
            "command": self._given.command,
            **self._described,
            "settings": {
                **{key: given[key] for key in ("rounds", "precision", "workers", "images")},
                "networks": {
                    name: {"batch_size": self._for(name).batch_size, "steps": self._for(name).steps}
                    for name in self._given.networks
                },
            },
            "commands": self._commands(),
            "measurements": [asdict(m) for m in measurements],
        }

    def _commands(self) -> dict[str, dict[str, str]]:
        folder = Path("FOLDER")
        tables = {network: self._contenders(network) for network in self._given.networks}
        if self._given.startup:
            tables[startup.TABLE] = startup.contenders(self._for("cnn"))
        return {
            table: {c.name: _as_text(c.command(folder)) for c in contenders}
            for table, contenders in tables.items()
        }

    def show_imports(self) -> int:
        """What a run of one step imports, against the bare imports."""
        self._make_data()
        try:
            ours, reference = startup.import_lists(self._for("cnn"), self._temporary)
        except RuntimeError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
        for table in show.import_tables(ours, reference):
            self._console.print(table)
        return 0


def _as_text(command: Sequence[str] | str) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _line(one: Measurement, rounds: int) -> str:
    told = [
        text
        for value, text in (
            (one.error, f"failed: {one.error}"),
            (one.images_per_s, f"{one.images_per_s or 0:,.0f} images/s"),
            (one.accuracy, f"accuracy {one.accuracy or 0:.2%}"),
            (one.wall_s, f"{one.wall_s or 0:.1f} s"),
        )
        if value is not None
    ]
    return f"{one.table:<11} round {one.round}/{rounds}  {one.contender:<12} {', '.join(told)}"

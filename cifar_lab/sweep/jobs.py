"""What a point's folder already holds: a job begins where an earlier start left it."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_lab.records.record import SETTLED
from cifar_lab.sweep.folder import SweepFolder, wait_until_left
from cifar_lab.sweep.points import Point
from cifar_lab.sweep.supervisor import SweepJob


def make_job(folder: SweepFolder, point: Point) -> SweepJob:
    """The point's job; raises InputError where another process is running in its folder."""
    found = folder.find(point.digest, point.images, point.suffix)
    path, record = found or (folder.path / point.folder_name, None)
    wait_until_left(path)
    job = SweepJob(point, path, record=record)
    if record is not None and record.status in SETTLED:
        job.status, job.before, job.error = record.status, True, record.error
    return job


def make_jobs(folder: SweepFolder, points: Sequence[Point]) -> list[SweepJob]:
    """A job for every different point, in order; raises InputError as `make_job`."""
    different = {point.run_digest: point for point in reversed(points)}
    order = dict.fromkeys(point.run_digest for point in points)
    return [make_job(folder, different[digest]) for digest in order]

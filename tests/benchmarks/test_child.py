from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import child
from benchmarks.contenders import outside
from benchmarks.rounds import measure


def run(command: list[str] | str, timeout_s: float = 60.0) -> child.Ended:
    return child.run(command, cwd=Path.cwd(), timeout_s=timeout_s, env={})


def test_output_and_errors_come_apart_and_errors_go_to_a_terminal() -> None:
    code = "import sys; print('out'); print(sys.stderr.isatty(), file=sys.stderr); sys.exit(3)"
    ended = run([sys.executable, "-c", code])
    assert (ended.status, ended.output, ended.errors.strip()) == (3, "out\n", "True")
    assert ended.first_line_s is not None
    assert ended.first_line_s <= ended.wall_s


def test_what_takes_too_long_is_ended_with_all_that_it_started() -> None:
    ended = run("sleep 100 & echo $!; wait", timeout_s=0.5)
    assert ended.timed_out
    grandchild = int(ended.output)
    for _ in range(500):
        if not _alive(grandchild):
            return
        time.sleep(0.01)
    pytest.fail("the grandchild lives on")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="no_such_program"):
        run(["no_such_program"])


def test_who_begins_changes_and_a_failure_stops_nobody(tmp_path: Path) -> None:
    contenders = [
        outside("a", "echo 100 images/s"),
        outside("b", "echo boom >&2; exit 3"),
        outside("c", """echo '{"images_per_s": "many"}'"""),
    ]
    measured = list(measure("cnn", contenders, rounds=2, timeout_s=60, folder=tmp_path))
    assert [(m.round, m.position, m.contender) for m in measured] == [
        *((1, 1, "a"), (1, 2, "b"), (1, 3, "c")),
        *((2, 1, "b"), (2, 2, "c"), (2, 3, "a")),
    ]
    by_name = {m.contender: m for m in measured}
    assert (by_name["a"].images_per_s, by_name["a"].error) == (100, None)
    assert by_name["b"].error == "exit status 3: boom"
    assert "images_per_s='many'" in str(by_name["c"].error)
    assert all(m.wall_s is not None for m in measured)
    assert list(tmp_path.iterdir()) == []

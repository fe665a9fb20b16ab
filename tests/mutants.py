"""Mutation testing of the core: which changed line would no test of its own notice?

``python -m tests.mutants`` (``make mutants``) changes one expression at a time with mutmut's
operators and runs the tests of `TESTS`, in a copy of the checkout below the temporary folder. Each
mutant is a fork of a process that has torch and the tests imported. An hour or more for all:
``--sample 20 --seed 1`` takes as many of each module, ``sweep/supervisor`` only that module.

mutmut changes neither what stands outside functions nor functions with a decorator. What is not
changed on top of that is in `WORDING`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

PACKAGE = "cifar_lab"
KEPT = "tests/training/callbacks/test_checkpoints.py"
CHOSEN = "tests/training/test_selection.py"
RECORD = ("tests/records/test_record_file.py", "tests/records/test_record.py")
# Each module of the core with the tests that would have to notice: as few and as fast as will do.
TESTS: dict[str, tuple[str, ...]] = {
    "records/digest": ("tests/records/test_digest.py",),
    "records/record": RECORD,
    "records/environment": RECORD,
    "records/files": RECORD,
    "records/checkpoint_file": (
        "tests/records/test_checkpoint_file.py",
        KEPT,
        "tests/run/test_resume.py",
    ),
    "run/resume": ("tests/run/test_folders.py",),
    "report/statistics": ("tests/report/test_statistics.py",),
    "report/compare": ("tests/report/test_ranking.py", "tests/report/test_compare.py"),
    "data/augment": ("tests/data/test_augment.py",),
    "data/feed/epoch": ("tests/data/feed/test_epoch.py",),
    "training/callbacks/rng": (
        f"{KEPT}::test_generators_put_back_draw_what_they_would_have_drawn",
        f"{KEPT}::test_a_gpus_generator_is_put_back_where_there_was_one_and_is_one",
    ),
    "training/selection": (
        f"{CHOSEN}::test_a_name_says_which_values_are_better_or_says_nothing",
        f"{CHOSEN}::test_of_equal_values_the_earlier_stays_and_nan_is_never_the_best",
    ),
    "training/callbacks/checkpoints": (
        KEPT,
        "tests/run/test_resume.py",
        f"{CHOSEN}::test_validated_within_the_epoch_a_stopped_run_goes_on_to_the_bit",
        f"{CHOSEN}::test_a_crash_right_behind_a_checkpoint_loses_nothing",
        f"{CHOSEN}::test_a_metric_that_no_validation_logs_ends_the_run",
    ),
    "training/classifier": (
        "tests/training/test_step.py",
        "tests/training/test_classifier.py",
        "tests/training/steps/test_multistep.py",
        "tests/training/steps/test_cuda_graph.py::test_replayed_steps_are_the_steps",
    ),
    "sweep/supervisor": ("tests/sweep/test_supervisor.py",),
}
# What a message says is for people to judge; that there is one, and what it names, is tested.
WORDING = (r"raise \w+\(", r"log\.\w+\(", r"print\(")
MUTMUT = (sys.executable, "-c", "from mutmut.__main__ import cli; cli()")
COPIED = ("cifar_lab", "conf", "hydra_plugins", "tests", "pyproject.toml")
# pytest's and mutmut's exit codes: all tests passed, or none of these calls the function
UNNOTICED = {0: "survived", 5: "no test", 33: "no test"}
NOTICED = {1: "caught", 3: "caught", 24: "timeout", -24: "timeout", 36: "timeout", 152: "timeout"}


def pytest_configure() -> None:
    """As a plugin, in the runs that only look which test calls what: not in child processes.

    Those would write their part of mutmut's statistics into the folder where they happen to be.
    """
    if os.environ.get("MUTANT_UNDER_TEST") in ("stats", "fail", "list_all_tests"):
        del os.environ["MUTANT_UNDER_TEST"]  # this process knows it without


def copied(root: Path, module: str) -> Path:
    """The checkout below ``root``, with mutmut told to change one module."""
    repository = Path(__file__).resolve().parent.parent
    work = root / module.replace("/", ".")
    work.mkdir()
    for name in COPIED:
        if (repository / name).is_dir():
            shutil.copytree(
                repository / name, work / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(repository / name, work / name)
    settings = {
        "source_paths": [PACKAGE],
        "only_mutate": [f"{PACKAGE}/{module}.py"],
        "also_copy": list(COPIED[1:]),
        "do_not_mutate_patterns": list(WORDING),
        "pytest_add_cli_args": ["-p", "tests.mutants", "-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": ["-m", "not slow", *TESTS[module]],
        # torch's pools don't live through a fork of a process that has used them
        "process_isolation": "forkserver",
        "timeout_constant": 5.0,
        "timeout_multiplier": 4.0,
        "use_git_change_detection": False,
    }
    with open(work / "pyproject.toml", "a") as file:  # these values are TOML as they are JSON
        print("\n[tool.mutmut]", file=file)
        for key, value in settings.items():
            print(f"{key} = {json.dumps(value)}", file=file)
    return work


def mutants_of(work: Path, module: str) -> list[str]:
    """The names of all mutants of a module, as mutmut numbers them."""
    code = (
        "import sys; from pathlib import Path\n"
        "from mutmut.mutation.file_mutation import mutate_file_contents\n"
        "path = sys.argv[1]\n"
        "print(*mutate_file_contents(path, Path(path).read_text()).mutant_names, sep='\\n')"
    )
    path = f"{PACKAGE}/{module}.py"
    names = subprocess.check_output([sys.executable, "-c", code, path], cwd=work, text=True).split()
    return [f"{PACKAGE}.{module.replace('/', '.')}.{name}" for name in names]


def judged(work: Path, module: str, names: list[str], processes: int) -> dict[str, str]:
    """What became of each of these mutants: caught or not, and how."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    with open(work / "mutmut.log", "w+") as log:  # thousands of lines of progress
        done = subprocess.run(
            [*MUTMUT, "run", f"--max-children={processes}", *names],
            cwd=work,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            log.seek(0)
            sys.exit(f"{module}: {log.read()[-5000:]}\nmutmut ended with {done.returncode}")
    meta = json.loads((work / "mutants" / PACKAGE / f"{module}.py.meta").read_text())
    codes: dict[str, int | None] = meta["exit_code_by_key"]
    found = {}
    for name in names:
        code = codes[name]
        assert code is not None, name
        found[name] = UNNOTICED.get(code) or NOTICED.get(code, f"exit {code}")
    return found


def change_of(work: Path, name: str) -> str:
    """The lines that a mutant takes away and puts in."""
    text = subprocess.check_output([*MUTMUT, "show", name], cwd=work, text=True)
    lines = text.splitlines()
    return "\n".join(
        f"    {line}" for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")
    )


def main(arguments: list[str]) -> int:
    """Prints what became of the mutants, and the change of each one that nobody noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="module", help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, help="so many mutants of each module; else: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(arguments)
    if unknown := [module for module in asked.modules if module not in TESTS]:
        parser.error(f"{', '.join(unknown)}: give one of {', '.join(TESTS)}")
    table, unnoticed = [], []
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        for module in asked.modules or TESTS:
            work = copied(Path(root), module)
            every = names = mutants_of(work, module)
            if asked.sample is not None and asked.sample < len(every):
                # the same whatever other modules are asked for
                names = sorted(random.Random(f"{asked.seed} {module}").sample(every, asked.sample))
            found = judged(work, module, names, asked.processes)
            counts = Counter(found.values())
            left = [name for name in names if found[name] in UNNOTICED.values()]
            table.append(f"| {module} | {len(every)} | {len(names)} | {len(names) - len(left)} |")
            unnoticed += [f"{found[name]}: {name}\n{change_of(work, name)}" for name in left]
            print(f"{module}: {dict(counts)}", flush=True)
    print("\n| module | mutants | tried | caught |\n| --- | --- | --- | --- |", *table, sep="\n")
    print("", *unnoticed, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

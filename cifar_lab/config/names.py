"""Short readable names for runs and jobs, from what was typed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from cifar_lab.records.credentials import hide_in_override


def job_name(overrides: Sequence[str]) -> str:
    """A short readable folder name without brackets or commas: what was varied, and a digest."""
    own = [o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith("hydra")]
    code = hashlib.sha256("\n".join(sorted(own)).encode()).hexdigest()[:6]
    return "-".join([*job_words(own), code])[-100:].lstrip("-.")


def job_words(overrides: Sequence[str]) -> list[str]:
    """Each override as a word for a file name, e.g. ``lr0.1``."""
    words = []
    for override in overrides:
        key, _, value = hide_in_override(override.lstrip("+~")).partition("=")
        name = key.rpartition(".")[2]
        value = value.strip("[]'\"")
        if is_number(value) and len(value) > 8:
            value = f"{float(value):.4g}"
        # of a group (model=cnn) the option says enough
        word = value if "." not in key and not is_number(value) else f"{name}{value}"
        words.append(re.sub(r"[^A-Za-z0-9.+_-]+", ".", word).strip("."))
    return words


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number, ``inf`` and ``nan`` among them."""
    try:
        float(text)
    except ValueError:
        return False
    return True

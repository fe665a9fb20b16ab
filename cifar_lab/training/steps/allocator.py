"""Memory that a CPU training frees and needs again a moment later."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep freed memory for the next allocation; False where it isn't glibc's.

    By default it hands every block of 32 MiB and more, and most smaller ones, back to the kernel,
    which clears each page again when it is next touched. The activations of a network are such
    blocks, and all of them are freed and needed again at every step: without this, a third of a
    CNN's step and two fifths of a ResNet's went into page faults (docs/benchmarks.md). The results
    are the same to the bit; what the process holds stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

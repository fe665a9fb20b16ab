"""One prepared day on a GPU: every fast path checked and measured in some minutes.

`blocks` says what, `day` runs it within its time, `loops` measures single loops in one process,
`table` shows what was found, `pack` gathers what a machine without a network needs.
"""

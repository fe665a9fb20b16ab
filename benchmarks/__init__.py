"""Measurements: ratios against what others do, in one session."""

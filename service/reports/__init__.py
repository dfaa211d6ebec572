"""Allocation and energy over a window of time; JSON and CSV."""

"""Thin routes: parse, call one use case, return a view."""

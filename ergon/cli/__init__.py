"""The `ergon` command: one file for each group of commands."""

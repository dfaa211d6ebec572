"""The words both ends of a wire agree on: states, job spec, node report, assignment, errors.

Only pydantic models and enumerations live here. Nothing in this package reads a clock, a file or a socket.
"""

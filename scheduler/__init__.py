"""The planner: a pure function from `Problem` to `Plan`.

Nothing here knows of a database, a network, a clock, randomness or logging. Time, seeds and budgets are arguments.
"""

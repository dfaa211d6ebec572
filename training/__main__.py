"""`python -m training NAME key=value ...`: run one recipe in this process, as one rank.

Exit codes: 0 done, 1 the result misses what the options ask for, 2 the call, the data or the ranks make no sense, 143
it was asked to stop and has saved.
"""

import os
import sys
from typing import NoReturn

from ergon import runtime
from training.compiling import told_in_one_line
from training.errors import InputError, did_you_mean
from training.options import parse
from training.recipes import MODULES, load


def main(arguments: list[str]) -> int:
    """Run the recipe `arguments` name and return the exit code."""
    name, words = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in MODULES:
        hint = did_you_mean(name, MODULES)
        usage = f"python -m training {{{','.join(MODULES)}}} key=value ..."
        return _refuse(f"no recipe is called {name!r}; {hint}usage: {usage}")
    recipe = load(name)
    try:
        options = parse(recipe.Options, words)
        with told_in_one_line():
            return recipe.run(options)
    except InputError as error:
        return _refuse(f"{name}: {error}")


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def leave(code: int) -> NoReturn:
    """End the process with this exit code, and without the interpreter's own farewell.

    Threads of gloo outlive `destroy_process_group`, since DDP keeps the group, and one that lets go of a tensor while
    the interpreter takes itself apart aborts the process: a rank that has done everything would count as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    runtime.watch_for_stop()
    leave(main(sys.argv[1:]))

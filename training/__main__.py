"""`python -m training NAME key=value ...`: run one recipe in this process, as one rank.

Exit codes: 0 done, 1 the result misses what the options ask for, 2 the call, the data or the ranks make no sense.
"""

import sys

from training.errors import InputError
from training.options import parse
from training.recipes import MODULES, load


def main(arguments: list[str]) -> int:
    """Run the recipe `arguments` name and return the exit code."""
    name, words = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in MODULES:
        return _refuse(f"no recipe is called {name!r}; usage: python -m training {{{','.join(MODULES)}}} key=value ...")
    recipe = load(name)
    try:
        return recipe.run(parse(recipe.Options, words))
    except InputError as error:
        return _refuse(f"{name}: {error}")


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

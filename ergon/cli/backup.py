"""`ergon backup` and `ergon restore`: the whole state of the service in one file, and back."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ergon.cli.doctor import EXTRAS
from ergon.cli.local import default_data_dir
from ergon.cli.output import Json
from ergon.errors import ErgonError
from protocol.environment import CLIENT_VARIABLES

DataDir = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Folder of the service; ERGON_DATA_DIR or the system's by default."),
]


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; there must be none of this name.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write the database and the store of code and outputs to one file. The service may go on meanwhile."""
    _become("backup", file, data_dir, as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="File that `ergon backup` has written.")],
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Bring a backup back, into an empty data folder or database, before the service starts on it."""
    _become("restore", file, data_dir, as_json)


def _become(command: str, file: Path, data_dir: Path | None, as_json: bool) -> None:
    """Go on as the command of the service, which has the settings and the database."""
    missing = [module for module in EXTRAS["service"][1] if importlib.util.find_spec(module) is None]
    if missing:
        raise ErgonError(f"{', '.join(missing)} missing; run this where the service is: pip install 'ergon[service]'")
    folder = (data_dir or default_data_dir(os.environ)).absolute()
    environment = {name: value for name, value in os.environ.items() if name not in CLIENT_VARIABLES}
    environment["ERGON_DATA_DIR"] = str(folder)
    arguments: Sequence[str] = [command, str(file.absolute()), *(["--json"] if as_json else [])]
    os.execve(sys.executable, [sys.executable, "-P", "-m", "service", *arguments], environment)

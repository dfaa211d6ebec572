"""Where the service is and who calls: arguments first, then the environment, then the file that `ergon up` writes."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ergon.errors import NotConfigured

START_ONE = "start a local cluster with `ergon up`, or set ERGON_SERVER and ERGON_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """`server` is an address such as http://127.0.0.1:8765; `token` belongs to a person, None for an anonymous call.

    `ca` is a file with the certificate that vouches for the server's; None for those that the system trusts.
    """

    server: str
    token: str | None = field(default=None, repr=False)
    ca: str | None = None


def credentials_path(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/ergon/credentials.json`, under ~/.config where that is not set."""
    folder = environment.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "ergon" / "credentials.json"


def resolve(
    server: str | None = None,
    token: str | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    ca: str | None = None,
) -> Credentials:
    """Put together what is known. The token in the file goes to the server in the file and to no other.

    Raises NotConfigured if no server is known, or if the file is needed and cannot be used.
    """
    server = server or environment.get("ERGON_SERVER")
    token = token or environment.get("ERGON_TOKEN")
    saved = None if server and token else load(credentials_path(environment))
    if not server:
        if saved is None:
            raise NotConfigured(f"no server is known; {START_ONE}")
        server = saved.server
    if not token and saved is not None and saved.server.rstrip("/") == server.rstrip("/"):
        token = saved.token
    return Credentials(server=server, token=token, ca=ca or environment.get("ERGON_CA") or None)


def load(path: Path) -> Credentials | None:
    """The credentials saved in `path`; None if there is no such file.

    Raises NotConfigured if others may read the file, or if it is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise NotConfigured(f"{path} holds a token and others can read it; run `chmod 600 {path}`")
            text = file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise NotConfigured(f"{path} cannot be read ({error}); remove it or correct its owner") from error
    damaged = NotConfigured(f"{path} is damaged; remove it and run `ergon up` again")
    try:
        saved: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise damaged from error
    if not isinstance(saved, dict):
        raise damaged
    match cast("dict[str, object]", saved):
        case {"server": str(server), "token": str(token)}:
            return Credentials(server=server, token=token)
        case _:
            raise damaged


def save(credentials: Credentials, path: Path) -> None:
    """Write the file anew, readable by its owner only. A reader sees the old one or the new one, never a half.

    Raises OSError if the folder cannot be made or written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    text = json.dumps({"server": credentials.server, "token": credentials.token}, indent=2) + "\n"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)

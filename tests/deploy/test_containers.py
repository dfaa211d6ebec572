"""What the image and the compose file say agrees with the code and with each other. Nothing is built here: for that
there is `make check-image`, and an engine."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import service.__main__
import workers.__main__
from docs.reference import openapi
from protocol.environment import SERVICE_VARIABLES, VARIABLES
from service.api.server import check_exposure
from service.settings import Settings
from tests.deploy.containers import (
    COMPOSE_FILE,
    PASSWORD,
    ROOT,
    command_of,
    compose,
    copies,
    environment_of,
    image_entrypoint,
    instructions,
    is_sent,
    last,
    mounts,
    ours,
    services,
    variables,
)

COMMAND_LINES = {"service": service.__main__.command_line, "workers": workers.__main__.command_line}


def tracked(folder: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def packages() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]


def test_all_that_is_copied_is_there_and_gets_past_the_ignored() -> None:
    sources = [source for copy in copies() for source in copy.sources]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    files = [path for source in sources for path in tracked(source)]
    assert [path for path in files if not is_sent(path)] == []


def test_nothing_else_is_sent() -> None:
    sources = {source for copy in copies() for source in copy.sources}
    assert {path.name for path in ROOT.iterdir() if is_sent(path.name)} == sources
    assert not is_sent("service/__pycache__/models.pyc")
    assert not is_sent("service/api/__pycache__")


def test_every_package_is_copied_under_its_own_name() -> None:
    folders = {copy.sources: copy.target for copy in copies()}
    assert {(name,): name for name in packages()}.items() <= folders.items()


def test_what_the_project_is_described_by_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert needed <= {source for copy in copies() for source in copy.sources}


def test_the_image_has_a_python_that_the_project_takes_and_ends_as_a_user_without_rights() -> None:
    assert re.fullmatch(r"python:3\.(1[1-9]|[2-9]\d)-slim", last("FROM"))
    user = last("USER")
    assert any(name == "RUN" and f"useradd --create-home --uid 10001 {user} " in rest for name, rest in instructions())


def test_the_compose_file_is_one_by_the_schema_of_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_refers_to_what_it_has() -> None:
    volumes = {name for found in services().values() for name in mounts(found).values()}
    assert volumes == set(compose()["volumes"])
    for found in services().values():
        for other, wanted in found.get("depends_on", {}).items():
            waits_for_health = wanted["condition"] == "service_healthy"
            assert waits_for_health == ("healthcheck" in services()[other])


def words_of(command: list[str]) -> Iterator[list[str]]:
    """The words after `python -P -m` of a container's command, those in a shell's script as well."""
    if command[: len(image_entrypoint())] == image_entrypoint():
        yield command[len(image_entrypoint()) :]
    else:
        shell, script = command[:2], command[2]
        assert shell == ["sh", "-euc"]
        yield from (found.split() for found in re.findall(r"python -P -m (.*?) >", script))


COMMANDS = {name: list(words_of(command_of(found))) for name, found in ours().items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_its_command_is_one_of_ours(name: str) -> None:
    assert COMMANDS[name]
    for program, *arguments in COMMANDS[name]:
        COMMAND_LINES[program]().parse_args(arguments)


def test_the_command_of_the_image_and_that_in_the_head_of_the_file_are_ours() -> None:
    said = re.findall(r"^#\s+docker compose run --rm api (.*)$", COMPOSE_FILE.read_text(), re.MULTILINE)
    for program, *arguments in [["service", "api"], *(found.split() for found in said)]:
        COMMAND_LINES[program]().parse_args(arguments)
    assert said
    assert last("CMD") == '["service", "api"]'


@pytest.mark.parametrize("name", ours())
def test_its_environment_is_one_that_the_service_takes(name: str) -> None:
    environment = environment_of(ours()[name])
    assert set(environment) <= set(SERVICE_VARIABLES)
    settings = Settings.from_environment(environment)
    check_exposure(settings)


def test_no_variable_that_a_person_sets_for_it_would_be_refused_by_the_service() -> None:
    assert [name for name in variables() if name.startswith("ERGON_") and name not in VARIABLES] == []


def test_the_database_is_the_one_that_the_file_starts() -> None:
    server = services()["postgres"]["environment"]
    for name, found in ours().items():
        if url := environment_of(found).get("ERGON_DATABASE_URL"):
            parts = urlsplit(url)
            assert (parts.hostname, parts.username, parts.password, parts.path) == (
                "postgres",
                server["POSTGRES_USER"],
                PASSWORD,
                f"/{server['POSTGRES_DB']}",
            ), name


def test_code_and_outputs_are_on_a_volume_that_api_and_cycle_share() -> None:
    shared = {mounts(ours()[name]).get(environment_of(ours()[name])["ERGON_DATA_DIR"]) for name in ("api", "cycle")}
    assert shared == {"store"}
    assert f"install -d -o {last('USER')} {last('WORKDIR')}" in " ".join(rest for _, rest in instructions())
    assert environment_of(ours()["api"])["ERGON_DATA_DIR"] == last("WORKDIR")


def test_addresses_within_the_file_lead_to_what_listens_there() -> None:
    api = ours()["api"]
    port = environment_of(api)["ERGON_PORT"]
    [check] = [urlsplit(url) for url in re.findall(r"http://[^']+", " ".join(api["healthcheck"]["test"]))]
    assert (check.hostname, str(check.port)) == ("127.0.0.1", port)
    paths = openapi()["paths"]
    assert isinstance(paths, dict)
    assert check.path in paths
    assert api["ports"] == [f"127.0.0.1:{port}:{port}"]
    for name in ("agent-1", "agent-2"):
        [words] = COMMANDS[name]
        options = workers.__main__.command_line().parse_args(words[1:])
        assert (options.server, options.address) == (f"http://api:{port}", name)
        assert services()[name]["hostname"] == name
        assert {str(Path(options.token_file).parent), str(options.state_dir)} <= mounts(services()[name]).keys()

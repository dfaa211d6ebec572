"""Settings from the environment: what is accepted arrives, what is not is named together with the remedy."""

from pathlib import Path

import pytest

from protocol.environment import SERVICE_VARIABLES
from service.settings import Settings, SettingsError, default_data_dir


def test_defaults_keep_to_loopback(tmp_path: Path) -> None:
    settings = Settings.from_environment({"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)})
    assert settings == Settings(data_dir=default_data_dir({"XDG_DATA_HOME": str(tmp_path)}))
    assert settings.host == "127.0.0.1"
    assert settings.database_url is None


def test_every_variable_has_its_setting() -> None:
    settings = Settings.from_environment(
        {
            "ERGON_DATA_DIR": "/srv/ergon",
            "ERGON_DATABASE_URL": "postgresql://me:secret@db/ergon",
            "ERGON_HOST": "::",
            "ERGON_PORT": "0",
            "ERGON_TLS_CERT": "/etc/ergon/tls.crt",
            "ERGON_TLS_KEY": "/etc/ergon/tls.key",
            "ERGON_INSECURE": "1",
            "ERGON_QUEUES": "research, production ,",
            "ERGON_PUE": "1.2",
            "ERGON_LEASE_S": "30",
            "ERGON_TICK_S": "0.5",
            "ERGON_STOP_GRACE_S": "0",
            "ERGON_MAX_ATTEMPTS": "7",
            "ERGON_POSTGRES_USER": "nobody",
        }
    )
    assert settings == Settings(
        data_dir=Path("/srv/ergon"),
        database_url="postgresql://me:secret@db/ergon",
        host="::",
        port=0,
        tls_cert=Path("/etc/ergon/tls.crt"),
        tls_key=Path("/etc/ergon/tls.key"),
        insecure=True,
        queues=("research", "production"),
        pue=1.2,
        lease_s=30.0,
        tick_s=0.5,
        stop_grace_s=0.0,
        max_attempts=7,
        postgres_user="nobody",
    )


def test_the_documented_variables_are_the_settings() -> None:
    assert {f"ERGON_{name}".upper() for name in Settings.model_fields} == set(SERVICE_VARIABLES)


def test_an_empty_variable_means_the_default() -> None:
    assert Settings.from_environment({"ERGON_PORT": "", "ERGON_QUEUES": ""}).queues == ("default",)


def test_variables_of_ranks_and_clients_and_of_others_are_let_be() -> None:
    Settings.from_environment({"ERGON_TOKEN": "x", "ERGON_JOB_ID": "job-1", "PORT": "no number", "ergon_port": "x"})


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ERGON_PROT", "1", "unknown environment variable ERGON_PROT; did you mean ERGON_PORT?"),
        ("ERGON_ZZZZZZZZZZ", "1", "unknown environment variable ERGON_ZZZZZZZZZZ; known are"),
        ("ERGON_PORT", "65536", "ERGON_PORT: Input should be less than or equal to 65535"),
        ("ERGON_PORT", "-1", "ERGON_PORT: Input should be greater than or equal to 0"),
        ("ERGON_PORT", "http", "ERGON_PORT: Input should be a valid integer"),
        ("ERGON_TLS_CERT", "/tls.crt", "set both ERGON_TLS_CERT and ERGON_TLS_KEY, or neither"),
        ("ERGON_TLS_KEY", "/tls.key", "set both ERGON_TLS_CERT and ERGON_TLS_KEY, or neither"),
        ("ERGON_INSECURE", "perhaps", "ERGON_INSECURE: Input should be a valid boolean"),
        ("ERGON_PUE", "0.9", "ERGON_PUE: Input should be greater than or equal to 1"),
        ("ERGON_PUE", "nan", "ERGON_PUE: "),
        ("ERGON_PRICE_PER_KWH", "-0.1", "ERGON_PRICE_PER_KWH: Input should be greater than or equal to 0"),
        ("ERGON_CURRENCY", "euro", "ERGON_CURRENCY: "),
        ("ERGON_LEASE_S", "inf", "ERGON_LEASE_S: Input should be less than or equal to 86400"),
        ("ERGON_LEASE_S", "0", "ERGON_LEASE_S: Input should be greater than or equal to 1"),
        ("ERGON_TICK_S", "0", "ERGON_TICK_S: Input should be greater than or equal to 0.1"),
        ("ERGON_STOP_GRACE_S", "-1", "ERGON_STOP_GRACE_S: Input should be greater than or equal to 0"),
        ("ERGON_MAX_ATTEMPTS", "0", "ERGON_MAX_ATTEMPTS: Input should be greater than or equal to 1"),
        ("ERGON_QUEUES", ", ,", "ERGON_QUEUES: Tuple should have at least 1 item"),
        ("ERGON_QUEUES", "good,not good", "ERGON_QUEUES: use letters, digits, dots"),
        ("ERGON_DATABASE_URL", "mysql://db/ergon", "ERGON_DATABASE_URL: must start with postgresql://"),
    ],
)
def test_what_cannot_be_used_is_named(variable: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({variable: value})
    assert says in str(refused.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"ERGON_PORT: .*; ERGON_PUE: "):
        Settings.from_environment({"ERGON_PORT": "x", "ERGON_PUE": "x"})
    with pytest.raises(SettingsError, match=r"ERGON_HOSTS.*; .*ERGON_PORTS"):
        Settings.from_environment({"ERGON_PORTS": "x", "ERGON_HOSTS": "x"})


def test_the_data_folder_of_root_is_the_systems_and_of_others_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_data_dir({"XDG_DATA_HOME": "/elsewhere"}) == Path("/var/lib/ergon")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_data_dir({"XDG_DATA_HOME": "/elsewhere"}) == Path("/elsewhere/ergon")
    assert default_data_dir({}) == Path.home() / ".local" / "share" / "ergon"

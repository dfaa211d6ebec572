"""Settings of the command line that cannot be used: one line that names the setting and the remedy, and code 2."""

import pytest

from workers.__main__ import main


@pytest.fixture
def arguments(tmp_path):
    """A command line that could be used if the service were there."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    return [
        *("--server", "http://127.0.0.1:1", "--name", "n1"),
        *("--token-file", str(token), "--state-dir", str(tmp_path / "state"), "--cpu-slots", "2"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpu-slots", "x"], "--cpu-slots"),
        (["--cpu-slots", "0"], "offer nothing"),
        (["--memory", "-1"], "--memory"),
        (["--disk-per-job", "0"], "--disk-per-job"),
        (["--starters", "-1"], "--starters"),
        (["--health-check", "/etc/passwd"], "--health-check"),
        (["--health-every", "0"], "--health-every"),
        (["--label", "rack"], "KEY=VALUE"),
        (["--server", "localhost"], "--server"),
        (["--name", "a b"], "--name"),
        (["--token-file", "/no/such"], "--token-file"),
        (["--sample-every", "0"], "--sample-every"),
        (["--state-dir", "/dev/null/x"], "--state-dir"),
    ],
)
def test_settings_that_cannot_be_used(arguments, caplog, options, message):
    assert main([*arguments, *options]) == 2
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert message in line
    assert "\n" not in line


def test_an_empty_token(arguments, caplog, tmp_path):
    (tmp_path / "token").write_text(" \n")
    assert main(arguments) == 2
    assert "holds no token" in caplog.text


def test_a_misspelt_variable(arguments, caplog, monkeypatch):
    monkeypatch.setenv("ERGON_SERVR", "http://127.0.0.1:1")
    assert main(arguments) == 2
    assert "did you mean ERGON_SERVER?" in caplog.text


@pytest.mark.parametrize("arguments", [[], ["--name", "n1"], ["--memory", "much"]])
def test_what_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage:" in capsys.readouterr().err

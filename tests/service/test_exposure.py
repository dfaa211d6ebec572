"""Where the API may listen: beyond loopback only with a certificate that can be used, or when told that it is safe."""

import shutil
import subprocess
from pathlib import Path

import pytest

from service.api.server import check_exposure
from service.settings import Settings, SettingsError

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs `openssl` to make certificates")


def certificate(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(key), "-out", str(crt), "-days", "2", "-subj", f"/CN={name}", *(options or ["-nodes"])]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_nothing(tmp_path: Path, host: str) -> None:
    check_exposure(Settings(data_dir=tmp_path, host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fd00::1", "ergon.example", "localhost.example"])
def test_every_other_address_needs_a_certificate_or_a_word(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match=f"ERGON_HOST {host} .* ERGON_TLS_CERT .* or set ERGON_INSECURE=1"):
        check_exposure(Settings(data_dir=tmp_path, host=host))
    check_exposure(Settings(data_dir=tmp_path, host=host, insecure=True))


@needs_openssl
def test_a_certificate_with_its_key_opens_the_network(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "one")
    check_exposure(Settings(data_dir=tmp_path, host="0.0.0.0", tls_cert=crt, tls_key=key))


@needs_openssl
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, host: str) -> None:
    crt, key = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "other")
    _, locked = certificate(tmp_path, "locked", "-passout", "pass:secret")
    empty = tmp_path / "empty.crt"
    empty.touch()
    for tls_cert, tls_key in ((crt, other), (crt, locked), (empty, key), (tmp_path / "none.crt", key)):
        with pytest.raises(SettingsError, match=r"ERGON_TLS_CERT .* and ERGON_TLS_KEY .* cannot be used together: .+"):
            check_exposure(Settings(data_dir=tmp_path, host=host, tls_cert=tls_cert, tls_key=tls_key))

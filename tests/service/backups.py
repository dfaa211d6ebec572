"""What tests of backups share."""

from service.blobs import open_blobs
from service.settings import Settings


def put_blob(settings: Settings, name: str, data: bytes) -> None:
    blobs = open_blobs(settings)
    file = blobs.create(name)
    blobs.write(file, data)
    blobs.close(file)


def get_blob(settings: Settings, name: str) -> bytes:
    return b"".join(open_blobs(settings).read(name))

"""The two references, made from the code: docs/api.md from the OpenAPI document, docs/commands.md from the command.

python -m docs.reference
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import create_engine

from docs import reference_api, reference_commands
from ergon.cli.main import app as command
from service.api.app import create_app
from service.api.deps import Parts
from service.api.hub import Hub
from service.ids import new_id
from service.settings import Settings
from service.tariff_source import TariffSource

FOLDER = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Both references as of now, by the file that holds them."""
    return {
        FOLDER / "api.md": reference_api.render(openapi()),
        FOLDER / "commands.md": reference_commands.render(command),
    }


def openapi() -> dict[str, object]:
    """The document of an API that no database stands behind: describing it asks for none."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        parts = Parts(
            engine=create_engine("postgresql+psycopg://"),
            settings=settings,
            tariffs=TariffSource(settings),
            hub=Hub(),
            now=lambda: datetime.now(UTC),
            new_id=new_id,
        )
        return create_app(parts).openapi()


def main() -> int:
    """Write both files."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

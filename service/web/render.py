"""Templates to answers. What other people wrote is escaped and made visible here, once, for every page."""

import hashlib
import re
import shlex
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from service.auth import Person
from service.web import units

ASSETS: dict[str, tuple[bytes, str]] = {
    name: ((files("service.web") / "static" / name).read_bytes(), media_type)
    for name, media_type in (
        ("ergon.css", "text/css"),
        ("ergon.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    )
}
"""Everything the pages load besides themselves, with its media type."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters but tab and newline, and marks that turn the direction of text: they can make it lie."""


def visible(value: object) -> object:
    """Text with every unseen character spelled out, such as `\\u202e`; anything else as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
    return value


def asset(name: str) -> str:
    """Address of an asset; it changes with the content, so that browsers may keep it for ever."""
    return f"/web/static/{name}?v={hashlib.sha256(ASSETS[name][0]).hexdigest()[:12]}"


def page(
    template: str, *, now: datetime | None = None, person: Person | None = None, status: int = 200, **values: object
) -> HTMLResponse:
    """A whole page.

    Args:
        now: the time that ages are counted from.
        person: who is signed in; without one the page has no navigation.
    """
    text = _environment.get_template(template).render(now=now, person=person, **values)
    return HTMLResponse(text, status)


def _environment_of_pages() -> Environment:
    environment = Environment(
        loader=PackageLoader("service.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        units.duration,
        units.age,
        units.moment,
        units.iso,
        units.energy,
        units.energy_kwh,
        units.power,
        units.size,
        units.percent,
        units.hours,
        units.number,
    ):
        environment.filters[function.__name__] = function
    environment.filters["shell"] = shlex.join
    environment.globals |= {"asset": asset, "version": version("ergon")}
    return environment


_environment = _environment_of_pages()

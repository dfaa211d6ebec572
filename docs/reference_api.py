"""An OpenAPI document as Markdown: operations by subject, then the messages they take and give."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from protocol.version import PROTOCOL_HEADER
from service.api.errors import WITH_TOKEN

Schema = Mapping[str, Any]

HEAD = """\
# HTTP API

Made by `python -m docs.reference` from the OpenAPI document, which a running service serves at `/openapi.json`; `/docs`
shows it for trying out. Do not edit.

Send `Authorization: Bearer TOKEN`. Times are in UTC with their offset, units are part of the names (`_s` seconds, `_j`
joules, `_w` watts, `_bytes`). Every listing pages: pass `next` of an answer as `cursor` of the next request.

Every answer with status 4xx or 5xx is `application/problem+json`, an [ErrorBody](#errorbody): `type` says which kind of
error it is, `detail` what happened and what to do about it. Values of another type, such as `"2"` for a number, and
unknown fields are refused. An unknown path is answered `404 urn:ergon:http-404`, a method that a path does not have
`405 urn:ergon:http-405` with `Allow`, a bug of the service `500 urn:ergon:internal`.
"""

CALLERS = {
    "person": "a user or an administrator",
    "node": "the agent of a node",
    "join": "whoever has a join token",
}
SUBJECTS = {
    "jobs": "Jobs",
    "archives": "Code and outputs",
    "nodes": "Nodes",
    "reports": "Reports",
    "cycles": "Planning cycles",
    "accounts": "People, tokens, join tokens",
    "service": "The service itself",
    "agent": "Agents",
}
ALWAYS = {f"urn:ergon:{kind}" for _, kind, _ in WITH_TOKEN}
METHODS = ("get", "head", "post", "put", "patch", "delete")


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    unknown = {operation["tags"][0] for _, _, operation in operations} - SUBJECTS.keys()
    if unknown:
        raise ValueError(f"name these tags in SUBJECTS: {', '.join(sorted(unknown))}")
    parts = [HEAD, _always()]
    for tag, subject in SUBJECTS.items():
        chosen = [entry for entry in operations if entry[2]["tags"][0] == tag]
        parts.append(f"## {subject}\n")
        parts += [_operation(*entry) for entry in sorted(chosen, key=lambda entry: (entry[1], METHODS.index(entry[0])))]
    parts.append("## Messages\n")
    parts += [_message(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return "\n".join(parts).rstrip() + "\n"


def _always() -> str:
    """The errors that every operation with a token may answer, told once."""
    lines = [
        "## Errors of every operation\n",
        "| Status | Type | |",
        "|---|---|---|",
        *(f"| {status} | `urn:ergon:{kind}` | {title}. |" for status, kind, title in sorted(WITH_TOKEN)),
        "",
        "Those below list only what comes on top of these. What needs no token never answers 401, 403 or 422.",
        f"426 comes to clients that send `{PROTOCOL_HEADER}` with a number that does not fit; others leave it out.",
        "",
    ]
    return "\n".join(lines)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", operation.get("description", operation["summary"]), ""]
    lines += [f"*Who:* {_who(operation)}.", ""]
    if parameters := operation.get("parameters"):
        lines += ["| Parameter | In | Type | |", "|---|---|---|---|", *map(_parameter, parameters), ""]
    if body := operation.get("requestBody"):
        lines += [f"*Body:* {_contents(body['content'])}.", ""]
    lines += ["| Status | Answer |", "|---|---|", *_answers(operation), ""]
    return "\n".join(lines)


def _who(operation: Mapping[str, Any]) -> str:
    needed = operation.get("security", [])
    if not needed:
        return "anybody, without a token"
    (kind, roles), *_ = needed[0].items()
    return "an administrator" if "admin" in roles else CALLERS[kind]


def _parameter(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    default = f", `{json.dumps(schema['default'])}` by default" if "default" in schema else ""
    place = parameter["in"] + ("" if parameter.get("required") else ", optional")
    text = parameter.get("description") or schema.get("description") or ""
    return f"| `{parameter['name']}` | {place} | {_type(schema)}{default} | {_cell(text)} |"


def _answers(operation: Mapping[str, Any]) -> Iterator[str]:
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        if status.startswith("2"):
            yield f"| {status} | {_contents(content) if content else 'no body'} |"
            continue
        if kinds := [kind for kind in _kinds(response) if kind not in ALWAYS]:
            yield f"| {status} | {', '.join(f'`{kind}`' for kind in kinds)} |"


def _kinds(response: Mapping[str, Any]) -> list[str]:
    """The `type`s of an error, as the document declares them."""
    schema = response.get("content", {}).get("application/problem+json", {}).get("schema", {})
    return [
        kind for part in schema.get("allOf", []) for kind in part.get("properties", {}).get("type", {}).get("enum", [])
    ]


def _contents(content: Mapping[str, Any]) -> str:
    return " or ".join(
        (_type(body["schema"]) if media == "application/json" else f"{_type(body['schema'])} as `{media}`")
        for media, body in content.items()
    )


def _message(name: str, schema: Schema) -> str:
    lines = [f"### {name}\n"]
    if text := schema.get("description"):
        lines += [text, ""]
    if "enum" in schema:
        lines += [", ".join(f"`{value}`" for value in schema["enum"]) + ".", ""]
    if fields := schema.get("properties"):
        required = schema.get("required", [])
        lines += ["| Field | Type | |", "|---|---|---|"]
        lines += [_field(field, inner, required=field in required) for field, inner in fields.items()]
        lines.append("")
    if example := next(iter(schema.get("examples", [])), None):
        lines += ["```json", json.dumps(example, indent=2), "```", ""]
    return "\n".join(lines)


def _field(name: str, schema: Schema, *, required: bool) -> str:
    default = f", `{json.dumps(schema['default'])}` by default" if schema.get("default") is not None else ""
    optional = "" if required or default else ", optional"
    return f"| `{name}` | {_type(schema)}{default}{optional} | {_cell(schema.get('description', ''))} |"


def _type(schema: Schema) -> str:
    """A schema in words, with its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    parts = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if parts:
        return " or ".join(dict.fromkeys(map(_type, parts)))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    return _plain(schema)


def _plain(schema: Schema) -> str:
    match schema.get("type", "anything"):
        case "array":
            return f"list of {_type(schema.get('items', {}))}{_limits(schema, 'minItems', 'maxItems')}"
        case "object":
            inner = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
            return f"object of {_type(inner)}" if isinstance(inner, Mapping) else "object"
        case "string":
            return schema.get("format", "text") + _limits(schema, "minLength", "maxLength")
        case word:
            return word + _limits(schema, "minimum", "maximum")


def _limits(schema: Schema, least: str, most: str) -> str:
    low, high = schema.get(least), schema.get(most)
    if low is None and high is None:
        return ""
    return f" ({'' if low is None else low}..{'' if high is None else high})"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")

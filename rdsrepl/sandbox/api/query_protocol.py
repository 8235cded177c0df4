"""The query protocol of AWS: parses requests by their input shape and writes responses by their output shape.

A request is a form with ``Action``, ``Version`` and the parameters. Their names are flattened with dots, and list items
are numbered from 1 (``Parameters.Parameter.1.ParameterName``). A response is XML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from rdsrepl.sandbox.api import service_model
from rdsrepl.sandbox.api.api_errors import Fault, fault

if TYPE_CHECKING:
    from botocore.model import Shape

CONTENT_TYPE: Final = "text/xml"

# Characters that XML 1.0 does not allow.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BOOLEANS: Final = {"true": True, "false": False, "1": True, "0": False}
_MAX_FIELDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        operation: the name in the model.
        parameters: the parameters that were sent, converted by the input shape.
    """

    operation: str
    parameters: Mapping[str, Any]


def read(body: bytes) -> Request:
    """Parse a request.

    Raises:
        Fault: the operation or a parameter does not exist, a required one is missing, or a value has the wrong type.
    """
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as exc:
        raise fault("MalformedQueryString", "The query string contains a syntax error.") from exc
    tree: dict[str, Any] = {}
    for name, value in fields:
        if _NOT_XML.search(value):
            raise fault("MalformedInput", f"The value of {_printable(name)} contains characters that are not allowed.")
        _insert(tree, name, value)
    action, version = tree.pop("Action", None), tree.pop("Version", service_model.VERSION)
    if not isinstance(action, str) or not action:
        raise fault("MissingParameter", "The request must contain the parameter Action.")
    operation = service_model.operation(action)
    if operation is None or version != service_model.VERSION:
        raise fault("InvalidAction", f"Could not find operation {_printable(action)} for version {version}")
    shape = operation.input_shape
    if shape is None:
        return Request(action, {})
    return Request(action, _read(shape, tree, ""))


def write(operation: str, result: Mapping[str, Any], request_id: str) -> bytes:
    """Return the response of an operation.

    Raises:
        TypeError: a member is not in the output shape, or its value has another type.
    """
    modelled = service_model.operation(operation)
    shape = modelled.output_shape if modelled is not None else None
    parts = [f'<{operation}Response xmlns="{service_model.NAMESPACE}">']
    if shape is not None:
        wrapper = shape.serialization.get("resultWrapper", f"{operation}Result")
        parts.append(f"<{wrapper}>")
        _write_members(shape, result, parts)
        parts.append(f"</{wrapper}>")
    elif result:
        raise TypeError(f"{operation} has no result, but got {sorted(result)}")
    parts.append(f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{operation}Response>")
    return "".join(parts).encode()


def write_error(error: Fault, request_id: str) -> bytes:
    """Return an error response."""
    sender = "Receiver" if error.status >= 500 else "Sender"
    return (
        f'<ErrorResponse xmlns="{service_model.NAMESPACE}"><Error><Type>{sender}</Type>'
        f"<Code>{escape(error.code)}</Code><Message>{escape(_printable(error.message))}</Message></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()


def _insert(tree: dict[str, Any], name: str, value: str) -> None:
    *path, leaf = name.split(".")
    for word in path:
        branch = tree.setdefault(word, {})
        if not isinstance(branch, dict):
            raise fault("MalformedInput", f"Unexpected complex element {_printable(name)}")
        tree = branch
    if leaf in tree:
        raise fault("MalformedInput", f"Found {_printable(name)} more than once")
    tree[leaf] = value


def _read(shape: Shape, value: Any, where: str) -> Any:
    if shape.type_name == "structure":
        return _read_structure(shape, value, where)
    if shape.type_name == "list":
        return _read_list(shape, value, where)
    if shape.type_name == "map":
        return _read_map(shape, value, where)
    if not isinstance(value, str):
        raise fault("MalformedInput", f"Unexpected complex element {where}")
    return _read_scalar(shape, value, where)


def _read_structure(shape: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise fault("MalformedInput", f"Expected a structure for {where}")
    names = {member.serialization.get("name", name): name for name, member in shape.members.items()}
    if unknown := sorted(value.keys() - names.keys()):
        raise fault("ValidationError", f"Unknown parameter {_printable(_join(where, unknown[0]))}")
    read = {names[key]: _read(shape.members[names[key]], item, _join(where, key)) for key, item in value.items()}
    for name in shape.required_members:
        if name not in read or read[name] == "":
            raise fault("MissingParameter", f"The request must contain the parameter {_join(where, name)}.")
    return read


def _read_list(shape: Any, value: Any, where: str) -> list[Any]:
    if value == "":
        return []
    if not isinstance(value, dict):
        raise fault("MalformedInput", f"Expected a list for {where}")
    if not shape.serialization.get("flattened"):
        # Some clients always write `member`, and RDS accepts it.
        name = next((n for n in (shape.member.serialization.get("name"), "member") if n in value), None)
        if name is None or len(value) > 1 or not isinstance(value[name], dict):
            raise fault("MalformedInput", f"Unexpected list element in {where}")
        value, where = value[name], f"{where}.{name}"
    if not all(key.isdecimal() and key.isascii() for key in value):
        raise fault("MalformedInput", f"Key of {where} is not a number")
    return [_read(shape.member, value[key], f"{where}.{key}") for key in sorted(value, key=int)]


def _read_map(shape: Any, value: Any, where: str) -> dict[str, Any]:
    entries = value.get("entry") if isinstance(value, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise fault("MalformedInput", f"Expected a map for {where}")
    return {
        str(entry.get("key", "")): _read(shape.value, entry.get("value", ""), f"{where}.entry")
        for entry in entries.values()
    }


def _read_scalar(shape: Shape, value: str, where: str) -> Any:
    try:
        if shape.type_name in ("integer", "long"):
            if not re.fullmatch(r"[+-]?[0-9]{1,19}", value):
                raise ValueError(value)
            return int(value)
        if shape.type_name in ("float", "double"):
            return float(value)
        if shape.type_name == "boolean":
            return _BOOLEANS[value.lower()]
        if shape.type_name == "timestamp":
            read = datetime.fromisoformat(value)
            return read if read.tzinfo is not None else read.replace(tzinfo=UTC)
    except (ValueError, KeyError):
        message = f"Invalid {shape.type_name} value '{_printable(value)}' for {where}"
        raise fault("MalformedInput", message) from None
    return value


def _write_members(shape: Any, value: Mapping[str, Any], parts: list[str]) -> None:
    members = shape.members
    if unknown := value.keys() - members.keys():
        raise TypeError(f"{shape.name} has no {sorted(unknown)}")
    for name, member in members.items():
        if (item := value.get(name)) is not None:
            _write(member, member.serialization.get("name", name), item, parts)


def _write(shape: Any, tag: str, value: Any, parts: list[str]) -> None:
    kind = shape.type_name
    if kind == "structure":
        parts.append(f"<{tag}>")
        _write_members(shape, value, parts)
        parts.append(f"</{tag}>")
    elif kind == "list":
        if isinstance(value, str):
            raise TypeError(f"{tag} is a list, but got {value!r}")
        flat = shape.serialization.get("flattened")
        item_tag = shape.member.serialization.get("name", tag if flat else "member")
        if not flat:
            parts.append(f"<{tag}>")
        for item in value:
            _write(shape.member, item_tag, item, parts)
        if not flat:
            parts.append(f"</{tag}>")
    elif kind == "map":
        entries = (
            f"<entry><key>{escape(key)}</key><value>{escape(str(item))}</value></entry>" for key, item in value.items()
        )
        parts.append(f"<{tag}>{''.join(entries)}</{tag}>")
    else:
        parts.append(f"<{tag}>{_scalar(kind, tag, value)}</{tag}>")


def _scalar(kind: str, tag: str, value: Any) -> str:
    if kind == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if kind == "timestamp" and isinstance(value, datetime | str):
        if isinstance(value, str):  # from a record in the store
            value = datetime.fromisoformat(value)
        time: datetime = value
        return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if kind in ("integer", "long", "float", "double") and isinstance(value, int | float):
        return str(value)
    if kind == "string" and isinstance(value, str):
        return escape(_printable(value))
    raise TypeError(f"{tag} is of type {kind}, but got {value!r}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _printable(text: str) -> str:
    return _NOT_XML.sub("?", text)

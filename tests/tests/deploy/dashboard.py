"""Reads a dashboard by Grafana's own models of it, and prints what they do not know or take for something else."""

import enum
import json
import sys
import typing

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(written, read, path):
    """What is written and was not read: its name is unknown there."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key in read:
                yield from lost(value, read[key], f"{path}.{key}")
            elif value is not None:
                yield f"{path}.{key}: not known"
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for place, (one, other) in enumerate(zip(written, read)):
            yield from lost(one, other, f"{path}[{place}]")
    elif written != read:
        yield f"{path}: {written!r} is read as {read!r}"


def misfits(value, hint, path):
    """Values that are not what the model says they are."""
    if hasattr(value, "to_json"):
        for name, inner in typing.get_type_hints(type(value)).items():
            yield from misfits(getattr(value, name), inner, f"{path}.{name}")
        return
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Union:
        found = [list(misfits(value, one, path)) for one in inner]
        if all(found):
            yield from found[0]
    elif kind is list and isinstance(value, list):
        for place, one in enumerate(value):
            yield from misfits(one, inner[0], f"{path}[{place}]")
    elif kind is typing.Literal:
        if value not in inner:
            yield f"{path}: {value!r} is none of {inner}"
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [one.value for one in hint]:
            yield f"{path}: {value!r} is none of {[one.value for one in hint]}"
    elif hint is not typing.Any and hint is not object:
        # A number may be written whole, and a model that was not read is a map still.
        usual = {float: (int, float), int: int, str: str, bool: bool}.get(hint, kind or dict)
        usual = type(None) if hint is type(None) else usual
        if not isinstance(value, usual) or (isinstance(value, bool) and hint in (int, float)):
            yield f"{path}: {value!r} is not of {hint}"


register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    source = json.load(file)
dashboard = Dashboard.from_json(source)
faults = list(lost(source, json.loads(JSONEncoder(indent=None).encode(dashboard)), "$"))
faults += misfits(dashboard, Dashboard, "$")
print("\n".join(faults))
sys.exit(1 if faults else 0)

"""The bodies that RunPod's REST v2 takes, as a table, and the check of one against it, in RunPod's words. Knows no meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

POD_ID = r"[A-Za-z0-9_-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a value must be."""

    kind: str
    """string, integer, boolean, array, object; map: an object of strings under any name."""
    pattern: str = ""
    minimum: int | None = None
    items: Shape | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    required: tuple[str, ...] = ()


TEXT = Shape(kind="string")
NAME = Shape(kind="string", pattern=r"(?s).{1,191}")
FLAG = Shape(kind="boolean")
CUDA = Shape(kind="string", pattern=r"\d+\.\d+")
COUNT = Shape(kind="integer", minimum=1)
WORDS = Shape(kind="array", items=TEXT)
GPU = Shape(
    kind="object",
    required=("id",),
    fields={
        "id": TEXT, "count": COUNT, "minCudaVersion": CUDA, "allowedCudaVersions": Shape(kind="array", items=CUDA),
        "minRamPerGpu": COUNT, "minVcpuCountPerGpu": COUNT,
    },
)  # fmt: skip
CPU = Shape(kind="object", required=("id", "vcpuCount"), fields={"id": TEXT, "vcpuCount": COUNT})
MOUNTS = Shape(
    kind="object",
    fields={
        "persistent": Shape(kind="object", required=("size", "path"), fields={"size": Shape(kind="integer", minimum=10), "path": TEXT}),
        "network": Shape(kind="array", items=Shape(kind="object", required=("volumeId", "path"), fields={"volumeId": TEXT, "path": TEXT})),
    },
)
CONTAINER = {
    "image": TEXT, "args": TEXT, "disk": COUNT, "env": Shape(kind="map", items=TEXT), "registry": TEXT, "mounts": MOUNTS, "name": NAME,
    "ports": Shape(kind="array", items=Shape(kind="string", pattern=r"\d{1,5}/(tcp|http)")), "globalNetworking": FLAG, "templateId": TEXT,
}  # fmt: skip
PLACE = {"cloud": Shape(kind="string", pattern="SECURE|COMMUNITY"), "cpu": CPU, "gpu": GPU, "dataCenterIds": WORDS}
NEWER = {"cmd": WORDS, "entrypoint": WORDS}
BODIES = {
    "create": Shape(
        kind="object",
        required=("name", "image"),
        fields=CONTAINER | NEWER | PLACE | {"startJupyter": FLAG, "startSsh": FLAG},
    ),
    "update": Shape(kind="object", fields=CONTAINER | NEWER | {"locked": FLAG}),
    "action": Shape(kind="object", required=("action",), fields={"action": Shape(kind="string", pattern="start|stop|restart|terminate")}),
    "keys": Shape(kind="object", required=("keys",),
                  fields={"keys": Shape(kind="array", items=Shape(kind="string", pattern=r"(ssh|ecdsa|sk)-\S+ \S+([ \t][^\n\r]*)?"))}),
}  # fmt: skip

_KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "map": dict}


def validated(body: Mapping[str, Any], kind: str, *, older: bool = False) -> list[str]:
    """What is wrong with the body, one line a mistake; empty: nothing."""
    errors = list(_errors(body, BODIES[kind], "$"))
    if older:
        errors += [f"$: additional properties '{name}' not allowed" for name in NEWER if name in body]
    return [one for one in errors if not (one == "$: missing property 'image'" and "templateId" in body)]


def _errors(value: Any, shape: Shape, at: str) -> Iterator[str]:
    is_so: bool = isinstance(value, _KINDS[shape.kind]) and not (shape.kind == "integer" and isinstance(value, bool))
    if not is_so:
        yield f"{at}: got {type(value).__name__}, want {shape.kind}"
        return
    if shape.pattern and not re.fullmatch(shape.pattern, value):
        yield f"{at}: {value[:60]!r} does not match the pattern"
    if shape.minimum is not None and value < shape.minimum:
        yield f"{at}: minimum: got {value}, want {shape.minimum}"
    if shape.kind == "array" and shape.items:
        for index, one in enumerate(value):
            yield from _errors(one, shape.items, f"{at}[{index}]")
    if shape.kind == "map" and shape.items:
        for name, one in value.items():
            yield from _errors(one, shape.items, f"{at}.{name}")
    if shape.kind == "object":
        yield from (f"{at}: missing property '{name}'" for name in shape.required if name not in value)
        yield from (f"{at}: additional properties '{name}' not allowed" for name in value if name not in shape.fields)
        for name, one in value.items():
            if name in shape.fields:
                yield from _errors(one, shape.fields[name], f"{at}.{name}")

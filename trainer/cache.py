"""Latents and text embeddings, made once and found again by what they were made from.

A cache file's name is the hash of everything that decides its content: the picture's bytes, how it is cut,
the VAE's weights; the caption, the tokenizer's ids and the text encoder's weights. So a changed picture at
the same path and size is a new address, and nothing stale can be used. A file says at which address it belongs and
what its tensors hash to: one that was cut off, mixed up with another or spoilt by its disk is made anew. Shared by all
jobs of a session.

The VAE gives a distribution; its mean is kept. Stable Diffusion's posterior is nearly a point (its deviation
is in the order of a thousandth of the latents'), so a draw adds noise but no information, and the mean needs
no random stream.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .files import write_atomically

_ADDRESS = re.compile(r"^[0-9a-f]{64}$")


def address(*facts: object) -> str:
    """Where the result of these facts lies."""
    sha = hashlib.sha256()
    for fact in facts:
        text = fact if isinstance(fact, bytes) else str(fact).encode()
        sha.update(f"{len(text)}:".encode() + text)
    return sha.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """A folder of tensors by address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        self.found = 0

    def get(self, kind: str, where: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor at this address, made now if it is not there or cannot be read."""
        return self.get_named(kind, where, lambda: {"value": make()}, ("value",))["value"]

    def get_named(self, kind: str, where: str, make: Callable[[], dict[str, Tensor]], names: Collection[str] = ()) -> dict[str, Tensor]:
        """The tensors at this address, at least these; made now if they are not there, not whole, or others than these."""
        assert _ADDRESS.match(where)
        path = self.folder / kind / f"{where}.safetensors"
        values = _whole(path, f"{kind}/{where}")
        if values is not None and values and set(names) <= values.keys():
            self.found += 1
            return values
        values = {name: value.detach().cpu().contiguous() for name, value in make().items()}
        write_atomically(path, _signed(values, f"{kind}/{where}"), durable=False)
        self.made += 1
        return values


def _signed(values: dict[str, Tensor], place: str) -> bytes:
    """A file that says where it belongs, and by what its tensors are known."""
    written: bytes = save_tensors(values, {"place": place, "sha256": _content(*_split(save_tensors(values)))})
    return written


def _whole(path: Path, place: str) -> dict[str, Tensor] | None:
    """What a file of this place holds; None when it is not what was written there."""
    try:
        data = path.read_bytes()
        head, body = _split(data)
        facts = head.pop("__metadata__")
        if facts["place"] != place or facts["sha256"] != _content(head, body):
            return None
        values: dict[str, Tensor] = load_tensors(data)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, struct.error):
        return None
    return values


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file: eight bytes say how long the header is."""
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _content(head: dict[str, Any], body: bytes) -> str:
    """By what the tensors are known: their bytes, and what the header says of them."""
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode() + body).hexdigest()

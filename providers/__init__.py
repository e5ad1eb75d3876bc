"""GPU clouds behind one contract. Get one by name with `load`; only the one asked for is imported."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from .base import Provider

PROVIDERS = {
    "local": "providers.sandbox.local:Local",
    "runpod": "providers.runpod:RunPod",
    "sandbox": "providers.sandbox.provider:Sandbox",
    "ssh": "providers.ssh:SSH",
    "vast": "providers.vast:Vast",
}
"""The word in `machine.providers` -> where its class is. Add a line for a new file; a test compares the two."""


def load(name: str) -> Provider:
    """The provider of that name, set up from the environment. `ValueError` when there is none of that name."""
    if name not in PROVIDERS:
        raise ValueError(f"unknown provider {name!r}; there are {', '.join(sorted(PROVIDERS))}")
    module, _, cls = PROVIDERS[name].partition(":")
    return cast("Provider", getattr(import_module(module), cls).from_env())

"""GPU clouds behind one contract. Get one by name with `load`; only the one asked for is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from .base import Provider
from .keys import ApiKey

PROVIDERS = {
    "local": "providers.sandbox.local:Local",
    "runpod": "providers.runpod:RunPod",
    "sandbox": "providers.sandbox.provider:Sandbox",
    "ssh": "providers.ssh:SSH",
    "tensordock": "providers.tensordock:TensorDock",
    "vast": "providers.vast:Vast",
}
"""The word in `machine.providers` -> where its class is. Add a line for a new file; a test compares the two."""


def load(name: str, kept: Callable[[str, str], str] = lambda _name, _address: "") -> Provider:
    """The provider of that name, set up from the environment. `ValueError` when there is none of that name.

    `kept`: gives the key that is kept here for a cloud and an address; asked only where the environment has none.
    """
    api_key = api_key_of(name)
    if api_key is None:
        return cast("Provider", _class_of(name).from_env())
    return with_key(name, api_key.given(os.environ) or kept(name, api_key.address(os.environ)))


def with_key(name: str, key: str) -> Provider:
    """The provider of that name with this key, whatever the environment has."""
    return cast("Provider", _class_of(name).from_env(key))


def api_key_of(name: str) -> ApiKey | None:
    """What there is to know of the key that this cloud wants; None where there is no account."""
    return getattr(_class_of(name), "api_key", None)


def _class_of(name: str) -> Any:
    if name not in PROVIDERS:
        raise ValueError(f"unknown provider {name!r}; there are {', '.join(sorted(PROVIDERS))}")
    module, _, cls = PROVIDERS[name].partition(":")
    return getattr(import_module(module), cls)

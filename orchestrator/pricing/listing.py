"""The market as a list: which clouds were asked and which not, and what fits, cheapest first. Rents nothing, plans nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import providers
from orchestrator.errors import UsageError
from orchestrator.plan import why_not
from orchestrator.setup.accounts import wanting_keys, with_keys
from orchestrator.setup.credentials import KeyStore
from orchestrator.trip import Tools
from providers.base import Offer, Requirements
from providers.errors import ProviderError

from .gpus import GPUS

OWN = "ssh"
"""Machines of yours cost nothing and need no key: they are asked when nobody is named; without any they say nothing."""
PRACTICE = "sandbox"
"""Asked when it is named, or when there is nobody else: its dollars are make-believe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What is for rent."""

    offers: tuple[Offer, ...]
    """That fit, cheapest first."""
    disk_gib: int
    """The disk that is in the price."""
    missing: Mapping[str, str]
    """Provider -> why it is not in here."""
    left_out: Mapping[str, int]
    """Reason -> how many offers do not fit for it."""


def to_ask(named: Collection[str], store: KeyStore) -> tuple[list[str], dict[str, str]]:
    """Whom to ask, and whom not and why. Raises `UsageError` for a provider that there is not."""
    if unknown := [name for name in named if name not in providers.PROVIDERS]:
        raise UsageError(f"there is no provider {unknown[0]!r}", hint=f"there are: {', '.join(sorted(providers.PROVIDERS))}")
    if named:
        return list(dict.fromkeys(named)), {}
    keyed = with_keys(store)
    keyless = {name: f"no key; lorry login {name}" for name in wanting_keys() if name not in keyed}
    return [*keyed, OWN, *([] if keyed else [PRACTICE])], keyless


def listing(
    names: Collection[str], wanted: Requirements, tools: Tools, *, missing: Mapping[str, str], quiet: Collection[str] = ()
) -> Listing:
    """Ask them all. One's trouble is told and does not hide the others; when all are in trouble it is raised. `quiet`: not told of."""
    found: list[Offer] = []
    told, trouble = dict(missing), None
    for name in names:
        try:
            found += tools.provider(name).offers(wanted)
        except ProviderError as err:
            told[name], trouble = str(err), err
    if trouble is not None and not set(names) - set(told):
        raise trouble
    for name in quiet:
        told.pop(name, None)
    reasons = {id(offer): why_not(offer, wanted) for offer in found}
    fitting = [offer for offer in found if not reasons[id(offer)]]
    fitting.sort(key=lambda offer: (offer.prices.usd_per_hour(wanted.disk_gib), offer.gpu_name, offer.id))
    return Listing(
        offers=tuple(fitting), disk_gib=wanted.disk_gib, missing=told, left_out=Counter(reason for reason in reasons.values() if reason)
    )


def cards(texts: Collection[str]) -> frozenset[str]:
    """GPU names as the field writes them, from what a person types: `4090`, `rtx-4090`. A name that is not known stays as it is."""
    return frozenset(name for text in texts for name in _cards(text))


def _cards(text: str) -> list[str]:
    typed = _folded(text)
    same = [name for name in GPUS if _folded(name) == typed]
    return same or [name for name in GPUS if typed and typed in _folded(name)] or [text]


def _folded(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def as_json(offer: Offer, disk_gib: int) -> dict[str, Any]:
    """An offer with every part of its price, in dollars per hour and dollars per GiB."""
    prices = offer.prices
    return {
        "provider": offer.provider,
        "id": offer.id,
        "machine": offer.machine_id,
        "gpu": offer.gpu_name,
        "vram_gib": offer.vram_gib,
        "usd_per_hour": _usd(prices.usd_per_hour(disk_gib)),
        "disk_gib": disk_gib,
        "gpu_usd_per_hour": _usd(prices.gpu_usd_per_hour),
        "disk_usd_per_gib_hour": _usd(prices.disk_usd_per_gib_hour),
        "upload_usd_per_gib": _usd(prices.upload_usd_per_gib),
        "download_usd_per_gib": _usd(prices.download_usd_per_gib),
        "down_mbit_s": offer.down_mbit_s,
        "up_mbit_s": offer.up_mbit_s,
        "reliability": offer.reliability,
        "verified": offer.verified,
        "data_center": offer.secure,
        "region": offer.region,
        "interruptible": offer.interruptible,
    }


def _usd(amount: Decimal) -> float:
    return float(round(amount, 9))

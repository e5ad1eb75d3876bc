"""The market as a person reads it: one line an offer, every part of its price, as much as the terminal is wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from orchestrator import console
from orchestrator.pricing.listing import Listing
from providers.base import Offer


class Column(NamedTuple):
    """One column, and from which width of the terminal on it is shown."""

    title: str
    words: Callable[[Offer, int], str]
    justify: Literal["left", "right"] = "right"
    from_width: int = 0


COLUMNS = (
    Column("GPU", lambda offer, _: offer.gpu_name + (" *" if offer.interruptible else ""), "left"),
    Column("GiB", lambda offer, _: f"{offer.vram_gib:g}"),
    Column("$/h", lambda offer, disk: f"{offer.prices.usd_per_hour(disk):.3f}"),
    Column("= GPU", lambda offer, _: f"{offer.prices.gpu_usd_per_hour:.3f}", from_width=56),
    Column("+ disk", lambda offer, disk: f"{offer.prices.disk_usd_per_gib_hour * disk:.3f}", from_width=56),
    Column("to it", lambda offer, _: f"{offer.prices.upload_usd_per_gib:.3f}", from_width=72),
    Column("home", lambda offer, _: f"{offer.prices.download_usd_per_gib:.3f}", from_width=72),
    Column("reliable", lambda offer, _: f"{offer.reliability:.1%}", from_width=64),
    Column("Mbit/s", lambda offer, _: f"{offer.down_mbit_s:.0f}/{offer.up_mbit_s:.0f}" if offer.down_mbit_s else "-", from_width=110),
    Column("where", lambda offer, _: f"{offer.provider} {offer.region}".strip(), "left"),
    Column("offer", lambda offer, _: offer.id, "left", from_width=110),
)
"""In this order. Dollars an hour, and dollars a GiB for what is sent to the machine and what comes home."""


def show_offers(found: Listing, *, most: int) -> None:
    """The table on stdout; what it is, and what is not in it, on stderr."""
    width = console.width()
    table = Table(box=None, pad_edge=False)
    columns = [column for column in COLUMNS if column.from_width <= width]
    for column in columns:
        table.add_column(column.title, justify=column.justify, no_wrap=True, overflow="ellipsis")
    for offer in found.offers[:most]:
        words = (column.words(offer, found.disk_gib) for column in columns)
        table.add_row(*(Text(console.plain(word, most=60)) for word in words))  # a market's text is no markup of ours
    if found.offers:
        console.show(table, data=True)
    for line in _notes(found, most=most):
        console.talk(line)


def _notes(found: Listing, *, most: int) -> list[str]:
    lines = []
    if found.offers:
        lines.append(f"$/h: with {found.disk_gib} GiB of disk; to it, home: dollars a GiB sent and fetched")
    if any(offer.interruptible for offer in found.offers[:most]):
        lines.append("* may be taken away by a higher bid; the price is a bid of now")
    if len(found.offers) > most:
        lines.append(f"the cheapest {most} of {len(found.offers)}; --limit shows more")
    if found.left_out:
        lines.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in found.left_out.items()))
    return lines + [f"{name} is not in it: {why}" for name, why in found.missing.items()]

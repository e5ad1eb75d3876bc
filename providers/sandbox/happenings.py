"""What happens to a market that no customer asked for: others bid, hosts go and come back, prices move, contracts end.

Told by tests, through `PUT /sandbox/happenings` with the admin key. Knows no cloud.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from .cards import Card
from .market import Market
from .rentals import MarketError, Rental

What = Literal[
    "outbid",
    "floor",
    "price",
    "announce",
    "offer_price",
    "offline",
    "online",
    "expire",
    "stuck",
    "exit",
    "ports_late",
    "limits",
    "card",
    "line",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event. `machine` is an instance's id, `offer` an offer's; which of the rest counts, the event says."""

    what: What
    machine: str = ""
    offer: str = ""
    usd_per_hour: Decimal | None = None
    seconds: float = 0.0
    scale: float = 1.0
    card: Card | None = None


def happen(market: Market, happening: Happening) -> None:
    """Let it happen, and let the market act on it.

    outbid: somebody bids more than the machine's tenant. floor: the least bid for `offer` is now this. price: the machine's GPU costs
    this from now on. announce: its host asks for this price. offer_price: the offer costs this from now on. offline, online: its host is
    off the net, and back. expire: its contract ends now. stuck: it, or the next one that is rented, boots for ever. exit: its init ends.
    ports_late: addresses come so many seconds after `running`, from now on. limits: rate limits are so many times as strict as
    documented; 0 ends them. card: machines rented from `offer` from now on have this card, whatever is offered; without an offer, the
    next machine that is rented. line: theirs lets `scale` bytes a second through each way.
    """
    if happening.what == "limits":
        market.limits.scale = happening.scale
    elif happening.what == "ports_late":
        market.boot = replace(market.boot, ports_late_s=happening.seconds)
    elif happening.what == "floor":
        market.state.floors[happening.offer] = _usd(happening)
    elif happening.what == "offer_price":
        market.state.gpu_prices[happening.offer] = _usd(happening)
    elif happening.what == "card":
        if happening.card is None:
            raise MarketError(422, "invalid_request", "card needs a card")
        market.state.cards[happening.offer] = happening.card
    elif happening.what == "line":
        market.state.lines[happening.offer] = happening.scale
    elif happening.what == "stuck" and not happening.machine:
        market.state.stuck_next = True
    else:
        _to_machine(market, happening, _rental(market, happening.machine))
    market.tick()


def _to_machine(market: Market, happening: Happening, rental: Rental) -> None:
    me = rental.account, rental.id
    match happening.what:
        case "outbid":
            bid = rental.terms.bid_usd_per_hour
            if bid is None:
                raise MarketError(422, "invalid_request", f"instance {rental.id} is not interruptible")
            market.state.floors[rental.offer.id] = happening.usd_per_hour or bid * 2
        case "price":
            market.reprice(*me, _usd(happening))
        case "announce":
            market.update(*me, announced_usd_per_hour=_usd(happening))
        case "offline" | "online":
            market.lose_host(*me, lost=happening.what == "offline")
        case "expire":
            market.update(*me, terms=replace(rental.terms, ends_at=market.now()))
        case "stuck":
            market.update(*me, stuck=True)
        case "exit":
            market.machines.end(rental.id, rental.mark)
        case _:
            raise AssertionError(happening.what)


def _usd(happening: Happening) -> Decimal:
    if happening.usd_per_hour is None:
        raise MarketError(422, "invalid_request", f"{happening.what} needs usd_per_hour")
    return happening.usd_per_hour


def _rental(market: Market, id_: str) -> Rental:
    for rental in market.state.rentals:
        if rental.id == id_:
            return rental
    raise MarketError(404, "no_such_instance", f"there is no instance {id_}")

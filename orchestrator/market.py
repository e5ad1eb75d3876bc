"""What is for rent now: every provider's offers in one plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from providers.base import Offer, Requirements
from providers.errors import ProviderError

from .order import Order
from .plan import Load, Plan, make_plan
from .pricing.worst import guardable
from .trip import Tools


def market(
    order: Order, tools: Tools, *, load: Load, spent_usd: Decimal, avoid: Iterable[tuple[str, str]] = (), steady: bool = False
) -> Plan:
    """What could be rented now for what is left of this order, without machines that failed any run of this computer lately.

    `avoid`: machines that this run has lost. `steady`: only what nobody can outbid.
    """
    wanted = replace(order.requirements, interruptible=order.requirements.interruptible and not steady)
    found = offers(order.providers, wanted, tools)
    found = found if order.unguarded else guardable(found, tools)
    bad = {*tools.memory.bad(tools.clock.now()), *avoid}
    taught = tools.measured.lessons().about(order.image)
    return make_plan(load, found, wanted, cap_usd=order.cap_usd, spent_usd=spent_usd, avoid=bad, prefer=order.prefer, taught=taught)


def offers(names: Iterable[str], wanted: Requirements, tools: Tools) -> list[Offer]:
    """Every provider's offers. One provider's trouble is said and does not hide the others; all in trouble raises the last."""
    found: list[Offer] = []
    trouble: ProviderError | None = None
    answered = False
    for name in names:
        try:
            found += tools.provider(name).offers(wanted)
            answered = True
        except ProviderError as err:
            tools.view.say(f"{name}: {err}")
            trouble = err
    if not answered and trouble is not None:
        raise trouble
    return found

"""What may be paid at worst, said before anything is rented; and machines that nobody could end, should this computer be lost."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from orchestrator.budget import CENT, rounded_up, show_usd, time_usd
from orchestrator.errors import NoOffer
from orchestrator.lease import PATIENCE_S
from orchestrator.plan import Candidate
from orchestrator.trip import Tools
from providers.base import Account, Offer, Provider
from providers.errors import ProviderError

OVER_S = PATIENCE_S
"""Beyond the cap: for so long a client goes on destroying before it calls out, and the guard on the machine asks its cloud every few
seconds. docs/money.md has the figures that were measured."""


def worst_case(best: Candidate, disk_gib: int, cap_usd: Decimal, account: Account | None) -> list[str]:
    """Two sentences for the person who is about to say yes; none where nothing can be billed. `account`: None where it cannot be asked."""
    prices, where = best.offer.prices, best.offer.provider
    if prices.usd_per_hour(disk_gib) <= 0:
        return []
    over = max(rounded_up(time_usd(prices, disk_gib, OVER_S)), CENT)
    more = f"{show_usd(cap_usd)}, the cap, and ${over} for up to {OVER_S / 60:.0f} minutes more until the machine is seen to be gone"
    return [
        f"at worst you pay {more}, while this computer, the machine itself, or `lorry reap` on any other can reach {where}",
        f"if none of them can: {_prepaid(account, where)}",
    ]


def _prepaid(account: Account | None, where: str) -> str:
    balance = account.balance_usd if account is not None else None
    amount = f"${balance:.2f}, all that is prepaid at {where}" if balance is not None else f"all that is prepaid at {where}"
    if account is None or account.auto_pay is None:
        return f"{amount}; more if auto-pay is on there, so turn it off"
    if account.auto_pay:
        return f"there is no limit, because auto-pay is on at {where}: turn it off there"
    return f"{amount}; auto-pay is off"


def guardable(offers: Iterable[Offer], tools: Tools) -> list[Offer]:
    """The offers whose machines can end themselves, or cost nothing. Raises `NoOffer` when there are only others."""
    all_of_them = list(offers)
    found = [offer for offer in all_of_them if _is_free(offer) or tools.provider(offer.provider).self_destroy is not None]
    if all_of_them and not found:
        names = ", ".join(sorted({offer.provider for offer in all_of_them}))
        raise NoOffer(
            f"machines of {names} cannot end themselves: should this computer be lost, they would bill on until you notice",
            hint="choose another machine.providers, or say --unguarded and keep this computer on until the end",
        )
    return found


def _is_free(offer: Offer) -> bool:
    return offer.prices.usd_per_hour(1) <= 0


def account_of(provider: Provider) -> Account | None:
    """Whose money it is; None where the cloud does not tell now, which must not keep anybody from renting."""
    try:
        return provider.account()
    except ProviderError:
        return None

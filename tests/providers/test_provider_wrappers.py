"""Wrappers add their one behaviour and pass on everything else."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Prices, Provider, Requirements
from providers.errors import AuthError, NoCapacity, ProviderError, RateLimited, Unavailable, UnexpectedResponse
from providers.wrappers import Call, Recording, Retrying

NEEDS = Requirements(disk_gib=1)
OFFER = Offer(provider="flaky", id="1", machine_id="m", gpu_name="RTX 4090", vram_gib=24, prices=Prices(gpu_usd_per_hour=Decimal("0.4")))
SPEC = LaunchSpec(label="l", image="i", disk_gib=1, ssh_public_key="ssh-ed25519 A")
INSTANCE = Instance(provider="flaky", id="i", label="l", status=InstanceStatus.PENDING)
CALLS: dict[str, tuple[object, ...]] = {
    "offers": (NEEDS,),
    "launch": (OFFER, SPEC),
    "describe": ("i",),
    "instances": (),
    "terminate": ("i",),
    "account": (),
    "billed_usd": ("i",),
}
SAFE = [name for name in CALLS if name != "launch"]
RESULTS = {
    "offers": [OFFER],
    "launch": INSTANCE,
    "describe": INSTANCE,
    "instances": [INSTANCE],
    "terminate": None,
    "account": Account(name="me"),
    "billed_usd": Decimal(1),
}


class Flaky:
    """Raises what it was given, one after the other, then answers."""

    name = "flaky"
    console_url = "https://flaky.example"
    self_destroy = None

    def __init__(self, *errors: ProviderError) -> None:
        self.errors = list(errors)
        self.asked: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: object) -> object:
            self.asked.append((method, args))
            if self.errors:
                raise self.errors.pop(0)
            return RESULTS[method]

        return call


def retrying(inner: Flaky, waits: list[float], **options: Any) -> Provider:
    provider: Provider = Retrying(inner, sleep=waits.append, **options)  # type: ignore[arg-type]
    return provider


def test_the_list_of_calls_is_the_contract() -> None:
    assert set(CALLS) | {"name", "console_url", "self_destroy"} == {name for name in vars(Provider) if not name.startswith("_")}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("wrap", [lambda inner: retrying(inner, []), lambda inner: Recording(inner, lambda _: None)])
def test_a_wrapper_passes_arguments_and_results_on(wrap: Callable[[Flaky], Provider], method: str) -> None:
    inner = Flaky()
    provider = wrap(inner)
    assert getattr(provider, method)(*CALLS[method]) == RESULTS[method]
    assert inner.asked == [(method, CALLS[method])]
    assert (provider.name, provider.console_url) == ("flaky", "https://flaky.example")


@pytest.mark.parametrize("method", SAFE)
def test_what_may_pass_is_asked_again_with_growing_waits(method: str) -> None:
    inner, waits = Flaky(Unavailable("1"), Unavailable("2"), Unavailable("3")), []
    assert getattr(retrying(inner, waits), method)(*CALLS[method]) == RESULTS[method]
    assert waits == [0.5, 1.0, 2.0]
    assert len(inner.asked) == 4


@pytest.mark.parametrize("method", SAFE)
def test_it_gives_up_after_so_many_attempts_with_the_last_error(method: str) -> None:
    errors = [Unavailable(str(number)) for number in range(9)]
    inner, waits = Flaky(*errors), []
    with pytest.raises(Unavailable, match="3"):
        getattr(retrying(inner, waits), method)(*CALLS[method])
    assert len(inner.asked) == 4
    assert len(waits) == 3


@pytest.mark.parametrize("error", [Unavailable("x"), RateLimited("x", retry_after_s=1), UnexpectedResponse("x"), NoCapacity("x")])
def test_a_launch_is_sent_exactly_once(error: ProviderError) -> None:
    inner, waits = Flaky(error), []
    with pytest.raises(type(error)):
        retrying(inner, waits).launch(OFFER, SPEC)
    assert len(inner.asked) == 1
    assert waits == []


@pytest.mark.parametrize("error", [AuthError("x"), UnexpectedResponse("x"), ProviderError("x")])
def test_what_will_not_pass_is_not_asked_again(error: ProviderError) -> None:
    inner, waits = Flaky(error), []
    with pytest.raises(type(error)):
        retrying(inner, waits).instances()
    assert len(inner.asked) == 1


def test_a_wait_that_the_cloud_names_is_kept() -> None:
    waits: list[float] = []
    retrying(Flaky(RateLimited("x", retry_after_s=4.5), RateLimited("x", retry_after_s=0.1)), waits).terminate("i")
    assert waits == [4.5, 1.0]


def test_a_cloud_that_names_a_wait_beyond_our_patience_is_not_asked_early() -> None:
    inner, waits = Flaky(RateLimited("x", retry_after_s=3600)), []
    with pytest.raises(RateLimited) as caught:
        retrying(inner, waits).account()
    assert caught.value.retry_after_s == 3600
    assert waits == []


def test_our_own_waits_are_bounded_and_scaled_by_the_jitter() -> None:
    waits: list[float] = []
    retrying(Flaky(*[Unavailable("x")] * 7), waits, attempts=8, max_wait_s=5, jitter=lambda: 0.8).account()
    assert waits == [0.4, 0.8, 1.6, 3.2, 5, 5, 5]


@pytest.mark.parametrize("method", CALLS)
def test_every_call_is_recorded_with_its_end(method: str) -> None:
    calls: list[Call] = []
    error = Unavailable("down")
    provider = Recording(Flaky(error), calls.append)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        getattr(provider, method)(*CALLS[method])
    getattr(provider, method)(*CALLS[method])
    assert calls == [
        Call(provider="flaky", method=method, args=CALLS[method], error=error),
        Call(provider="flaky", method=method, args=CALLS[method], result=RESULTS[method]),
    ]


def test_wrappers_wrap_wrappers() -> None:
    calls: list[Call] = []
    flaky = Flaky(Unavailable("once"))
    Retrying(Recording(flaky, calls.append), sleep=lambda _: None).account()  # type: ignore[arg-type]
    assert [type(call.error) for call in calls] == [Unavailable, type(None)]

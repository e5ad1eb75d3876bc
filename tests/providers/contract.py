"""The provider contract as tests: each sentence of `providers.base.Provider` that a type cannot say.

Every provider runs them: subclass `ProviderContract` in its test file and give it a `cloud` fixture.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Protocol

import pytest

from providers.base import Instance, InstanceStatus, LaunchSpec, Offer, Provider, Requirements
from providers.errors import AuthError, NoCapacity, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse

NOTHING_RENTED = (NoCapacity, Refused, AuthError, RateLimited)
DISK_GIB = 10  # some clouds have a least size
NEEDS = Requirements(disk_gib=DISK_GIB)


class Cloud(Protocol):
    """One provider under test, and a hand on the cloud behind it."""

    provider: Provider
    stranger: Provider
    """The same cloud, asked with a wrong key."""
    ssh_key: Path
    unknown_id: str
    """An id of the right form that no instance has."""
    page_size: int
    """How many instances the cloud lists at once."""

    def creates(self) -> int:
        """How many create requests the cloud has received since the last script."""

    def lose_the_answer_to_create(self) -> None:
        """The next create takes effect, but its answer never comes."""

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        """The next create does nothing and is answered so, with an id in the body if one is given."""

    def break_page_two_of_instances(self) -> None:
        """The second page of the next listing is an error."""

    def answer_instances_with(self, body: str) -> None:
        """The next listing is this text."""

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        """The next describe of this instance has this word as its status."""

    def heal(self) -> None:
        """No more faults."""


class ProviderContract:
    """What every provider keeps to."""

    disk_gib = DISK_GIB

    @pytest.fixture(autouse=True)
    def _clean(self, cloud: Cloud) -> Iterator[None]:
        yield
        cloud.heal()
        for instance in cloud.provider.instances():
            cloud.provider.terminate(instance.id)

    def spec(self, cloud: Cloud, label: str = "lorry-test", **fields: object) -> LaunchSpec:
        key = cloud.ssh_key.with_suffix(".pub").read_text().strip()
        return replace(LaunchSpec(label=label, image="pytorch:2", disk_gib=self.disk_gib, ssh_public_key=key), **fields)

    def offer(self, cloud: Cloud) -> Offer:
        return min(cloud.provider.offers(NEEDS), key=lambda offer: offer.prices.gpu_usd_per_hour)

    def launch(self, cloud: Cloud, **fields: object) -> Instance:
        return cloud.provider.launch(self.offer(cloud), self.spec(cloud, **fields))

    # offers

    def test_offers_name_their_provider_and_have_every_price_in_exact_money(self, cloud: Cloud) -> None:
        offers = cloud.provider.offers(NEEDS)
        assert len(offers) == len({offer.id for offer in offers}) > 0
        for offer in offers:
            assert offer.provider == cloud.provider.name
            assert offer.gpu_name
            assert offer.machine_id
            assert offer.vram_gib > 0
            assert offer.gpu_count > 0
            prices = (
                offer.prices.gpu_usd_per_hour,
                offer.prices.disk_usd_per_gib_hour,
                offer.prices.upload_usd_per_gib,
                offer.prices.download_usd_per_gib,
            )
            assert all(isinstance(price, Decimal) for price in prices)

    def test_a_machine_keeps_its_machine_id_from_one_listing_to_the_next(self, cloud: Cloud) -> None:
        first, second = ({offer.machine_id for offer in cloud.provider.offers(NEEDS)} for _ in range(2))
        assert first == second

    def test_a_rented_offer_is_not_offered_again(self, cloud: Cloud) -> None:
        offer = self.offer(cloud)
        cloud.provider.launch(offer, self.spec(cloud))
        assert offer.machine_id not in {other.machine_id for other in cloud.provider.offers(NEEDS)}

    # launch

    def test_launch_returns_at_once_what_describe_and_instances_show(self, cloud: Cloud) -> None:
        offer = self.offer(cloud)
        instance = cloud.provider.launch(offer, self.spec(cloud, "lorry-me-1"))
        assert instance.provider == cloud.provider.name
        assert instance.label == "lorry-me-1"
        assert instance.status in (InstanceStatus.PENDING, InstanceStatus.RUNNING)
        for seen in (cloud.provider.describe(instance.id), *cloud.provider.instances()):
            assert (seen.id, seen.label, seen.gpu_name, seen.disk_gib) == (instance.id, "lorry-me-1", offer.gpu_name, self.disk_gib)
            assert seen.prices in (offer.prices, None)
            assert seen.created_at is None or seen.created_at.tzinfo

    def test_a_launched_machine_takes_logins_with_our_key_its_environment_and_its_onstart(self, cloud: Cloud) -> None:
        env = {"GREETING": 'it\'s "me" $HOME\nand more'}
        instance = self.launch(cloud, env=env, onstart='echo "$GREETING" > greeted')
        instance = wait_for_ssh(cloud.provider, instance.id)
        look = 'printenv GREETING; until [ -s greeted ]; do sleep 0.05; done; cat greeted; echo "end=$?"'
        said = login(cloud, instance, look, patience_s=20)
        assert said == (env["GREETING"] + "\n") * 2 + "end=0\n"

    def test_an_offer_that_has_gone_is_no_capacity_and_rents_nothing(self, cloud: Cloud) -> None:
        offer = self.offer(cloud)
        cloud.provider.launch(offer, self.spec(cloud))
        before = cloud.provider.instances()
        with pytest.raises(NoCapacity):
            cloud.provider.launch(offer, self.spec(cloud, "lorry-second"))
        assert [i.id for i in cloud.provider.instances()] == [i.id for i in before]

    def test_a_lost_answer_is_not_asked_again_and_the_label_finds_the_machine(self, cloud: Cloud) -> None:
        cloud.lose_the_answer_to_create()
        with pytest.raises(ProviderError) as caught:
            self.launch(cloud, label="lorry-lost")
        assert not isinstance(caught.value, NOTHING_RENTED)
        assert cloud.creates() == 1
        assert [instance.label for instance in cloud.provider.instances()] == ["lorry-lost"]

    @pytest.mark.parametrize("status", [400, 418, 500, 502, 503])
    def test_an_error_that_says_nothing_about_the_effect_is_none_of_those_that_promise(self, cloud: Cloud, status: int) -> None:
        cloud.answer_create(status)
        with pytest.raises(ProviderError) as caught:
            self.launch(cloud)
        assert not isinstance(caught.value, NOTHING_RENTED)
        assert cloud.creates() == 1

    @pytest.mark.parametrize("status", [500, 400, 200])
    def test_an_instance_id_in_the_answer_of_a_failed_create_is_kept(self, cloud: Cloud, status: int) -> None:
        cloud.answer_create(status, instance_id="4711")
        with pytest.raises(ProviderError) as caught:
            self.launch(cloud)
        assert caught.value.instance_ids == ("4711",)

    def test_too_many_requests_is_rate_limited_and_says_how_long(self, cloud: Cloud) -> None:
        cloud.answer_create(429)
        with pytest.raises(RateLimited) as caught:
            self.launch(cloud)
        assert caught.value.retry_after_s == 7

    # describe, instances

    def test_an_instance_that_never_was_is_gone_and_not_an_error(self, cloud: Cloud) -> None:
        assert cloud.provider.describe(cloud.unknown_id).status is InstanceStatus.GONE

    def test_a_status_that_we_do_not_know_is_unknown(self, cloud: Cloud) -> None:
        instance = self.launch(cloud)
        cloud.answer_describe_with_status(instance, "defragmenting")
        assert cloud.provider.describe(instance.id).status is InstanceStatus.UNKNOWN

    def test_instances_are_listed_to_the_last_page(self, cloud: Cloud) -> None:
        ids = {self.launch(cloud, label=f"lorry-{n}").id for n in range(cloud.page_size + 1)}
        assert {instance.id for instance in cloud.provider.instances()} == ids

    def test_a_listing_with_a_broken_page_is_an_error_and_no_part_of_an_answer(self, cloud: Cloud) -> None:
        for n in range(cloud.page_size + 1):
            self.launch(cloud, label=f"lorry-{n}")
        cloud.break_page_two_of_instances()
        with pytest.raises(ProviderError):
            cloud.provider.instances()

    @pytest.mark.parametrize("body", ["", "null", "[]", "{}", '{"instances": null}', "<html>hello</html>", '{"instances": [{"id": "1"}]}'])
    def test_an_odd_listing_means_unknown_and_never_none(self, cloud: Cloud, body: str) -> None:
        cloud.answer_instances_with(body)
        with pytest.raises(UnexpectedResponse):
            cloud.provider.instances()

    # terminate

    def test_terminate_ends_it_and_is_silent_the_second_time(self, cloud: Cloud) -> None:
        instance = self.launch(cloud)
        cloud.provider.terminate(instance.id)
        cloud.provider.terminate(instance.id)
        assert cloud.provider.describe(instance.id).status is InstanceStatus.GONE
        assert cloud.provider.instances() == []

    def test_terminate_is_silent_about_an_instance_that_never_was(self, cloud: Cloud) -> None:
        cloud.provider.terminate(cloud.unknown_id)

    def test_terminate_works_while_it_boots(self, cloud: Cloud) -> None:
        for _ in range(3):
            cloud.provider.terminate(self.launch(cloud).id)
        assert cloud.provider.instances() == []

    # money and keys

    def test_the_account_answers_with_our_key(self, cloud: Cloud) -> None:
        assert cloud.provider.account().name

    def test_a_wrong_key_is_an_auth_error_everywhere_and_never_an_absence(self, cloud: Cloud) -> None:
        offer, instance = self.offer(cloud), self.launch(cloud)
        stranger = cloud.stranger
        for call in (
            stranger.account,
            stranger.instances,
            lambda: stranger.describe(instance.id),
            lambda: stranger.describe(cloud.unknown_id),
            lambda: stranger.terminate(instance.id),
            lambda: stranger.terminate(cloud.unknown_id),
            lambda: stranger.launch(offer, self.spec(cloud)),
        ):
            with pytest.raises(AuthError):
                call()
        assert [seen.id for seen in cloud.provider.instances()] == [instance.id]

    def test_the_bill_of_an_instance_grows_while_it_lives_and_stays_when_it_is_gone(self, cloud: Cloud) -> None:
        instance = self.launch(cloud)
        second = first = cloud.provider.billed_usd(instance.id)
        deadline = time.monotonic() + 10
        while second == first and time.monotonic() < deadline:  # a cloud may round
            time.sleep(0.02)
            second = cloud.provider.billed_usd(instance.id)
        cloud.provider.terminate(instance.id)
        last = cloud.provider.billed_usd(instance.id)
        time.sleep(0.02)
        assert first is not None
        assert second is not None
        assert 0 <= first < second <= last == cloud.provider.billed_usd(instance.id)

    def test_an_instance_that_never_was_has_no_bill(self, cloud: Cloud) -> None:
        assert cloud.provider.billed_usd(cloud.unknown_id) is None

    def test_keys_are_in_no_repr_and_no_error(self, cloud: Cloud) -> None:
        with pytest.raises(AuthError) as caught:
            cloud.stranger.account()
        for secret in ("wrong-key",):
            assert secret not in repr(cloud.stranger) + repr(caught.value) + str(caught.value) + caught.value.hint

    def test_a_cloud_that_is_down_is_unavailable(self, cloud: Cloud) -> None:
        cloud.answer_create(503)
        with pytest.raises(Unavailable):
            self.launch(cloud)


def wait_for_ssh(provider: Provider, instance_id: str, timeout_s: float = 20.0) -> Instance:
    deadline = time.monotonic() + timeout_s
    while (instance := provider.describe(instance_id)).ssh is None:
        assert time.monotonic() < deadline, f"no SSH after {timeout_s} s: {instance}"
        time.sleep(0.02)
    return instance


def ssh_options(key: Path) -> list[str]:
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "BatchMode=yes", "LogLevel=ERROR")
    return ["-F", "none", "-i", str(key), *(word for option in options for word in ("-o", option))]


def login(cloud: Cloud, instance: Instance, command: str, *, key: Path | None = None, patience_s: float = 0.0) -> str:
    """What `command` printed on the machine. `patience_s`: the key may come so much later than the address."""
    assert instance.ssh
    words = ["ssh", *ssh_options(key or cloud.ssh_key), "-p", str(instance.ssh.port), f"{instance.ssh.user}@{instance.ssh.host}", command]
    deadline = time.monotonic() + patience_s
    while True:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        if done.returncode != 255 or time.monotonic() > deadline:  # ssh's own failures
            done.check_returncode()
            return done.stdout

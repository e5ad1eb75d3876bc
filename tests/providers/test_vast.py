"""The Vast provider: the contract over its emulated face, what each fault of the cloud becomes, and offers that make no sense."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import Cloud, ProviderContract, login, wait_for_ssh
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_help import poll

from orchestrator.clock import SystemClock
from orchestrator.lease import destroy
from providers.base import Instance, InstanceStatus, LaunchSpec, Requirements
from providers.errors import AuthError, NoCapacity, NoKey, ProviderError, RateLimited, Refused, Unavailable, UnexpectedResponse
from providers.sandbox.faults import Fault
from providers.sandbox.happenings import Happening
from providers.sandbox.rentals import BootTimes
from providers.sandbox.server import Server
from providers.sandbox.vast_rows import matches, offer_row, stock
from providers.vast import GB_PER_GIB, INTERVALS_S, ROWS, URL, Vast, _Offer, offers_from, onstart_script, search_body

NEEDS = Requirements(disk_gib=10)
SPEED = 4000  # a cloud that rounds its charges to a tenth of a cent shows them grow within milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("vast"), boot=BootTimes(created_s=0.05, loading_s=0.05), speed=SPEED) as server:
        accounts = server.market.state.accounts
        accounts[:] = [replace(account, credit_usd=Decimal(10**6)) for account in accounts]
        yield server


@dataclass
class VastCloud:
    server: Server
    ssh_key: Path
    unknown_id: str = "999999"
    page_size: int = 5

    def __post_init__(self) -> None:
        self.provider = self.vast()
        self.stranger = self.vast(key="wrong-key")

    def vast(self, **options: Any) -> Vast:
        told = self.server.descriptor.document()
        key, url = options.pop("key", told["vast_api_key"]), str(told["vast_url"])
        return Vast(key, **{"url": url, "page_size": self.page_size, "intervals_s": {}, "now": self.server.clock.now} | options)

    def creates(self) -> int:
        return self.calls("create")

    def calls(self, endpoint: str) -> int:
        return self.server.faults.calls().get(f"vast.{endpoint}", 0)

    def lose_the_answer_to_create(self) -> None:
        self.script(Fault(endpoint="vast.create", drop="after"))

    def answer_create(self, status: int, *, instance_id: str = "") -> None:
        body = {"success": False, "error": "strange", "msg": "by script"} | ({"new_contract": int(instance_id)} if instance_id else {})
        self.script(Fault(endpoint="vast.create", status=status, body=json.dumps(body), retry_after="7"))

    def break_page_two_of_instances(self) -> None:
        self.script(Fault(endpoint="vast.list", call=2, status=500))

    def answer_instances_with(self, body: str) -> None:
        self.script(Fault(endpoint="vast.list", body=body))

    def answer_describe_with_status(self, instance: Instance, status: str) -> None:
        row = {"id": int(instance.id), "label": instance.label, "actual_status": status}
        self.script(Fault(endpoint="vast.show", body=json.dumps({"instances": row})))

    def heal(self) -> None:
        self.script()
        self.server.happen(Happening(what="limits", scale=0), Happening(what="ports_late", seconds=0))
        self.server.market.state.floors.clear()
        self.server.market.state.gpu_prices.clear()

    def script(self, *faults: Fault) -> None:
        self.server.faults.set(faults)

    def tell(self, what: str, instance: Instance | None = None, **more: Any) -> None:
        self.server.happen(Happening(what=what, machine=instance.id if instance else "", **more))  # type: ignore[arg-type]

    def live(self) -> list[str]:
        """What the meter says is rented, whatever the provider was told."""
        return list(self.server.market.bill().live)

    def spec(self, label: str = "lorry-test", **fields: Any) -> LaunchSpec:
        key = self.ssh_key.with_suffix(".pub").read_text().strip()
        return LaunchSpec(**{"label": label, "image": "i", "disk_gib": 10, "ssh_public_key": key} | fields)

    def launch(self, label: str = "lorry-test", *, interruptible: bool = False, **fields: Any) -> Instance:
        offers = self.provider.offers(replace(NEEDS, interruptible=interruptible))
        return self.provider.launch(next(o for o in offers if o.interruptible == interruptible), self.spec(label, **fields))


@pytest.fixture
def cloud(server: Server, ssh_key: Path) -> Iterator[VastCloud]:
    cloud = VastCloud(server, ssh_key)
    yield cloud
    cloud.heal()
    for instance in cloud.provider.instances():
        cloud.provider.terminate(instance.id)


class TestVast(ProviderContract):
    @pytest.fixture
    def cloud(self, server: Server, ssh_key: Path) -> Cloud:
        return VastCloud(server, ssh_key)


# Keys and addresses


def test_the_key_comes_from_the_environment_and_not_from_other_programs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAST_API_KEY", "LORRY_VAST_URL", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vast_api_key").write_text("theirs\n")
    with pytest.raises(NoKey, match="no key"):
        Vast.from_env().account()
    monkeypatch.setenv("VAST_API_KEY", "mine\n")
    assert (Vast.from_env()._key, Vast.from_env()._url) == ("mine", URL)
    assert Vast.from_env("this one")._key == "this one"
    monkeypatch.setenv("LORRY_VAST_URL", "http://127.0.0.1:1")
    assert Vast.from_env()._url == "http://127.0.0.1:1"


def test_where_vasts_own_client_keeps_its_key_is_known() -> None:
    assert Vast.api_key.client_files({"HOME": "/h"}) == (Path("/h/.config/vastai/vast_api_key"), Path("/h/.vast_api_key"))
    assert Vast.api_key.client_files({"HOME": "/h", "XDG_CONFIG_HOME": "/x"})[0] == Path("/x/vastai/vast_api_key")
    assert Vast.api_key.in_client_file("abc\n") == "abc"


# Offers


def test_a_search_goes_past_the_row_cap_and_both_ways_of_renting(cloud: VastCloud) -> None:
    """72 of the 96 machines have a driver that is new enough; a search returns 64 rows."""
    fitting = {str(offer.id) for offer in stock() if int(offer.id) % 4 != 3}
    assert len(fitting) == 72
    assert {offer.id for offer in cloud.provider.offers(NEEDS)} == fitting
    assert cloud.calls("search") == 2
    both = cloud.provider.offers(replace(NEEDS, interruptible=True))
    assert {offer.id for offer in both} == fitting | {f"{id_}/bid" for id_ in fitting}
    assert {offer.id for offer in both if offer.interruptible} == {f"{id_}/bid" for id_ in fitting}


def test_what_is_wanted_is_asked_of_the_cloud(cloud: VastCloud) -> None:
    wanted = Requirements(
        disk_gib=10, gpus=frozenset({"RTX 4090"}), min_vram_gib=24, max_usd_per_hour=Decimal("0.4"), min_reliability=0.99,
        regions=frozenset({"NO", "SE"}), verified_only=True,
    )  # fmt: skip
    offers = cloud.provider.offers(wanted)
    assert len(offers) > 3
    for offer in offers:
        assert (offer.gpu_name, offer.region, offer.verified, offer.vram_gib) == ("RTX 4090", "NO", True, 24)
        assert offer.prices.usd_per_hour(10) <= Decimal("0.4")


def test_every_price_part_is_in_our_units() -> None:
    """Dollars an hour for the GPU without its disk; a GiB is 1.0737 GB; a month 720 hours; up from the machine is down to us."""
    row = {
        "id": 1, "machine_id": 2, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "disk_space": 612.4, "dph_base": 0.32,
        "dph_total": 0.3283, "storage_cost": 0.15, "inet_up_cost": 0.0026, "inet_down_cost": "0.0020", "geolocation": "Sweden, SE",
        "reliability2": 0.9962, "verification": "verified", "inet_up": 812.4, "inet_down": 905.1, "min_bid": 0.1733,
    }  # fmt: skip
    ((_, offer),) = offers_from([row], "on-demand", [])
    assert offer.prices.gpu_usd_per_hour == Decimal("0.32")
    assert offer.prices.disk_usd_per_gib_hour == round(Decimal("0.15") * Decimal("1.073741824") / 720, 12)
    assert offer.prices.upload_usd_per_gib == round(Decimal("0.0020") * GB_PER_GIB, 9)
    assert offer.prices.download_usd_per_gib == round(Decimal("0.0026") * GB_PER_GIB, 9)
    assert (offer.down_mbit_s, offer.up_mbit_s, offer.vram_gib, offer.disk_gib, offer.region) == (905.1, 812.4, 24, 569, "SE")
    ((_, bid),) = offers_from([row], "bid", [])
    ((_, housed),) = offers_from([row | {"hosting_type": 1}], "on-demand", [])
    assert (offer.secure, housed.secure) == (False, True), "in a data centre only where Vast says so"
    assert (bid.id, bid.interruptible, bid.prices.gpu_usd_per_hour) == ("1/bid", True, Decimal("0.1820")), "5 % above the floor"


ANSWERED = Vast("a-key-that-is-in-no-answer", url="http://127.0.0.1:9", intervals_s={})
"""Answers come from the test: `answered_by`."""
ANSWERED._http._client = httpx.Client()


def answered_by(reply: Callable[[httpx.Request], httpx.Response]) -> Vast:
    ANSWERED._http._client._transport = httpx.MockTransport(reply)
    return ANSWERED


ROW = offer_row(stock()[24], floor=Decimal("0.1"), bid=False, disk_gb=10, now=datetime(2026, 1, 1, tzinfo=UTC))
ABSURD = st.one_of(
    st.sampled_from([None, "", "NaN", float("nan"), float("inf"), -1, -0.5, 0, 10**30, "0", "1e400", True, [], {}, "new-word"]),
    st.floats(), st.integers(), st.text(max_size=5), st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=3),
)  # fmt: skip


READ = sorted(ROW.keys() & ({*_Offer.model_fields, "reliability2"}))


@given(changes=st.dictionaries(st.sampled_from(READ), ABSURD, max_size=4), lost=st.sets(st.sampled_from(READ), max_size=3))
@settings(max_examples=200, deadline=None)
def test_whatever_a_row_says_it_is_read_or_left_out_and_never_absurd(changes: dict[str, Any], lost: set[str]) -> None:
    row = {name: value for name, value in (ROW | changes | {"brand_new": changes}).items() if name not in lost}
    for kind in ("on-demand", "bid"):
        faults: list[str] = []
        read = [offer for _, offer in offers_from([row], kind, faults)]
        assert len(read) + len(faults) <= 1
        for offer in read:
            assert 0 < offer.prices.gpu_usd_per_hour <= 1050
            assert 0 <= offer.prices.disk_usd_per_gib_hour < 1
            assert 0 <= offer.reliability <= 1
            assert 0 <= offer.disk_gib <= 10**6
            assert 0.9 < offer.vram_gib < 2000
            assert offer.gpu_count >= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dph_base", value) for value in (0, -0.1, 1001, float("nan"), float("inf"), "free", None)),
        *((name, value) for name in ("storage_cost", "inet_up_cost", "inet_down_cost") for value in (-0.01, 11, "NaN", float("inf"), [])),
        ("disk_space", 1e9), ("disk_space", -1), ("gpu_ram", 0), ("gpu_ram", 10**9), ("num_gpus", 0), ("num_gpus", 1.5), ("id", "x"),
        ("id", 0),
        ("gpu_name", ""), ("gpu_name", None), ("reliability2", 1.1), ("min_bid", -1), ("cpu_arch", "arm64"), ("gpu_arch", "amd"),
    ],
)  # fmt: skip
def test_an_absurd_offer_is_left_out(name: str, value: object) -> None:
    for kind in ("on-demand", "bid"):
        assert [offer for _, offer in offers_from([ROW], kind, [])]
        assert [offer for _, offer in offers_from([ROW | {name: value}], kind, [])] == []


@given(row=ABSURD)
def test_rows_that_are_no_objects_are_left_out(row: Any) -> None:
    assert list(offers_from([row], "bid", [])) == []


@pytest.mark.parametrize("missing", ["dph_base", "storage_cost", "inet_up_cost", "inet_down_cost", "machine_id"])
def test_an_offer_that_does_not_say_a_price_is_no_offer(missing: str) -> None:
    faults: list[str] = []
    assert list(offers_from([{k: v for k, v in ROW.items() if k != missing}], "on-demand", faults)) == []
    assert faults == [f"{missing}: Field required"]


def test_a_search_none_of_which_can_be_read_is_an_error_and_no_empty_market(cloud: VastCloud) -> None:
    cloud.script(Fault(endpoint="vast.search", body=json.dumps({"offers": [{"id": 1}]})))
    with pytest.raises(UnexpectedResponse, match=r"none of Vast's 1 offers can be read; the first: .*required"):
        cloud.provider.offers(NEEDS)
    cloud.script(Fault(endpoint="vast.search", body='{"offers": []}'))
    assert cloud.provider.offers(NEEDS) == []


@given(alike=st.lists(st.integers(1, ROWS - 1), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_no_offer_falls_between_two_pages(alike: list[int]) -> None:
    """Many cost the same: the next page begins at the last price, not above it."""
    rows = [ROW | {"id": 1000 * n + m, "dph_total": n / 10} for n, count in enumerate(alike, 1) for m in range(count)]

    def search(request: httpx.Request) -> httpx.Response:
        filters = json.loads(request.content).get("dph_total", {})
        fitting = [row for row in rows if matches(row, {"dph_total": filters})]
        return httpx.Response(200, json={"offers": fitting[:ROWS]})

    assert len(answered_by(search).offers(NEEDS)) == len(rows)


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-1", "null", '"0.5"', "0.07"])
def test_a_full_page_of_one_price_or_of_none_ends_the_search(cloud: VastCloud, price: str) -> None:
    """Sixty-four rows, the last of which costs something absurd."""
    rows = [json.dumps(ROW | {"id": n + 1, "dph_total": 0.07}) for n in range(63)] + [json.dumps(ROW | {"id": 64}).replace(
        json.dumps(ROW["dph_total"]), price
    )]  # fmt: skip
    cloud.script(Fault(endpoint="vast.search", body=f'{{"offers": [{", ".join(rows)}]}}'))
    assert len(cloud.provider.offers(NEEDS)) >= 63
    assert cloud.calls("search") == 10, "never more than so many pages"


def test_a_search_that_runs_into_its_limit_keeps_the_cheapest(cloud: VastCloud) -> None:
    quota = '{"success": false, "error": "search_quota_exceeded", "msg": "Daily search row quota exhausted"}'
    cloud.script(Fault(endpoint="vast.search", call=2, status=429, body=quota, retry_after="7200"))
    assert len(cloud.provider.offers(NEEDS)) == 64
    cloud.script(Fault(endpoint="vast.search", status=429, body=quota, retry_after="7200"))
    with pytest.raises(RateLimited) as caught:
        cloud.provider.offers(NEEDS)
    assert caught.value.retry_after_s == 7200, "so that nobody asks again before"


# Create: what is certain, what is not, and what the meter says


def answer(code: str, text: str = "by script", **more: object) -> str:
    return json.dumps({"success": False, "error": code, "msg": text} | more)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, answer("no_such_ask", "error 404/3603: no_such_ask Instance type by id 1 is not available."), NoCapacity),
        (410, answer("no_such_ask", "error 410/3907: no_such_ask Instance type 1 is no longer available."), NoCapacity),
        (400, answer("invalid_args", "error 400/3603: no_such_ask Instance type by id 1 is not available."), NoCapacity),
        (403, answer("invalid_args", "error 403/3586: Offer 1 is not your own."), NoCapacity),
        (400, answer("invalid_price"), NoCapacity),
        (200, answer("no_such_ask"), NoCapacity),
        (400, answer("insufficient_credit"), Refused),
        (402, answer("insufficient_credit"), Refused),
        (403, answer("insufficient_credit"), Refused),
        (400, answer("spend_rate_limit"), Refused),
        (429, answer("spend_rate_limit"), Refused),
        (400, answer("invalid_args", "error 400/3467: Invalid args: disk"), NoCapacity),
        (401, answer("auth_error", "Invalid user key"), AuthError),
        (403, answer("auth_error", "This action requires login."), AuthError),
        (404, answer("auth_error", "Invalid user key"), AuthError),
        (403, "{}", AuthError),
        (429, "API requests too frequent", RateLimited),
        # Everything else may have rented.
        (404, answer("something_new"), UnexpectedResponse),
        (404, "<html>not here</html>", UnexpectedResponse),
        (200, '{"success": true}', UnexpectedResponse),
        (200, '{"success": true, "new_contract": 0}', UnexpectedResponse),
        (200, '{"success": true, "new_contract": null}', UnexpectedResponse),
        (200, '{"success": true, "new_contract": "none"}', UnexpectedResponse),
        (200, '{"success": true, "new_contract": true}', UnexpectedResponse),
        (200, "", UnexpectedResponse),
        (200, "[1]", UnexpectedResponse),
        (200, "<html>welcome</html>", UnexpectedResponse),
        (308, "", UnexpectedResponse),
        (500, answer("no_such_ask"), Unavailable),
        (502, "<html>bad gateway</html>", Unavailable),
        (504, "", Unavailable),
        (400, answer("insufficient_credit", new_contract=77), UnexpectedResponse),
    ],
)
def test_what_each_answer_to_a_create_means(cloud: VastCloud, status: int, body: str, kind: type[ProviderError]) -> None:
    cloud.script(Fault(endpoint="vast.create", status=status, body=body))
    with pytest.raises(ProviderError) as caught:
        cloud.launch()
    assert type(caught.value) is kind, caught.value
    assert caught.value.instance_ids == (("77",) if "77" in body else ())
    assert cloud.creates() == 1
    assert cloud.live() == []


@pytest.mark.parametrize("fault", [{"drop": "after"}, {"status": 502, "effect": True}, {"truncate": 20}, {"body": "{}", "effect": True}])
def test_a_create_whose_answer_is_lost_is_sent_once_and_found_by_its_label(cloud: VastCloud, fault: dict[str, Any]) -> None:
    cloud.script(Fault(endpoint="vast.create", **fault))
    with pytest.raises((Unavailable, UnexpectedResponse)):
        cloud.launch("lorry-lost")
    assert cloud.creates() == 1
    (found,) = cloud.provider.instances()
    assert found.label == "lorry-lost"
    assert cloud.live() == [found.id]
    cloud.provider.terminate(found.id)
    assert cloud.live() == []


def test_a_create_that_lands_late_is_in_a_later_listing(cloud: VastCloud) -> None:
    cloud.script(Fault(endpoint="vast.create", late_s=1.5))
    with pytest.raises(Unavailable):
        cloud.launch("lorry-late")
    assert cloud.provider.instances() == [], "absence is provisional"
    poll(lambda: [i.label for i in cloud.provider.instances()] == ["lorry-late"], what="the late machine")


def test_a_create_that_never_arrived_rented_nothing(cloud: VastCloud) -> None:
    cloud.script(Fault(endpoint="vast.create", drop="before"))
    with pytest.raises(Unavailable):
        cloud.launch()
    assert (cloud.creates(), cloud.live()) == (1, [])


def test_a_bid_below_the_market_is_refused_and_leaves_a_machine_whose_id_is_kept(cloud: VastCloud) -> None:
    """The error carries `new_contract`: a stopped machine, whose disk bills."""
    offer = next(o for o in cloud.provider.offers(replace(NEEDS, interruptible=True)) if o.interruptible)
    cloud.tell("floor", offer=offer.id.partition("/")[0], usd_per_hour=Decimal(2))
    with pytest.raises(UnexpectedResponse, match="below the market") as caught:
        cloud.provider.launch(offer, cloud.spec("lorry-low"))
    (id_,) = caught.value.instance_ids
    seen = cloud.provider.describe(id_)
    assert (seen.status, seen.label) == (InstanceStatus.STOPPED, "lorry-low")
    meter = cloud.server.market.bill().of(id_)
    assert meter
    assert meter.gpu_usd == 0 < meter.disk_usd
    cloud.provider.terminate(id_)
    assert cloud.live() == []


def test_an_offer_that_became_dearer_is_rented_at_a_price_that_the_machine_tells(cloud: VastCloud) -> None:
    offer = cloud.provider.offers(NEEDS)[0]
    cloud.tell("offer_price", offer=offer.id, usd_per_hour=Decimal("1.5"))
    seen = cloud.provider.describe(cloud.provider.launch(offer, cloud.spec()).id)
    assert seen.prices
    assert seen.prices.gpu_usd_per_hour == Decimal("1.5") != offer.prices.gpu_usd_per_hour


def test_without_credit_nothing_is_rented_and_the_account_shows_it(cloud: VastCloud) -> None:
    market = cloud.server.market
    rich = market.account(str(cloud.server.descriptor.document()["vast_api_key"]))
    assert rich
    index = market.state.accounts.index(rich)
    market.state.accounts[index] = replace(rich, credit_usd=Decimal(0))
    try:
        with pytest.raises(Refused, match="insufficient_credit") as caught:
            cloud.launch()
        assert "billing" in caught.value.hint
        balance = cloud.provider.account().balance_usd
        assert balance is not None
        assert balance <= 0
    finally:
        market.state.accounts[index] = rich
    assert cloud.live() == []


def test_a_start_script_that_is_too_long_is_refused_before_anything_is_sent(cloud: VastCloud) -> None:
    with pytest.raises(Refused, match="start script"):
        cloud.launch(onstart="x" * 4096)
    assert cloud.creates() == 0


def test_the_key_gets_in_by_either_of_two_ways(cloud: VastCloud) -> None:
    """Key injection is sometimes late or lost: here one way fails at a time."""
    cloud.script(Fault(endpoint="vast.attach", status=500))
    by_script = wait_for_ssh(cloud.provider, cloud.launch("one").id)
    assert login(cloud, by_script, "cat ~/.no_auto_tmux && echo in") == "in\n"
    cloud.heal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("providers.vast.onstart_script", lambda spec: spec.onstart)
        attached = wait_for_ssh(cloud.provider, cloud.launch("two").id)
    poll(lambda: works(lambda: login(cloud, attached, "true")), what="a login with the attached key")


def works(call: Callable[[], object]) -> bool:
    with suppress(Exception):
        call()
        return True
    return False


def test_the_machine_has_a_key_that_can_end_it_and_nothing_else(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    other = cloud.launch("other")
    id_, key = login(cloud, instance, "echo $CONTAINER_ID $CONTAINER_API_KEY").split()
    assert id_ == instance.id
    own = cloud.vast(key=key)
    assert own.describe(id_).id == id_
    for call in (own.instances, own.account, lambda: own.describe(other.id), lambda: own.terminate(other.id), lambda: own.billed_usd(id_)):
        with pytest.raises(AuthError):
            call()
    own.terminate(id_)
    assert cloud.live() == [other.id]


def test_the_machine_can_end_itself_as_the_provider_says(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    way = cloud.provider.self_destroy
    lines = login(cloud, instance, "env").splitlines()
    own = {name: value for name, _, value in (line.partition("=") for line in lines) if name.startswith("CONTAINER_")}
    assert own[way.id_env] == instance.id
    headers = {"Authorization": f"Bearer {way.key.format(**own)}"}
    with httpx.Client(trust_env=False, headers=headers) as http:
        shown = http.get((way.show_url or way.url).format(**own))
        assert shown.status_code == 200
        assert instance.id in shown.text
        assert http.request(way.method, way.url.format(**own)).status_code == 200
    assert cloud.live() == []


# Boot and life


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"actual_status": None}, InstanceStatus.PENDING),
        ({"actual_status": "created"}, InstanceStatus.PENDING),
        ({"actual_status": "loading", "status_msg": "pulling 40 %"}, InstanceStatus.PENDING),
        ({"actual_status": "rebooting"}, InstanceStatus.PENDING),
        ({"actual_status": "running"}, InstanceStatus.RUNNING),
        ({"actual_status": "exited"}, InstanceStatus.STOPPED),
        ({"actual_status": "stopped"}, InstanceStatus.STOPPED),
        ({"actual_status": "offline"}, InstanceStatus.UNKNOWN),
        ({"actual_status": "frozen"}, InstanceStatus.UNKNOWN),
        ({"actual_status": "unknown"}, InstanceStatus.UNKNOWN),
        ({"actual_status": "defragmenting"}, InstanceStatus.UNKNOWN),
        ({"actual_status": "created", "status_msg": "OCI runtime create failed: x"}, InstanceStatus.STOPPED),
        ({"actual_status": "loading", "status_msg": "Error response from daemon: manifest unknown"}, InstanceStatus.STOPPED),
        (
            {"actual_status": "running", "cur_state": "stopped", "intended_status": "stopped", "next_state": "stopped"},
            InstanceStatus.STOPPED,
        ),
        ({"actual_status": None, "cur_state": "stopped", "intended_status": "stopped", "next_state": "stopped"}, InstanceStatus.STOPPED),
        (
            {"actual_status": "offline", "cur_state": "stopped", "intended_status": "stopped", "next_state": "stopped"},
            InstanceStatus.UNKNOWN,
        ),
        ({"actual_status": "running", "ports": "odd", "gpu_name": 7, "disk_space": "NaN", "brand_new": []}, InstanceStatus.RUNNING),
    ],
)
def test_what_each_status_means(cloud: VastCloud, row: dict[str, Any], status: InstanceStatus) -> None:
    cloud.script(Fault(endpoint="vast.show", body=json.dumps({"instances": {"id": 5, "label": "l"} | row})))
    seen = cloud.provider.describe("5")
    assert seen.status is status
    assert seen.status_text == (row.get("status_msg") or row["actual_status"] or "")


@given(row=st.dictionaries(st.sampled_from(["label", "actual_status", "ports", "start_date", "dph_base", "ssh_port", "x"]), ABSURD))
@settings(max_examples=150, deadline=None)
def test_an_instance_however_odd_is_read_or_unknown_and_never_a_crash(row: dict[str, Any]) -> None:
    text = json.dumps({"instances": {"id": 5, "label": None, "actual_status": None} | row})
    vast = answered_by(lambda _: httpx.Response(200, text=text))
    with suppress(UnexpectedResponse):
        assert vast.describe("5").status is not InstanceStatus.GONE


def test_an_address_that_comes_late_is_waited_for_and_then_the_proxy_is_taken(cloud: VastCloud) -> None:
    """`running` is said before the direct port is known; the port is better than the proxy, the proxy better than nothing."""
    cloud.tell("ports_late", seconds=10.0**6)
    instance = cloud.launch()
    poll(lambda: cloud.provider.describe(instance.id).status is InstanceStatus.RUNNING, what="running")
    now = 100.0
    provider = cloud.vast(monotonic_s=lambda: now)
    assert provider.describe(instance.id).ssh is None
    now = 121.0
    proxied = provider.describe(instance.id)
    assert proxied.ssh is not None
    assert login(cloud, proxied, "echo in") == "in\n"
    cloud.tell("ports_late", seconds=0)
    assert provider.describe(instance.id).ssh == proxied.ssh, "here both lead to the same place"


def test_a_machine_that_boots_for_ever_stays_pending_and_only_its_disk_bills(cloud: VastCloud) -> None:
    instance = cloud.launch()
    cloud.tell("stuck", instance)
    seen = cloud.provider.describe(instance.id)
    assert (seen.status, seen.ssh) == (InstanceStatus.PENDING, None)
    meter = cloud.server.market.bill().of(instance.id)
    assert meter
    assert meter.gpu_usd == 0 < meter.disk_usd


def test_a_machine_whose_init_ended_is_stopped_and_says_why(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    cloud.tell("exit", instance)
    seen = cloud.provider.describe(instance.id)
    assert (seen.status, seen.ssh) == (InstanceStatus.STOPPED, None)
    assert "init has ended" in seen.status_text


def test_a_lost_host_is_unknown_is_not_charged_and_comes_back(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    cloud.tell("offline", instance)
    seen = cloud.provider.describe(instance.id)
    assert (seen.status, seen.ssh) == (InstanceStatus.UNKNOWN, None)
    assert [i.id for i in cloud.provider.instances()] == [instance.id], "it is not gone: it may come back and bill"
    first = cloud.server.market.bill().of(instance.id)
    second = cloud.server.market.bill().of(instance.id)
    assert first
    assert second
    assert first.total_usd == second.total_usd
    cloud.tell("online", instance)
    assert login(cloud, wait_for_ssh(cloud.provider, instance.id), "echo back") == "back\n"


def test_an_outbid_machine_is_stopped_keeps_its_disk_and_goes_on_when_the_price_falls(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch(interruptible=True).id)
    login(cloud, instance, "echo kept > file")
    cloud.tell("outbid", instance)
    assert cloud.provider.describe(instance.id).status is InstanceStatus.STOPPED
    cloud.server.market.state.floors.clear()
    back = wait_for_ssh(cloud.provider, instance.id)
    assert back.status is InstanceStatus.RUNNING
    assert login(cloud, back, "cat file") == "kept\n"


def test_a_price_that_rises_is_seen_in_the_live_rate_card(cloud: VastCloud) -> None:
    instance = cloud.launch()
    cloud.tell("announce", instance, usd_per_hour=Decimal(9))
    before = cloud.provider.describe(instance.id).prices
    assert before == instance.prices, "asked for, and nobody agreed"
    cloud.tell("price", instance, usd_per_hour=Decimal(9))
    after = cloud.provider.describe(instance.id).prices
    assert after
    assert after.gpu_usd_per_hour == 9


def test_a_contract_that_ends_is_stopped_and_still_listed(cloud: VastCloud) -> None:
    instance = cloud.launch()
    cloud.tell("expire", instance)
    assert [i.status for i in cloud.provider.instances()] == [InstanceStatus.STOPPED]


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "", "a;b", "$(x)", "é", "a\nb"])
def test_an_address_that_is_none_is_not_passed_on(cloud: VastCloud, host: str) -> None:
    row = {"id": 5, "label": "l", "actual_status": "running", "public_ipaddr": host, "ssh_host": host, "ssh_port": 22}
    cloud.script(Fault(endpoint="vast.show", body=json.dumps({"instances": row | {"ports": {"22/tcp": [{"HostPort": "22"}]}}})))
    assert cloud.provider.describe("5").ssh is None


# Listing and the end


@pytest.mark.parametrize(
    "change",
    [{"total_instances": 3}, {"success": False}, {"instances": [{"label": "x"}]}, {"instances": "none"}, {"total_instances": None}],
)
def test_a_listing_that_does_not_add_up_is_no_listing(cloud: VastCloud, change: dict[str, Any]) -> None:
    body = {"success": True, "instances_found": 0, "total_instances": 0, "next_token": None, "instances": []}
    cloud.script(Fault(endpoint="vast.list", body=json.dumps(body)))
    assert cloud.provider.instances() == []
    cloud.script(Fault(endpoint="vast.list", body=json.dumps(body | change)))
    with pytest.raises(UnexpectedResponse):
        cloud.provider.instances()


def test_a_listing_whose_token_leads_in_a_circle_is_no_listing(cloud: VastCloud) -> None:
    row = {"id": 1, "label": "x", "actual_status": "running"}
    page = {"success": True, "total_instances": 1, "next_token": "again", "instances": [row]}
    cloud.script(Fault(endpoint="vast.list", body=json.dumps(page)))
    with pytest.raises(UnexpectedResponse):
        cloud.provider.instances()
    assert cloud.calls("list") == 2


def test_the_old_listing_is_dead_and_would_not_be_read_as_none(cloud: VastCloud) -> None:
    dead = answer("deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")
    for status in (200, 400, 404):
        cloud.script(Fault(endpoint="vast.list", status=status, body=dead))
        with pytest.raises(UnexpectedResponse, match="deprecated"):
            cloud.provider.instances()


def test_gone_is_only_the_exact_shape_that_vast_has_for_it(cloud: VastCloud) -> None:
    instance = cloud.launch()
    for body in ("", "null", "{}", "[]", '{"instances": []}', '{"instances": {}}', '{"success": false, "instances": null}', "<html>"):
        cloud.script(Fault(endpoint="vast.show", body=body))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.describe(instance.id)
    cloud.script(Fault(endpoint="vast.show", body='{"instances": null}'))
    assert cloud.provider.describe(instance.id).status is InstanceStatus.GONE
    for status, body in ((404, "<html>proxy</html>"), (404, "{}"), (404, answer("no_such_page")), (410, answer("no_such_instance"))):
        cloud.script(Fault(endpoint="vast.show", status=status, body=body), Fault(endpoint="vast.destroy", status=status, body=body))
        for call in (cloud.provider.describe, cloud.provider.terminate):
            with pytest.raises(UnexpectedResponse):
                call(instance.id)


def test_absent_counts_only_when_a_listing_agrees_at_the_same_moment(cloud: VastCloud) -> None:
    """A session that has expired sees no instance either, and gets no listing."""
    instance = cloud.launch()
    absent = [Fault(endpoint=f"vast.{name}", status=404, body=answer("no_such_instance")) for name in ("show", "destroy")]
    expired = answer("", "Session expired. Please log in again.")
    for status, body, kind in (
        (401, answer("auth_error"), AuthError),
        (404, expired, UnexpectedResponse),
        (None, None, UnexpectedResponse),
    ):
        cloud.script(*absent, *([Fault(endpoint="vast.list", status=status, body=body)] if status else []))
        for call in (cloud.provider.describe, cloud.provider.terminate):
            with pytest.raises(kind):
                call(instance.id)
    assert cloud.live() == [instance.id]


def test_a_key_that_may_not_ask_whose_it_is_can_still_end_a_machine_and_see_that_it_is_gone(cloud: VastCloud) -> None:
    """The right is `user_read`. A key that is wrong for everything is an error as ever."""
    instance, forbidden = cloud.launch(), answer("auth_error", "This action is not permitted for this key.")
    cloud.script(Fault(endpoint="vast.user", status=403, body=forbidden))
    assert cloud.provider.account().lacks == ("user_read",)
    evidence = destroy(cloud.provider, [instance.id], instance.label, SystemClock())
    assert "gone" in evidence
    assert cloud.live() == []
    cloud.script(
        Fault(endpoint="vast.user", status=403, body=forbidden), Fault(endpoint="vast.list", status=401, body=answer("auth_error"))
    )
    with pytest.raises(AuthError):
        cloud.provider.account()


@pytest.mark.parametrize(("told", "auto_pay"), [({}, None), ({"autobill_threshold": None}, False), ({"autobill_threshold": 5.0}, True)])
def test_the_account_says_whose_it_is_what_is_left_and_whether_a_card_is_charged(
    cloud: VastCloud, told: dict[str, Any], auto_pay: bool | None
) -> None:
    cloud.script(Fault(endpoint="vast.user", body=json.dumps({"id": 7, "email": "me@example.com", "credit": 12.5, "balance": 0} | told)))
    seen = cloud.provider.account()
    assert (seen.name, seen.id, seen.balance_usd, seen.auto_pay, seen.lacks) == ("me@example.com", "7", Decimal("12.5"), auto_pay, None)


def test_a_destroy_that_says_yes_and_does_nothing_is_seen(cloud: VastCloud) -> None:
    instance = cloud.launch()
    cloud.script(Fault(endpoint="vast.destroy", body='{"success": true}'))
    cloud.provider.terminate(instance.id)
    assert cloud.provider.describe(instance.id).status is not InstanceStatus.GONE
    assert cloud.live() == [instance.id]


def test_a_destroy_that_fails_with_200_is_an_error(cloud: VastCloud) -> None:
    cloud.script(Fault(endpoint="vast.destroy", body=answer("strange")))
    with pytest.raises(UnexpectedResponse, match="strange"):
        cloud.provider.terminate(cloud.launch().id)


def test_a_key_that_was_revoked_is_never_an_absence(cloud: VastCloud) -> None:
    instance = cloud.launch()
    cloud.script(Fault(endpoint="*", status=401, body=answer("auth_error", "Invalid user key")))
    for call in (cloud.provider.instances, lambda: cloud.provider.describe(instance.id), lambda: cloud.provider.terminate(instance.id)):
        with pytest.raises(AuthError) as caught:
            call()
        assert "VAST_API_KEY" in caught.value.hint


def test_a_key_that_the_cloud_repeats_is_in_no_message(cloud: VastCloud) -> None:
    key = cloud.provider._key
    for status in (200, 400, 401, 403, 404, 429, 500):
        cloud.script(Fault(endpoint="*", status=status, body=answer("strange", f"the key {key} is odd")))
        for call in (cloud.provider.instances, cloud.provider.account, lambda: cloud.provider.describe("5"), cloud.launch):
            with pytest.raises(ProviderError) as caught:
                call()
            assert key not in repr(caught.value) + str(caught.value.__cause__)


# Limits


@pytest.mark.parametrize(
    ("body", "header", "wait_s"),
    [
        ("API requests too frequent", None, 1),
        ("API requests too frequent: endpoint threshold=3.0", None, 3),
        ('{"detail":"API requests too frequent endpoint threshold=4.5"}', None, 4.5),
        (answer("rate_limit_exceeded", "API requests too frequent endpoint threshold=3.0"), None, 3),
        ('{"detail":"slow down", "retry_after": 9}', None, 9),
        (answer("search_quota_exceeded", "Daily search row quota exhausted"), "3600", 3600),
        ("<html>429</html>", "2", 2),
        ("", None, 1),
    ],
)
def test_every_shape_of_too_often_says_how_long_to_wait(cloud: VastCloud, body: str, header: str | None, wait_s: float) -> None:
    calls: dict[str, Callable[[], object]] = {
        "create": cloud.launch,
        "list": cloud.provider.instances,
        "show": lambda: cloud.provider.describe("5"),
        "destroy": lambda: cloud.provider.terminate("5"),
        "charges": lambda: cloud.provider.billed_usd("5"),
        "user": cloud.provider.account,
    }
    for endpoint, call in calls.items():
        cloud.script(Fault(endpoint=f"vast.{endpoint}", status=429, body=body, retry_after=header))
        with pytest.raises(RateLimited) as caught:
            call()
        assert caught.value.retry_after_s == wait_s
        assert caught.value.transient
    assert cloud.live() == []


@pytest.mark.parametrize(("reset", "least"), [(3600, 3590), (-5, 0), (None, 1)])
def test_a_quota_that_says_when_it_begins_anew_is_waited_for(reset: int | None, least: float) -> None:
    headers = {} if reset is None else {"X-RateLimit-Reset": str(int(time.time()) + reset)}
    vast = answered_by(lambda _: httpx.Response(429, headers=headers, text=answer("search_quota_exceeded")))
    with pytest.raises(RateLimited) as caught:
        vast.offers(NEEDS)
    assert least <= caught.value.retry_after_s <= least + 15


def test_a_limit_told_with_another_status_is_a_limit(cloud: VastCloud) -> None:
    cloud.script(Fault(endpoint="vast.destroy", status=400, body=answer("rate_limit_exceeded", "endpoint threshold=3.0")))
    with pytest.raises(RateLimited) as caught:
        cloud.provider.terminate("5")
    assert caught.value.retry_after_s == 3


def test_calls_are_kept_apart_so_that_documented_limits_are_never_met(cloud: VastCloud) -> None:
    """With the limits in force and time by hand: each kind of call waits for its own kind only."""
    clock, slept = time.monotonic() + 1000, []

    def sleep(seconds: float) -> None:
        nonlocal clock
        slept.append(seconds)
        clock += seconds

    limits = cloud.server.market.limits
    limits.monotonic_s = lambda: clock
    try:
        provider = cloud.vast(intervals_s=INTERVALS_S, monotonic_s=lambda: clock, sleep=sleep)
        cloud.tell("limits", scale=1)
        offers = provider.offers(replace(NEEDS, gpus=frozenset({"RTX 4090"})))
        ids = [provider.launch(offer, cloud.spec(f"l-{n}")).id for n, offer in enumerate(offers[:2])]
        for id_ in ids:
            provider.describe(id_)
            provider.terminate(id_)
        assert provider.instances() == []
        assert sum(slept) == pytest.approx(4.5 + 3.0), "creates and destroys; the shows fell between"
        hasty = cloud.vast()
        with pytest.raises(RateLimited):
            [hasty.instances() for _ in range(3)]
    finally:
        limits.monotonic_s = time.monotonic


# Money


def test_the_bill_is_the_sum_of_vasts_own_charges_and_agrees_with_the_meter(cloud: VastCloud) -> None:
    instance = wait_for_ssh(cloud.provider, cloud.launch().id)
    login(cloud, instance, "head -c 3000000 /dev/zero")
    cloud.provider.terminate(instance.id)
    meter = cloud.server.market.bill().of(instance.id)
    assert meter
    billed = cloud.provider.billed_usd(instance.id)
    assert billed is not None
    assert abs(billed - meter.total_usd) <= Decimal("0.002"), "four meters, each rounded to a tenth of a cent"
    assert meter.download_usd > 0


def test_charges_on_a_later_page_are_found(cloud: VastCloud) -> None:
    page = {"success": True, "next_token": "t", "results": [{"source": "instance-1", "amount": 1, "items": []}]}
    last = {"success": True, "results": [{"source": "instance-2", "amount": "0.5"}, {"source": "instance-2", "amount": 0.25}]}
    cloud.script(Fault(endpoint="vast.charges", call=1, body=json.dumps(page)), Fault(endpoint="vast.charges", body=json.dumps(last)))
    assert cloud.provider.billed_usd("2") == Decimal("0.75")


def test_an_answer_about_money_that_is_odd_is_no_zero(cloud: VastCloud) -> None:
    for body in ("", "{}", answer("invalid_request"), '{"success": true}'):
        cloud.script(Fault(endpoint="vast.charges", body=body))
        with pytest.raises(UnexpectedResponse):
            cloud.provider.billed_usd("5")


def test_the_start_script_quotes_the_key_and_keeps_the_callers_lines() -> None:
    spec = LaunchSpec(label="l", image="i", disk_gib=1, ssh_public_key="ssh-ed25519 A it's", onstart="echo me")
    script = onstart_script(spec)
    assert "'ssh-ed25519 A it'\"'\"'s'" in script
    assert script.endswith("echo me\n")
    assert search_body(NEEDS, "bid")["type"] == "bid"

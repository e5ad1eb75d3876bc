"""`lorry offers`: whom it asks, what fits, and every part of the price in one form, as wide as the terminal is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import offer
from hypothesis import given
from hypothesis import strategies as st

import providers
from orchestrator.cli import main
from orchestrator.errors import UsageError
from orchestrator.pricing.gpus import GPUS
from orchestrator.pricing.listing import OWN, PRACTICE, as_json, cards, listing, to_ask
from orchestrator.report.offers import COLUMNS
from orchestrator.setup.credentials import KeyStore
from providers.base import Offer, Prices, Requirements
from providers.errors import AuthError, NoKey, ProviderError, Unavailable
from providers.sandbox.server import Server

WANTED = Requirements(disk_gib=40)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and no key anywhere."""
    for name in providers.PROVIDERS:
        if api_key := providers.api_key_of(name):
            for variable in (api_key.variable, *api_key.addresses):
                monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LORRY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tools(**answers: list[Offer] | ProviderError) -> Any:
    """As much of a process's tools as a listing needs."""

    def provider(name: str) -> Any:
        def offers(_: Requirements) -> list[Offer]:
            answer = answers[name]
            if isinstance(answer, ProviderError):
                raise answer
            return answer

        return SimpleNamespace(offers=offers)

    return SimpleNamespace(provider=provider)


# -- whom to ask ------------------------------------------------------------------------------------


def test_clouds_with_a_key_are_asked_and_the_others_are_named_with_the_way_to_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_API_KEY", "x")
    names, keyless = to_ask((), KeyStore(home))
    assert names == ["vast", OWN]
    assert keyless["runpod"] == "no key; lorry login runpod"
    assert PRACTICE not in names


def test_the_practice_cloud_is_asked_when_there_is_nobody_else_or_when_it_is_named(home: Path) -> None:
    assert to_ask((), KeyStore(home))[0] == [OWN, PRACTICE]
    assert to_ask(["sandbox", "sandbox"], KeyStore(home)) == (["sandbox"], {})
    with pytest.raises(UsageError, match="'vats'"):
        to_ask(["vats"], KeyStore(home))


def test_one_clouds_trouble_is_told_and_hides_nothing_and_all_in_trouble_is_an_error() -> None:
    found = listing(["a", "b"], WANTED, tools(a=[offer("o1")], b=Unavailable("b is down")), missing={"c": "no key"})
    assert [one.id for one in found.offers] == ["o1"]
    assert found.missing == {"b": "b is down", "c": "no key"}
    nothing = listing(["a", "b"], WANTED, tools(a=[], b=Unavailable("b is down")), missing={})
    assert (nothing.offers, nothing.missing) == ((), {"b": "b is down"}), "somebody has answered: nothing is for rent there"
    with pytest.raises(Unavailable, match="b is down"):
        listing(["b"], WANTED, tools(b=Unavailable("b is down")), missing={})
    with pytest.raises(NoKey):
        listing(["a", "b"], WANTED, tools(a=AuthError("wrong"), b=NoKey("none")), missing={})


def test_of_machines_of_yours_nothing_is_said_when_there_are_none() -> None:
    found = listing(["a", OWN], WANTED, tools(a=[offer("o1")], **{OWN: AuthError("no machine of yours")}), missing={}, quiet=[OWN])
    assert found.missing == {}


# -- what fits --------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.decimals("0", "5", places=3), st.decimals("0", "0.01", places=5), st.sampled_from([20, 40, 400]), st.booleans(),
            st.sampled_from(["SE", "US"]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_what_is_listed_fits_and_is_sorted_by_the_price_with_its_disk(rows: list[tuple[Decimal, Decimal, int, bool, str]]) -> None:
    """Clouds do not always apply the filters they were given; the disk is part of the price."""
    market = [
        offer(f"o{n}", prices=Prices(gpu_usd_per_hour=gpu, disk_usd_per_gib_hour=disk), disk_gib=room, interruptible=bid, region=region)
        for n, (gpu, disk, room, bid, region) in enumerate(rows)
    ]
    wanted = Requirements(disk_gib=40, max_usd_per_hour=Decimal(2), regions=frozenset({"SE"}))
    found = listing(["a"], wanted, tools(a=market), missing={})
    fits = [
        n for n, (gpu, disk, room, bid, region) in enumerate(rows) if room >= 40 and not bid and region == "SE" and gpu + 40 * disk <= 2
    ]
    assert sorted(one.id for one in found.offers) == sorted(f"o{n}" for n in fits)
    prices = [one.prices.usd_per_hour(40) for one in found.offers]
    assert prices == sorted(prices)
    assert sum(found.left_out.values()) + len(found.offers) == len(market)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("4090", {"RTX 4090"}),
        ("rtx-4090", {"RTX 4090"}),
        ("RTX 4090", {"RTX 4090"}),
        ("l4", {"L4"}),
        ("A100", {"A100 PCIE", "A100 SXM4"}),
        ("RTX 9999", {"RTX 9999"}),
        ("", {""}),
    ],
)
def test_cards_are_known_as_people_type_them(typed: str, meant: set[str]) -> None:
    assert cards([typed]) == meant


def test_every_card_is_known_by_its_own_name() -> None:
    assert GPUS
    assert all(cards([name]) == {name} for name in GPUS)


def test_a_document_has_every_part_of_the_price_and_the_parts_add_up() -> None:
    document = as_json(offer("o1"), 40)
    assert set(document) >= {"gpu_usd_per_hour", "disk_usd_per_gib_hour", "upload_usd_per_gib", "download_usd_per_gib", "disk_gib"}
    assert document["usd_per_hour"] == pytest.approx(document["gpu_usd_per_hour"] + 40 * document["disk_usd_per_gib_hour"])


# -- how it looks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("cloud")) as server:
        yield server


@pytest.fixture
def clouds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both marketplaces, with keys."""
    told = {name: str(value) for name, value in server.descriptor.document().items()}
    monkeypatch.setenv("LORRY_VAST_URL", told["vast_url"])
    monkeypatch.setenv("VAST_API_KEY", told["vast_api_key"])
    monkeypatch.setenv("LORRY_RUNPOD_URL", told["runpod_rest_url"])
    monkeypatch.setenv("LORRY_RUNPOD_GRAPHQL_URL", told["runpod_graphql_url"])
    monkeypatch.setenv("RUNPOD_API_KEY", told["runpod_api_key"])


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_table_is_never_wider_than_the_terminal_and_shows_whole_columns(
    width: int, clouds: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["offers", "--interruptible", "--limit", "12"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 13
    assert max(map(len, lines)) <= width
    titles = [column.title for column in COLUMNS if column.from_width <= width]
    assert lines[0].split() == " ".join(titles).split()
    assert "…" not in said.out
    assert "the cheapest 12 of " in said.err


def test_two_clouds_compete_in_one_list(clouds: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["offers", "--gpu", "4090", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["provider"] for one in found} == {"vast", "runpod"}
    assert {one["gpu"] for one in found} == {"RTX 4090"}
    assert [one["usd_per_hour"] for one in found] == sorted(one["usd_per_hour"] for one in found)


def test_nothing_that_fits_is_said_with_the_reasons(clouds: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["offers", "--max-usd-per-hour", "0.01"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "dearer than max_usd_per_hour" in said.err
    assert "no machine that fits is for rent now" in said.err

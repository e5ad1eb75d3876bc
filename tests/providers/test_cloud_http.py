"""The HTTP client asks once, names what came back in our words, and lets the key out nowhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import AuthError, ProviderError, RateLimited, Unavailable, UnexpectedResponse
from providers.http import CloudHTTP, Pace, retry_after_s

KEY = "sk/very+secret key"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


def client(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> CloudHTTP:
    options = {"key": KEY, "key_hint": "make a new key"} | options
    return CloudHTTP("https://cloud.example/api/", cloud="the cloud", transport=httpx.MockTransport(answer), **options)


def failing(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthError),
        (403, AuthError),
        (429, RateLimited),
        (408, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (599, Unavailable),
        (204, UnexpectedResponse),
        (301, UnexpectedResponse),
        (400, UnexpectedResponse),
        (404, UnexpectedResponse),
        (410, UnexpectedResponse),
    ],
)
def test_each_status_is_one_of_our_errors(status: int, error: type[ProviderError]) -> None:
    with pytest.raises(error) as caught:
        client(lambda _: httpx.Response(status, text="the reason")).call("GET", "/things")
    assert type(caught.value) is error
    assert str(status) in str(caught.value)
    assert status == 204 or "the reason" in str(caught.value)
    assert caught.value.hint == ("make a new key" if error is AuthError else "")


def test_a_status_that_the_provider_expects_comes_back_to_it() -> None:
    answer = client(lambda _: httpx.Response(404, json={"gone": True})).call("GET", "/things/1", expect=frozenset({200, 404}))
    assert (answer.status, answer.data) == (404, {"gone": True})


def test_an_empty_body_is_none() -> None:
    assert client(lambda _: httpx.Response(204)).call("DELETE", "/things/1", expect=frozenset({204})).data is None


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.PoolTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("cut"),
        httpx.DecodingError("not gzip"),
    ],
)
def test_no_answer_is_unavailable_and_may_pass(error: Exception) -> None:
    with pytest.raises(Unavailable) as caught:
        client(failing(error)).call("GET", "/things")
    assert caught.value.transient
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("body", [b"<html>", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_unexpected(body: bytes) -> None:
    with pytest.raises(UnexpectedResponse):
        client(lambda _: httpx.Response(200, content=body)).call("GET", "/things")


def test_it_asks_once_whatever_comes_back() -> None:
    asked = []
    for status in (429, 500, 301):
        with pytest.raises(ProviderError):
            client(lambda request, status=status: asked.append(request) or httpx.Response(status, headers={"Location": "/"})).call(
                "POST", "/"
            )
    assert len(asked) == 3


def test_a_redirect_does_not_carry_the_key_away() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"Location": "https://elsewhere.example/"})

    with pytest.raises(UnexpectedResponse):
        client(answer).call("GET", "/things")
    assert asked == ["cloud.example"]


def test_the_request_has_our_name_the_key_and_the_query() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "https://cloud.example/api/things?a=1"
        assert request.headers["User-Agent"].startswith("lorry/")
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        return httpx.Response(200, json=[])

    assert client(answer).call("GET", "/things", params={"a": "1"}).data == []


def test_the_ids_in_an_error_are_kept() -> None:
    for status in (401, 429, 500, 400):
        with pytest.raises(ProviderError) as caught:
            client(lambda _, status=status: httpx.Response(status, json={"id": 5}), ids_in=lambda data: (str(data["id"]),)).call("PUT", "/")
        assert caught.value.instance_ids == ("5",)


keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)


@given(key=keys, where=st.sampled_from(["body", "json", "exception"]), around=st.text(max_size=400))
def test_the_key_is_in_no_message_whoever_sent_it_back(key: str, where: str, around: str) -> None:
    """Clouds echo keys in errors, and libraries quote requests in theirs."""

    def answer(_: httpx.Request) -> httpx.Response:
        if where == "exception":
            raise httpx.ReadError(f"{around}{key}{around}")
        if where == "json":
            return httpx.Response(500, json={"error": f"{around}{key}"})
        return httpx.Response(500, text=f"{around}{key}{around}")

    http = client(answer, key=key)
    assert key not in repr(http)
    with pytest.raises(ProviderError) as caught:
        http.call("GET", "/")
    chain: BaseException | None = caught.value
    while chain:
        assert key not in str(chain)
        assert json.dumps(key)[1:-1] not in str(chain)
        assert key not in repr(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


@pytest.mark.parametrize("key", ["", "abc\n", " abc", "a\nb", "schl\u00fcssel", "\u2603", "a\0b"])
def test_what_cannot_be_a_key_is_said_so_without_repeating_it(key: str) -> None:
    with pytest.raises(AuthError) as caught:
        client(lambda _: httpx.Response(200), key=key)
    assert not key or key not in str(caught.value)
    assert caught.value.hint == "make a new key"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 1),
        ("0", 0),
        ("12.5", 12.5),
        ("-3", 0),
        ("nan", 1),
        ("inf", 1),
        ("soon", 1),
        ("Fri, 20 Nov 2026 10:00:30 GMT", 30),
        ("Fri, 20 Nov 2026 09:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_in_both_its_forms(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds


@pytest.fixture
def loopback() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"direct": true}')

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_of_the_environment_is_not_asked_for_our_own_loopback(loopback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert CloudHTTP(loopback, cloud="us", key="k").call("GET", "/").data == {"direct": True}


@given(calls=st.lists(st.tuples(st.sampled_from(["show", "list", "destroy"]), st.floats(0, 5)), max_size=12))
def test_calls_of_one_kind_are_kept_apart_and_no_other_kind_waits_for_them(calls: list[tuple[str, float]]) -> None:
    """Two seconds for a look, one for a listing, none for a destroy; a call itself takes as long as it takes."""
    now, intervals_s = 0.0, {"show": 2.0, "list": 1.0}
    ended: dict[str, float] = {}

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(intervals_s, monotonic_s=lambda: now, sleep=sleep)
    for kind, lasts_s in calls:
        due = max(now, ended.get(kind, float("-inf")) + intervals_s.get(kind, 0.0))
        with pace.turn(kind):
            assert now == pytest.approx(due)
            now += lasts_s
        ended[kind] = now


def test_a_call_that_failed_has_had_its_turn() -> None:
    waited: list[float] = []
    pace = Pace({"show": 2.0}, monotonic_s=lambda: 0.0, sleep=waited.append)
    with pytest.raises(ZeroDivisionError), pace.turn("show"):
        raise ZeroDivisionError
    with pace.turn("show"):
        assert waited == [2.0]

"""Where keys are kept: a keyring where there is one worth the name, else a file of the owner's; each key for its addresses only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyring.backend import KeyringBackend
from keyring.backends import chainer, fail, null
from keyring.errors import KeyringLocked, PasswordDeleteError

from orchestrator.setup.credentials import KeyNotKept, KeyringShut, KeyStore, UnsafeKeyFile, keyring_name
from providers.errors import AuthError

KEY = "canary-6f1d2c"
AT = "https://cloud.example"


class Memory(KeyringBackend):
    """A keyring of the library's own kind that writes nothing."""

    priority = 5  # type: ignore[assignment]
    name = "a memory"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        self._look()
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._look()
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._look()
        if self.held.pop((service, username), None) is None:
            raise PasswordDeleteError

    def _look(self) -> None:
        if self.locked:
            raise KeyringLocked(f"{KEY} is behind a lock")  # a backend may say anything


class InTheClear(Memory):
    """Like the libraries' plain-text files: it works, and nobody recommends it."""

    priority = 0.5  # type: ignore[assignment]
    name = "plain text"  # type: ignore[assignment]


class Chain(chainer.ChainerBackend):
    """Several at once, as a desktop may have."""

    backends = ()  # type: ignore[assignment]  # the library works them out from what is installed

    def __init__(self, *backends: KeyringBackend) -> None:
        self.backends = list(backends)  # type: ignore[assignment, misc]


@pytest.fixture(autouse=True)
def memory() -> Iterator[Memory]:
    """This process's keyring, for one test."""
    before, memory = keyring.get_keyring(), Memory()
    keyring.set_keyring(memory)
    yield memory
    keyring.set_keyring(before)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "home")


def test_a_key_goes_into_the_keyring_and_its_file_says_only_that(store: KeyStore, memory: Memory) -> None:
    words = store.put("vast", AT, KEY)
    assert words == "the keyring (a memory)"
    assert store.get("vast", AT) == KEY
    assert list(memory.held.values()) == [KEY]
    assert KEY not in store.file.read_text()
    assert store.where("vast", AT) == "the keyring"
    assert store.drop("vast", AT)
    assert (memory.held, store.get("vast", AT), store.drop("vast", AT)) == ({}, "", False)


@pytest.mark.parametrize("backend", [null.Keyring, fail.Keyring, InTheClear], ids=lambda kind: kind.__module__ + "." + kind.__name__)
def test_without_a_keyring_worth_the_name_a_key_goes_into_a_file_that_only_its_owner_reads(
    backend: type[KeyringBackend], store: KeyStore
) -> None:
    keyring.set_keyring(backend())
    before = os.umask(0)  # the widest: nothing of ours may lean on it
    try:
        words = store.put("vast", AT, KEY)
    finally:
        os.umask(before)
    assert words == str(store.file)
    assert store.file.stat().st_mode & 0o777 == 0o600
    assert (store.get("vast", AT), store.where("vast", AT), keyring_name()) == (KEY, str(store.file), "")
    assert store.drop("vast", AT)
    assert KEY not in store.file.read_text()


def test_of_several_keyrings_the_first_that_is_worth_the_name_is_taken(store: KeyStore, memory: Memory) -> None:
    keyring.set_keyring(Chain(InTheClear(), memory))
    assert store.put("vast", AT, KEY) == "the keyring (a memory)"
    assert list(memory.held.values()) == [KEY]


def test_a_keyring_that_is_shut_when_a_key_is_kept_gives_way_to_the_file(store: KeyStore, memory: Memory) -> None:
    memory.locked = True
    assert store.put("vast", AT, KEY) == str(store.file)
    assert store.get("vast", AT) == KEY


def test_a_keyring_that_is_shut_later_says_so_without_the_key(store: KeyStore, memory: Memory) -> None:
    store.put("vast", AT, KEY)
    memory.locked = True
    for act in (store.get, store.drop):
        with pytest.raises(KeyringShut) as caught:
            act("vast", AT)
        assert isinstance(caught.value, AuthError)
        assert caught.value.exit_code == 11
        assert "unlock it" in caught.value.hint
        assert KEY not in str(caught.value)
    memory.locked = False
    assert store.get("vast", AT) == KEY


def test_a_key_that_somebody_took_out_of_the_keyring_is_missed(store: KeyStore, memory: Memory) -> None:
    store.put("vast", AT, KEY)
    memory.held.clear()
    with pytest.raises(KeyringShut, match="no longer in the keyring"):
        store.get("vast", AT)
    assert store.drop("vast", AT), "and can be forgotten all the same"


def test_no_keyring_is_opened_for_a_key_that_was_never_kept(store: KeyStore, memory: Memory) -> None:
    """A locked one would ask the user for a password."""
    memory.locked = True
    assert (store.get("vast", AT), store.where("vast", AT), store.drop("vast", AT)) == ("", "", False)


def test_a_key_is_given_out_for_its_own_addresses_and_for_no_others(store: KeyStore) -> None:
    store.put("vast", AT, KEY)
    store.put("vast", "http://127.0.0.1:1", "rehearsal")
    assert store.get("vast", AT) == KEY
    assert store.get("vast", "http://127.0.0.1:1") == "rehearsal"
    assert store.get("vast", "http://elsewhere.example") == ""
    assert store.get("runpod", AT) == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o777])
def test_a_file_that_others_may_touch_is_refused_with_the_way_to_mend_it(mode: int, store: KeyStore) -> None:
    keyring.set_keyring(null.Keyring())
    store.put("vast", AT, KEY)
    store.file.chmod(mode)
    for act in (store.get, store.where, store.drop):
        with pytest.raises(UnsafeKeyFile, match=f"mode {mode:04o}") as caught:
            act("vast", AT)
        assert f"chmod 600 {store.file}" in caught.value.hint
        assert KEY not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(UnsafeKeyFile):
        store.put("vast", AT, "another")
    store.file.chmod(0o600)
    assert store.get("vast", AT) == KEY


@pytest.mark.parametrize(
    "text", ["", "[]", '{"vast x": 3}', '{"vast x": {"key": 3}}', '{"vast x": {"key": "' + KEY + '", "more": 1}}', "\x00"]
)
def test_a_file_that_is_not_ours_is_refused_without_being_quoted(text: str, store: KeyStore) -> None:
    store.home.mkdir()
    store.file.write_text(text)
    store.file.chmod(0o600)
    with pytest.raises(UnsafeKeyFile, match="not as lorry wrote it") as caught:
        store.get("vast", "x")
    assert KEY not in repr(caught.value)
    assert caught.value.__suppress_context__, "pydantic's own words would quote it"


def test_where_nothing_can_be_written_the_key_is_said_not_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises((KeyNotKept, UnsafeKeyFile)) as caught:
        KeyStore(tmp_path / "home").put("vast", AT, KEY)
    assert caught.value.exit_code == 11
    assert KEY not in f"{caught.value} {caught.value.hint}"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(
        st.tuples(
            st.sampled_from(["vast", "runpod"]), st.sampled_from([AT, "http://127.0.0.1:1"]), st.none() | st.text(min_size=1, max_size=9)
        ),
        max_size=12,
    ),
    rung=st.booleans(),
)
def test_what_was_kept_last_is_what_is_there(
    acts: list[tuple[str, str, str | None]], rung: bool, memory: Memory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a dictionary: keep and forget in any order, with a keyring and without."""
    memory.held.clear()
    keyring.set_keyring(memory if rung else null.Keyring())
    store, model = KeyStore(tmp_path_factory.mktemp("home")), {}
    for provider, address, key in acts:
        if key is None:
            assert store.drop(provider, address) is ((provider, address) in model)
            model.pop((provider, address), None)
        else:
            store.put(provider, address, key)
            model[provider, address] = key
        seen = {(p, a): store.get(p, a) for p in ("vast", "runpod") for a in (AT, "http://127.0.0.1:1")}
        assert {name: key for name, key in seen.items() if key} == model
    if rung and store.file.exists():
        assert all(entry == {"key": None} for entry in json.loads(store.file.read_text()).values())

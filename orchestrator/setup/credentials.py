"""Where API keys are kept on this computer: in the system's keyring, else in a file that nobody but its owner reads.

`keys.json` below LORRY_HOME says for which cloud and addresses there is a key, and where; the key itself stands in it only where there
is no keyring worth the name (a Linux without a desktop has none). A key is given out for the addresses it was kept for and for no
others, and the environment wins over it: see `providers.keys`. Keys get into no message of ours.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from orchestrator.errors import LorryError
from orchestrator.home import write_atomically
from providers.errors import AuthError

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SERVICE = "lorry"
"""Under this name the keys stand in the keyring."""
FILE = "keys.json"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""The rights that nobody but the owner may have on a file with a key."""


class UnsafeKeyFile(AuthError):
    """The file with the keys can be read by others, or cannot be read by us."""

    code = "LRY-KEY-FILE"


class KeyringShut(AuthError):
    """The keyring holds the key and does not give it out."""

    code = "LRY-KEYRING"


class KeyNotKept(LorryError):
    """There is no place for the key."""

    code = "LRY-KEY-NOT-KEPT"
    exit_code = 11


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    """None: the keyring has it."""


_ALL = TypeAdapter(dict[str, _Kept])


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The keys that `lorry login` has kept in one LORRY_HOME."""

    home: Path

    @property
    def file(self) -> Path:
        """What says where each key is."""
        return self.home / FILE

    def get(self, provider: str, address: str) -> str:
        """The key that is kept for these addresses of a cloud; empty when there is none. Raises `AuthError` when it cannot be had."""
        kept = self._read().get(_name(provider, address))
        if kept is None:
            return ""
        return kept.key if kept.key is not None else _from_keyring(_name(provider, address), provider)

    def put(self, provider: str, address: str, key: str) -> str:
        """Keep a key, in the place of an earlier one; returns where it is now: the keyring's name, or the file."""
        name, all_kept = _name(provider, address), self._read()
        words, kept = _into_keyring(name, key), _Kept()
        if not words:
            words, kept = str(self.file), _Kept(key=key)
        self._write(all_kept | {name: kept})
        return words

    def drop(self, provider: str, address: str) -> bool:
        """Forget the key; whether there was one."""
        name, all_kept = _name(provider, address), self._read()
        kept = all_kept.pop(name, None)
        if kept is None:
            return False
        if kept.key is None:
            _out_of_keyring(name, provider)
        self._write(all_kept)
        return True

    def where(self, provider: str, address: str) -> str:
        """Where the key for these addresses is; empty when there is none. Opens no keyring."""
        kept = self._read().get(_name(provider, address))
        return "" if kept is None else "the keyring" if kept.key is None else str(self.file)

    def _read(self) -> dict[str, _Kept]:
        try:
            with self.file.open("rb") as file:
                about, raw = os.fstat(file.fileno()), file.read()
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise UnsafeKeyFile(f"{self.file} cannot be read: {err.strerror}", hint=f"make it yours: chown $USER {self.file}") from err
        if os.name != "nt" and about.st_mode & OTHERS:  # on Windows these bits say nothing, and the folder is the user's own
            raise UnsafeKeyFile(
                f"{self.file} holds keys and others may read it (mode {stat.S_IMODE(about.st_mode):04o})",
                hint=f"chmod 600 {self.file}; if somebody else works on this computer, make new keys as well",
            )
        try:
            return _ALL.validate_json(raw)
        except ValidationError:
            raise UnsafeKeyFile(
                f"{self.file} is not as lorry wrote it", hint="remove it, then log in again: lorry login PROVIDER"
            ) from None

    def _write(self, all_kept: dict[str, _Kept]) -> None:
        document = {name: kept.model_dump() for name, kept in sorted(all_kept.items())}
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self.file, json.dumps(document, indent=2).encode() + b"\n", mode=0o600)
        except OSError as err:
            raise KeyNotKept(
                f"the key cannot be kept: {self.file}: {err.strerror}", hint="free some space there, or point LORRY_HOME at another folder"
            ) from err


def _name(provider: str, address: str) -> str:
    return f"{provider} {address}"


# -- the keyring -----------------------------------------------------------------------------------


def keyring_name() -> str:
    """How the keyring here is called, for a person; empty when there is none worth the name."""
    return "" if (backend := _keyring()) is None else str(backend.name)


def _keyring() -> KeyringBackend | None:
    """The system's keyring. None where there is none, or only one that keeps keys in the clear: our own file is no worse than that."""
    import keyring
    from keyring.backends.chainer import ChainerBackend
    from keyring.core import recommended

    found = keyring.get_keyring()
    candidates = found.backends if isinstance(found, ChainerBackend) else [found]
    return next((one for one in candidates if recommended(one)), None)


def _from_keyring(name: str, provider: str) -> str:
    from keyring.errors import KeyringError

    backend = _keyring()
    try:
        key = backend.get_password(SERVICE, name) if backend is not None else None
    except KeyringError as err:
        raise KeyringShut(
            f"the keyring does not give out the key for {provider}: {type(err).__name__}",
            hint=f"unlock it, or put the key into the environment: lorry help environment; or again: lorry login {provider}",
        ) from err
    if key is None:
        raise KeyringShut(
            f"the key for {provider} is no longer in the keyring"
            if backend
            else f"the key for {provider} is in a keyring, and here is none",
            hint=f"lorry login {provider}",
        )
    return key


def _into_keyring(name: str, key: str) -> str:
    """Keep it there; empty when that is not to be had."""
    from keyring.errors import KeyringError

    backend = _keyring()
    if backend is None:
        return ""
    try:
        backend.set_password(SERVICE, name, key)
        return f"the keyring ({backend.name})" if backend.get_password(SERVICE, name) == key else ""
    except KeyringError:
        return ""


def _out_of_keyring(name: str, provider: str) -> None:
    from keyring.errors import KeyringError, PasswordDeleteError

    backend = _keyring()
    try:
        if backend is not None:
            with suppress(PasswordDeleteError):  # it was not there any more
                backend.delete_password(SERVICE, name)
    except KeyringError as err:
        raise KeyringShut(f"the keyring does not let go of the key for {provider}: {type(err).__name__}", hint="unlock it") from err

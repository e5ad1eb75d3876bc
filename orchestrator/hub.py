"""Bases on a model hub: looked at here, before anything is rented, so that a machine fetches exactly these bytes, or is not asked to.

A token is used only where the hub gives nothing without one. It goes to the hub's own address and, over the SSH channel, to the program on
the machine that fetches the base; it is in no file, argument, environment or entry of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import LorryError, UsageError

if TYPE_CHECKING:
    import httpx

URL = "https://huggingface.co"
URL_ENV = "HF_ENDPOINT"
TOKEN_ENV = "HF_TOKEN"  # noqa: S105  the variable's name
TIMEOUT_S = 20.0
INDEX = "model_index.json"
WANTED = re.compile(r"[^/]+/[^/]+\.(json|txt|model|jinja|safetensors)\Z")
UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Components that no family trains or draws with."""
MOST_FILES = 2000
MOST_BYTES = 32 * 1024 * 1024


class HubRefused(LorryError):
    """The hub does not give this base to this token, or to nobody without one."""

    code = "LRY-HUB-TOKEN"
    exit_code = 11


class HubSilent(LorryError):
    """The hub cannot be asked from here."""

    code = "LRY-HUB"
    exit_code = 4


class HubFile(BaseModel):
    """One file of a base, as the hub has it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(max_length=500)
    size: int = Field(ge=0)
    sha256: str | None = None
    """Of its bytes; None for the small ones, which the commit names by another hash."""


class HubBase(BaseModel):
    """A base at one commit, and the files of it that a training needs. Carries no secret."""

    model_config = ConfigDict(frozen=True)

    repo: str
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    files: tuple[HubFile, ...]
    needs_token: bool = False

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


class _Large(BaseModel):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    lfs: _Large | None = None


class _Info(BaseModel):
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    siblings: list[_Sibling] = Field(max_length=20_000)


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub, and the token that may be shown to it."""

    url: str = URL
    token: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Hub:
        """The hub of this process; the token in it is hidden from everything that is printed."""
        from .setup.redaction import hide

        token = environment.get(TOKEN_ENV, "").strip()
        hide(token)
        return cls(url=(environment.get(URL_ENV) or URL).rstrip("/"), token=token)

    def __repr__(self) -> str:
        return f"Hub({self.url!r})"

    def look(self, repo: str, revision: str | None) -> HubBase:
        """The base as it is. Raises `HubRefused` where it may not be had, `UsageError` where it is none, `HubSilent` without a word."""
        found = self._seen(repo, revision, "")
        if found is None:
            if not self.token:
                raise HubRefused(
                    f"the hub does not show {repo} to everybody: its licence has to be accepted, or there is no such base",
                    hint=f"accept it at {self.url}/{repo} with your account, then set {TOKEN_ENV} to a token of it that may read",
                )
            self._prove_token()
            found = self._seen(repo, revision, self.token)
        if found is None:
            raise HubRefused(
                f"the token in {TOKEN_ENV} does not open {repo}: its account has not accepted the licence, or there is no such base",
                hint=f"accept it at {self.url}/{repo} with the account that the token is of; a fine-grained one needs gated repositories",
            )
        return found

    def _seen(self, repo: str, revision: str | None, token: str) -> HubBase | None:
        """None where the hub wants more than `token`."""
        answer = self._get(f"/api/models/{repo}/revision/{revision or 'main'}", token, blobs="true")
        if answer.status_code == 404 and revision and self._get(f"/api/models/{repo}", token).status_code == 200:
            raise UsageError(f"{repo} has no revision {revision}", hint="base_revision is a commit, branch or tag of the base")
        if answer.status_code in (401, 403, 404):  # what may not be seen is said not to be there
            return None
        try:
            info = _Info.model_validate_json(answer.content) if answer.status_code == 200 else None
        except ValidationError:
            info = None
        if info is None:
            raise HubSilent(f"the hub answered {answer.status_code} about {repo}, which tells nothing", hint="try again later")
        if not any(file.rfilename == INDEX for file in info.siblings):
            raise UsageError(f"{repo} is no diffusers model: it has no {INDEX}", hint="give the id of one, or a .safetensors file of it")
        index = self._get(f"/{repo}/resolve/{info.sha}/{INDEX}", token)
        if index.status_code in (401, 403):
            return None
        if index.status_code != 200:
            raise HubSilent(f"the hub answered {index.status_code} for {INDEX} of {repo}", hint="try again later")
        files = needed(info.siblings, _components(index))
        return HubBase(repo=repo, revision=info.sha, files=files, needs_token=bool(token))

    def _prove_token(self) -> None:
        if self._get("/api/whoami-v2", self.token).status_code in (401, 403):
            raise HubRefused(
                f"the hub does not know the token in {TOKEN_ENV}", hint=f"make one at {self.url}/settings/tokens that may read"
            )

    def _get(self, path: str, token: str, **params: str) -> httpx.Response:
        """One call to the hub itself. A redirect to elsewhere gets no token, and is followed for what is small."""
        import httpx

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = httpx.get(f"{self.url}{path}", params=params, headers=headers, timeout=TIMEOUT_S, trust_env=False)
            if answer.next_request is not None:
                answer = httpx.get(answer.next_request.url, timeout=TIMEOUT_S, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            raise HubSilent(
                f"{self.url} does not answer: {type(err).__name__}", hint="without it nobody knows whether the base can be had"
            ) from err
        return answer


def needed(siblings: Sequence[_Sibling], components: Iterable[str]) -> tuple[HubFile, ...]:
    """The files that a training reads: configurations, vocabularies, and weights in full size, never a pickle."""
    parts = {*components}
    found = [one for one in siblings if one.rfilename == INDEX or (WANTED.match(one.rfilename) and one.rfilename.split("/")[0] in parts)]
    chosen = [one for one in found if not _is_variant(one.rfilename)]
    if not chosen or len(chosen) > MOST_FILES or not any(one.rfilename.endswith(".safetensors") for one in chosen):
        raise UsageError("the base has no weights in the safetensors format", hint="take one that has")
    return tuple(
        HubFile(name=one.rfilename, size=one.lfs.size if one.lfs else one.size or 0, sha256=one.lfs.sha256 if one.lfs else None)
        for one in sorted(chosen, key=lambda one: one.rfilename)
    )


def _is_variant(name: str) -> bool:
    """`model.fp16.safetensors`, and the index of its parts: the same weights again."""
    words = name.rpartition("/")[2].split(".")
    return "safetensors" in words and words.index("safetensors") != 1


def _components(index: httpx.Response) -> list[str]:
    try:
        told: Any = index.json()
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise HubSilent(f"the {INDEX} of the base is no table", hint="try again later")
    return [name for name, kind in told.items() if isinstance(kind, list) and all(kind) and name not in UNUSED]

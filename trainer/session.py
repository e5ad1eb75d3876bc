"""The session's file as it lies on the training machine: read by the supervisor and its worker, again whenever the client has written it.

The client brings the deadline nearer when the price rises, and adds jobs at the end of the queue. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from .errors import SpecError
from .protocol import Session

NAME = "session.json"


def read_session(root: Path) -> Session:
    """The queue."""
    try:
        return Session.model_validate_json((root / NAME).read_bytes())
    except OSError as error:
        raise SpecError("LRY-JOB-READ", f"{root}/session.json cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SpecError("LRY-JOB-SPEC", f"session.json: {wrong}.") from error


@dataclass(slots=True)
class SessionFile:
    """The file, looked at again and again."""

    root: Path
    _seen: tuple[int, ...] = ()
    """What it looked like when it was read last."""

    def news(self) -> Session | None:
        """What it says, if it was written since the last look. Raises once for each version that makes no sense."""
        found = (self.root / NAME).stat()
        look = (found.st_ino, found.st_mtime_ns, found.st_size)
        if look == self._seen:
            return None
        self._seen = look
        return read_session(self.root)


@dataclass(slots=True)
class Arrivals:
    """Names that were written into the queue since this process began."""

    root: Path
    known: set[str]
    """Names that stood there when it began, or were told since."""
    _file: SessionFile = field(init=False)

    def __post_init__(self) -> None:
        self._file = SessionFile(self.root)

    def names(self) -> list[str]:
        """Those that are new; none while the file cannot be read."""
        try:
            session = self._file.news()
        except (OSError, SpecError):
            return []
        found = [name for name in session.jobs if name not in self.known] if session else []
        self.known.update(found)
        return found

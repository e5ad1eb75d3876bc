"""Whether a machine is the one that was offered, told by what it says of itself and by what was measured. PURE.

`templates/inspector.py` runs on the machine and tells; `inspecting.py` asks it, and measures the line. What a machine tells is a
stranger's word: it is read strictly, it is small, and a machine that lies well enough is not found out here, only one that is wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from json import dumps
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.budget import GIB
from orchestrator.plan import Load, estimate, vram_bytes
from providers.base import Offer

MARK = b"@lorry "
"""The line of the answer that counts begins so: some images greet whoever logs in."""
TOLD_MOST_BYTES = 16_384
VRAM_SHARE = 0.9
"""Of the size on the box. A driver keeps some for itself, error correction a sixteenth of it: an L40S of 48 GiB shows 44.5."""
DISK_SLACK_BYTES = 2 * GIB
"""What the Python environment needs beside what is sent, fetched and made."""
SLOW_FACTOR = 3.0
"""Between the plan's P50 and its P90 lies as much: a line this slow is beyond what the plan called likely."""
SLOW_GRACE_S = 120.0
"""What the next machine's boot takes: for less nobody changes machines."""
ALIKE = 0.5
"""Two machines of two strangers whose lines differ by less have one thing in common: the line here."""

_TEXT = r"^[ -~]*$"


class Card(BaseModel):
    """One card, as CUDA sees it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100, pattern=_TEXT)
    vram_bytes: int = Field(ge=0, le=2**44)
    free_bytes: int = Field(ge=0, le=2**44)
    """What nobody uses."""


class Told(BaseModel):
    """What the inspector tells."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    cards: tuple[Card, ...] = Field(max_length=64)
    """Those that were written to and read back."""
    cuda: int = Field(ge=0, le=1_000_000)
    """The newest CUDA that the driver can do, as 12080 for 12.8."""
    driver: str = Field(max_length=40, pattern=_TEXT)
    trouble: str = Field(max_length=300, pattern=_TEXT)
    """The call that failed, in CUDA's words; empty when all went well."""
    disk_free_bytes: int = Field(ge=0, le=2**60)
    disk_trouble: str = Field(max_length=300, pattern=_TEXT)
    practice: bool
    """Whether the cards are only played: the practice cloud's are."""

    @property
    def words(self) -> str:
        """For people."""
        real = f"driver {self.driver or 'unknown'} for CUDA up to {cuda_words(self.cuda)}"
        cards = cards_words([(one.name, one.vram_bytes / GIB) for one in self.cards])
        return f"{cards}, {'which it plays' if self.practice else real}, {self.disk_free_bytes // GIB} GiB of disk free"


class Line(BaseModel):
    """How fast bytes go to a machine and come from it."""

    model_config = ConfigDict(frozen=True)

    up_bytes_s: float = Field(gt=0, allow_inf_nan=False)
    down_bytes_s: float = Field(gt=0, allow_inf_nan=False)

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.up_bytes_s * 8e-6:.1f} Mbit/s up, {self.down_bytes_s * 8e-6:.1f} down"


def in_words(data: Mapping[str, Any]) -> str:
    """What the ledger keeps of an inspection, for people."""
    told = Told.model_validate_json(dumps({name: data[name] for name in Told.model_fields}))
    return f"{told.words}; {Line.model_validate(data).words}"


def read(raw: bytes) -> Told | None:
    """What the inspector has told; None when that makes no sense."""
    lines = [line.removeprefix(MARK) for line in raw[-2 * TOLD_MOST_BYTES :].splitlines() if line.startswith(MARK)]
    if not lines or len(lines[-1]) > TOLD_MOST_BYTES:
        return None
    try:
        return Told.model_validate_json(lines[-1])
    except ValidationError:
        return None


def hardware_wrong(told: Told, offer: Offer, load: Load, *, cuda: int, near: bool) -> str:
    """Why the machine is not the one that was paid for, or cannot do the work; empty when it will do.

    `cuda`: the version that the image was built for, 0 where that is not known. `near`: whether the machine is on this computer, the
    only place where cards may be played.
    """
    if told.practice and not near:
        return "it says that it only plays its card"
    return _cards_wrong(told, offer, load, cuda) or _disk_wrong(told, load)


def _cards_wrong(told: Told, offer: Offer, load: Load, cuda: int) -> str:
    if told.trouble:
        return f"CUDA does not work there: {told.trouble}"
    got = cards_words([(one.name, one.vram_bytes / GIB) for one in told.cards])
    offered = cards_words([(offer.gpu_name, offer.vram_gib)] * offer.gpu_count)
    used = told.cards[: offer.gpu_count]
    if (
        len(used) < offer.gpu_count
        or not all(same_card(offer.gpu_name, one.name) for one in used)
        or any(one.vram_bytes < VRAM_SHARE * offer.vram_gib * GIB for one in used)
    ):
        return f"offered {offered}, the machine has {got}"
    need = vram_bytes(load)
    if (free := min(one.free_bytes for one in used)) < need:
        return f"{free / GIB:.1f} GiB of its card are free, the jobs need about {need / GIB:.1f}: somebody else uses it"
    if cuda and told.cuda < cuda:
        return f"its driver can do CUDA {cuda_words(told.cuda)} at most, the image's torch needs {cuda_words(cuda)}"
    return ""


def _disk_wrong(told: Told, load: Load) -> str:
    if told.disk_trouble:
        return f"its disk cannot be written to: {told.disk_trouble}"
    need = load.upload_bytes + load.hub_bytes + 2 * load.download_bytes + DISK_SLACK_BYTES
    if told.disk_free_bytes < need:
        return f"{told.disk_free_bytes / GIB:.1f} GiB of its disk are free, the run needs {need / GIB:.1f}"
    return ""


def line_wrong(line: Line, offer: Offer, load: Load, *, last: Line | None) -> str:
    """Why the line is too slow for the plan; empty when it is not, or when it is this computer's own that is slow.

    `last`: the line to the machine before. Where that one was about as slow, it is not the machine that is.
    """
    phases = estimate(load, offer, 0).phases
    said_s = phases["upload"].p50 + phases["pull"].p50
    takes_s = load.upload_bytes / line.up_bytes_s + load.download_bytes / line.down_bytes_s
    if takes_s <= said_s * SLOW_FACTOR or takes_s <= said_s + SLOW_GRACE_S:
        return ""
    if last is not None and min(line.up_bytes_s / last.up_bytes_s, line.down_bytes_s / last.down_bytes_s) >= ALIKE:
        return ""
    return f"its line is slow, {line.words}: sending and fetching would take {takes_s / 60:.0f} minutes, the plan said {said_s / 60:.1f}"


def cards_words(cards: list[tuple[str, float]]) -> str:
    """`2 x RTX 4090 24 GiB`; makers' and trade names left out."""
    counted = Counter((re.sub(r"\b(NVIDIA|GeForce|Generation) ?", "", name).strip() or name, round(gib)) for name, gib in cards)
    return ", ".join(f"{f'{count} x ' if count > 1 else ''}{name} {gib} GiB" for (name, gib), count in counted.items()) or "no card"


def cuda_words(version: int) -> str:
    """`12.8` for 12080."""
    return f"{version // 1000}.{version % 1000 // 10}"


def cuda_of(image: str) -> int:
    """The CUDA that an image names in its own name, as they do (`2.8.0-cuda12.8-cudnn9`, `cu1290`); 0 where it names none."""
    found = re.search(r"cu(?:da)?-?(\d\d)\.?(\d)", image)
    return int(found[1]) * 1000 + int(found[2]) * 10 if found else 0


_NOISE = re.compile(
    r"nvidia|geforce|quadro|tesla|titan(?= rtx)|generation|graphics|gpu|blackwell|edition|sxm\d*|pcie|nvl|hbm\d\w?|\d+ ?gi?b\b"
)
"""Words that one side writes and the other does not: makers, sockets, sizes. Sizes are compared as sizes."""
_SHORT = {"super": "s", "server": "", "workstation": "", "ws": "", "q": "", "max": ""}


def same_card(offered: str, told: str) -> bool:
    """Whether a marketplace's name and the driver's mean the same card: `RTX 4070S Ti` is `NVIDIA GeForce RTX 4070 Ti SUPER`."""
    return _parts(offered) == _parts(told)


def _parts(name: str) -> Counter[str]:
    """A name's letters and numbers, whatever their order: `RTX 6000Ada` and `RTX 6000 Ada Generation` have the same."""
    found = re.findall(r"[a-z]+|\d+", _NOISE.sub(" ", name.lower()))
    parts = Counter(short for one in found if (short := _SHORT.get(one, one)))
    if parts["pro"]:
        parts.pop("s", None)  # the server's card of that kind, not a SUPER
    return parts

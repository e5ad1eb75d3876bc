"""Which versions of the programs that lorry starts are known to be bad, and why. PURE: a table and the reading of it.

Sources: the projects' own release notes and CVE records, looked at on 20 November 2026. Distributions put fixes into older versions
without changing their numbers, so a number is a reason to look, never a reason to refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Something that was mended."""

    program: str
    mended_in: str
    cves: tuple[str, ...]
    meaning: str
    """What it means for somebody who rents a stranger's machine."""


FLAWS: tuple[Flaw, ...] = (
    Flaw(
        program="rsync",
        mended_in="3.4.0",
        cves=("CVE-2024-12086", "CVE-2024-12747"),
        meaning="a machine that is sent files can find out what is in other files of this computer",
    ),
    Flaw(
        program="rsync",
        mended_in="3.4.3",
        cves=("CVE-2026-43617", "CVE-2026-43618", "CVE-2026-43620"),
        meaning="a hostile machine can read this process's memory or crash it",
    ),
    Flaw(
        program="rsync",
        mended_in="3.5.0",
        cves=("CVE-2026-53791", "CVE-2026-70462"),
        meaning="33 flaws, one of them critical; a hostile machine can also hold a transfer up for ever (lorry ends that by itself)",
    ),
    Flaw(program="rsync", mended_in="3.5.2", cves=("CVE-2026-119741",), meaning="what it lets somebody do stands in its public record"),
    Flaw(
        program="ssh",
        mended_in="9.6",
        cves=("CVE-2023-48795", "CVE-2023-51385"),
        meaning="somebody on the line can take messages out of the handshake (Terrapin)",
    ),
    Flaw(
        program="ssh",
        mended_in="9.9p2",
        cves=("CVE-2025-26465",),
        meaning="where VerifyHostKeyDNS is on, somebody on the line can pass for the machine",
    ),
    Flaw(
        program="ssh",
        mended_in="10.1",
        cves=("CVE-2025-61984", "CVE-2025-61985"),
        meaning="odd user names and addresses can run commands through a ProxyCommand of your ssh config",
    ),
    Flaw(
        program="ssh",
        mended_in="10.6",
        cves=("CVE-2026-106552",),
        meaning="`sftp -r` writes where a hostile machine says (lorry does not use it; you might)",
    ),
)
"""Oldest first for each program."""


def version_in(words: str) -> str:
    """The first version in a program's own words: `rsync  version 3.5.0  protocol ...`, `OpenSSH_9.2p1 Debian...`. Empty: none."""
    found = re.search(r"(?:version |OpenSSH(?:_for_Windows)?_)v?(\d+(?:\.\d+)+(?:p\d+)?)", words)
    return found[1] if found else ""


def numbers(version: str) -> Version:
    """To compare by: `9.9p2` is after `9.9` and `9.9p1`, before `10.0`. OpenSSH's first portable release of a version is its p1."""
    main, _, patch = version.partition("p")
    parts = [int(part) for part in main.split(".")]
    return (*parts, *[0] * (3 - len(parts)), int(patch or 1))


def flaws_of(program: str, version: str) -> list[Flaw]:
    """What the program of this version has that later ones have not."""
    return [flaw for flaw in FLAWS if flaw.program == program and numbers(version) < numbers(flaw.mended_in)]

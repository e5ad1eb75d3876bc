"""The SFTP client that reads from a stranger's machine, and the bounds of what its server may say at once.

paramiko trusts the lengths that the other side tells: it would gather a packet of four gigabytes, or count through four billion
attributes of one file. What is larger than anything that we ask for is refused here, before it is gathered.
"""

from __future__ import annotations

import struct
from typing import Any

import paramiko
from paramiko.sftp import CMD_ATTRS

from orchestrator.errors import IntegrityError

MOST_ANSWER_BYTES = 1024 * 1024
"""We ask for 32 KiB of a file at once; names and attributes are shorter."""
MOST_PACKET_BYTES = 1024 * 1024
"""OpenSSH itself takes no SSH packet that is larger than a quarter of it."""
MOST_GREETING_BYTES = 1024 * 1024
"""What a server may say before its key is known: a few kilobytes of banner and algorithms do."""
NONSENSE = (ValueError, ArithmeticError, LookupError, TypeError, struct.error, paramiko.SFTPError)
"""What paramiko raises over bytes that no server of ours sends."""
_KNOWN_ATTRIBUTES = 0x0000000F
"""Size, owner, rights, times. Nobody needs the others, of which there may be as many as the server likes."""


class Files(paramiko.SFTPClient):  # type: ignore[misc]
    """Files on a machine, by answers of sane size."""

    def _read_all(self, n: int) -> bytes:
        if n > MOST_ANSWER_BYTES:
            raise IntegrityError(f"the machine answers with {n} bytes at once; nothing that was asked of it is so long")
        gathered = bytearray()
        while len(gathered) < n:
            if not (piece := self.sock.recv(n - len(gathered))):
                raise EOFError
            gathered += piece
        return bytes(gathered)

    def _request(self, t: Any, *args: Any) -> Any:
        kind, answer = super()._request(t, *args)
        if kind == CMD_ATTRS and int.from_bytes(answer.get_remainder()[:4], "big") & ~_KNOWN_ATTRIBUTES:
            raise IntegrityError("the machine tells things of a file that nobody asked for")
        return kind, answer


def bound(transport: paramiko.Transport) -> None:
    """Let no SSH packet make this process gather more than `MOST_PACKET_BYTES`."""
    packets = transport.packetizer
    gather = packets.read_all

    def bounded(n: int, check_rekey: bool = False) -> bytes:
        if not 0 <= n <= MOST_PACKET_BYTES:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        data: bytes = gather(n, check_rekey)
        return data

    packets.read_all = bounded

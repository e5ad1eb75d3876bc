# ruff: noqa: ANN001, ANN201, SIM115, PTH207
"""python3 - CHALLENGE     comes on stdin: proves that this machine knows its rental's nonce, and which host keys are its own.

The nonce is what the create call put into this machine's environment as RENTAL_NONCE. A login may have lost it; then the first process of
the container still has it. Prints {"lorry_proof": [...]}: an HMAC-SHA256 for each host key, and one for no key; never the nonce.
"""

import base64
import glob
import hashlib
import hmac
import json
import os
import subprocess
import sys


def nonce():
    """From this login's environment, else from that of the machine's first process."""
    if found := os.environ.get("RENTAL_NONCE"):
        return found
    try:
        with open("/proc/1/environ", "rb") as file:
            lines = file.read(1 << 20).split(b"\0")
    except OSError:
        return ""
    return next((line[13:].decode() for line in lines if line.startswith(b"RENTAL_NONCE=")), "")


def host_keys():
    """The public host keys that sshd keeps here: "type base64 comment". SSH_HOST_KEYS is their folder, when it is not the usual one."""
    found = []
    for path in sorted(glob.glob(glob.escape(os.environ.get("SSH_HOST_KEYS") or "/etc/ssh") + "/*host*key.pub")):
        try:
            found.append(open(path, encoding="ascii").read(65536))
        except (OSError, ValueError):
            continue
    return found or asked()


def asked():
    """sshd keeps them elsewhere: ask the one that this login came in by. What it answers never leaves this machine."""
    way_in = os.environ.get("SSH_CONNECTION", "").split()
    if len(way_in) != 4 or not way_in[3].isdigit():
        return []
    command = ["ssh-keyscan", "-T", "5", "-p", way_in[3], "--", way_in[2]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.partition(" ")[2] for line in done.stdout.splitlines() if not line.startswith("#")]


def fingerprint(line):
    """As OpenSSH writes it; empty for what is no key."""
    try:
        return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(line.split()[1])).digest()).decode().rstrip("=")
    except (IndexError, ValueError):
        return ""


def main(challenge):
    secret = nonce().encode()
    if not secret:
        sys.exit("this machine knows no nonce")
    keys = [one for one in map(fingerprint, host_keys()) if one]
    told = [hmac.new(secret, ("lorry host proof\0%s\0%s" % (challenge, key)).encode(), "sha256").hexdigest() for key in [*keys, ""]]  # noqa: UP031
    print(json.dumps({"lorry_proof": told}))


if __name__ == "__main__":
    main(sys.argv[1])

# ruff: noqa: ANN001, ANN201, PTH105, SIM115, BLE001
"""PYTHON hub.py FOLDER     fetches bases from a model hub into this machine's cache, and checks every byte that has a known hash

The order comes on stdin, as JSON: {"bases": [{"repo", "revision", "files": [{"name", "size", "sha256"}]}], "url", "token"}. The token
stays in the memory of this process: it is in no file, no argument and no environment, and is gone when the process is. Without an order it
says how far an earlier call is. Prints one line: `ready`, `failed WHY`, `running WHAT`, or `wanted` when nobody has given an order yet.
"""

import fcntl
import hashlib
import json
import os
import sys
import time


def write(folder, text):
    with open(folder + "/hub.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(folder + "/hub.new", folder + "/hub.state")


def state(folder):
    try:
        with open(folder + "/hub.state", encoding="utf-8") as file:
            return file.read(4000)
    except OSError:
        return ""


def fetch(order, folder):
    """Each file of each base, whole and as ordered."""
    if order.get("url"):
        os.environ["HF_ENDPOINT"] = order["url"]
    os.environ |= dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"), "1")
    os.environ.pop("HF_TOKEN", None)
    from huggingface_hub import hf_hub_download

    for base in order["bases"]:
        for number, file in enumerate(base["files"], 1):
            write(folder, "running %s: %d of %d files" % (base["repo"], number, len(base["files"])))  # noqa: UP031
            path = tried(
                lambda base=base, file=file: hf_hub_download(
                    base["repo"], file["name"], revision=base["revision"], token=order.get("token") or False
                )
            )
            if file.get("sha256") and sha256(path) != file["sha256"]:
                os.remove(os.path.realpath(path))  # noqa: PTH107
                raise ValueError("%s of %s is not what the hub said that it is" % (file["name"], base["repo"]))  # noqa: UP031


def tried(act):
    """Three times, for a hub that is busy."""
    for pause_s in (2, 10):
        try:
            return act()
        except Exception:
            time.sleep(pause_s)
    return act()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def detach():
    """Go on when the line is cut. Returns in the child alone."""
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def main(root):
    folder = root + "/setup"
    lock = open(folder + "/hub.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(state(folder) or "running", flush=True)
        return
    raw = sys.stdin.buffer.read()
    if not raw:
        told = state(folder)
        print(told if told.startswith(("ready", "failed")) else "wanted", flush=True)
        return
    order = json.loads(raw)
    write(folder, "running")
    print("running", flush=True)
    detach()
    try:
        fetch(order, folder)
        write(folder, "ready")
    except BaseException as error:
        secret = order.get("token") or "\0"
        write(folder, "failed " + " ".join(str(error).replace(secret, "[token]").split())[:1000])


if __name__ == "__main__":
    main(sys.argv[1])

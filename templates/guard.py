# ruff: noqa: ANN001, ANN201, PTH103, PTH105, PTH111, S310, SIM115, BLE001  all of this file travels in the create call: plain and short
"""python3 guard.py FOLDER CONFIG     the machine's own guard: ends this machine when its time is over, whatever became of everybody else

Started in the machine's first second, and again when it restarts. Needs nothing but Python 3 and the key that the cloud put into this
machine, which may show and destroy this machine only. Counts the time since boot: nobody's clock moves its deadline.

CONFIG is JSON: `method`, `url`, `show_url` and `key` of the cloud's call, where `{NAME}` stands for a variable of the environment;
`id_env`, the variable with this machine's id; `claim_s`: nobody wrote a lease for so long; `most_s`: the most that any lease can ask
for, from the first start; `grace_s`: work is done and nobody came for so long; `beat_s`.
FOLDER/lease.json is the client's: `serial`, and `left_s` from the moment the guard reads it; `status`: the file that says "ended".
FOLDER/guard.json is ours: the beat, what we know and have decided. A restart goes on from it and begins no time anew.
"""

import fcntl
import json
import os
import sys
import time
import urllib.error
import urllib.request


def deadline(state, config):
    """When the machine must go, by the boot clock, and why."""
    hard = state["started"] + config["most_s"]
    if state["serial"] is None:
        return min(hard, state["started"] + config["claim_s"]), "nobody claimed this machine"
    soft = min(hard, state["lease_at"] + state["left_s"])
    if state["ended_at"] is not None:
        fetched = max(state["ended_at"], state["lease_at"]) + config["grace_s"]
        if fetched < soft:
            return fetched, "the work is done and nobody came for it"
    return soft, "its time is over"


def revived(state, now, wall, boot_id):
    """What an earlier guard knew, moved to this boot's clock. What this boot has lasted has passed at least, whatever the time of day."""
    if state["boot_id"] == boot_id:
        return state  # KeyError where the file is not ours
    shift = now - max(wall - state["wall"], now) - state["now"]
    times = {name: state[name] + shift for name in ("started", "lease_at", "ended_at") if state[name] is not None}
    return {**state, **times, "boot_id": boot_id}


def heard(state, lease, status, now):
    """What the client and the work have told since."""
    try:
        if lease["serial"] != state["serial"]:
            state = {**state, "serial": int(lease["serial"]), "lease_at": now, "left_s": float(lease["left_s"])}
    except (TypeError, KeyError, ValueError):
        pass  # none yet, or none that makes sense
    ended = isinstance(status, dict) and status.get("state") == "ended"
    return {**state, "ended_at": (state["ended_at"] or now) if ended else None}


def read(path):
    """The JSON of a file; None while there is none that makes sense."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write(path, document):
    """Whole or not at all. A full disk must not stop us."""
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
    except OSError:
        pass


def call(method, url, key):
    """Ask the cloud; the status and the body. 0: it did not answer."""
    request = urllib.request.Request(url, method=method, headers={"Authorization": "Bearer " + key, "User-Agent": "lorry-guard"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(100000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except Exception as error:
        return 0, str(error)


def boot_clock():
    """Goes on while the machine is suspended, as the bill does, and nobody can set it."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


def main(folder, config):
    os.makedirs(folder, exist_ok=True)
    lock = open(folder + "/lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # one guards already
    url, show_url, key = (config[name].format(**os.environ) for name in ("url", "show_url", "key"))
    boot_id = (read_line("/proc/sys/kernel/random/boot_id") or "?").strip()
    fresh = {"beat": 0, "started": boot_clock(), "serial": None, "lease_at": None, "left_s": 0.0, "ended_at": None, "boot_id": boot_id}
    try:
        state = revived(read(folder + "/guard.json") or fresh, boot_clock(), time.time(), boot_id)
        deadline(state, config)
    except (TypeError, KeyError):
        state = fresh
    proven, tries = False, 0
    while True:
        if not proven or state["beat"] % 300 == 0:
            status, body = call("GET", show_url, key)
            proven = status == 200 and os.environ[config["id_env"]] in body
        lease = read(folder + "/lease.json")
        now = boot_clock()
        told = lease.get("status") if isinstance(lease, dict) else None
        state = heard(state, lease, read(os.path.expanduser(str(told))) if told else None, now)
        until, why = deadline(state, config)
        state = {**state, "beat": state["beat"] + 1, "now": now, "wall": time.time(), "proven": proven, "left": until - now, "why": why}
        write(folder + "/guard.json", state)
        if now >= until:
            call(config["method"], url, key)  # for ever: when it works, we are gone
            tries += 1
        time.sleep(min(60, 2 ** min(tries, 6)) if tries else config["beat_s"])


def read_line(path):
    try:
        with open(path, encoding="ascii") as file:
            return file.readline()
    except OSError:
        return ""


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

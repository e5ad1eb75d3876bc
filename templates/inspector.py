# ruff: noqa: ANN001, ANN002, ANN201, ANN202, PTH100, PTH107, PTH112, PTH118, PTH120  runs on whatever Python a stranger's machine has
"""python3 - FOLDER     tells what this machine is, as one line of JSON after `@lorry `: its cards and the disk of FOLDER

Read from stdin, nothing is left behind. The cards are told by CUDA itself, not by a program's name that anybody can put on a path: each
gets a context, memory of it is filled, read back and compared. That a driver is installed, or that nvidia-smi answers, says less: a
driver older than the library of its container fails at the first of these calls.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys

PATIENCE_S = 60
"""A card that fell off its bus answers never."""
CARDS_MOST = 16
PIECE = 32 << 20
"""Bytes written to each card and read back."""
PATTERN = 0xA5
DISK_PIECE = 1 << 20
DRIVERS = ("libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")
"""By its name first; then where containers and Windows mount it without telling a login."""


class Failed(Exception):
    """A call of CUDA's that did not go well."""


def calls_of(library):
    """Calls of `library` by name; what they answer other than 0 is raised in CUDA's own words."""

    def call(name, *arguments):
        try:
            code = getattr(library, name)(*arguments)
        except AttributeError:
            raise Failed("the driver knows no " + name) from None
        if code:
            words = ctypes.c_char_p()
            known = library.cuGetErrorString(code, ctypes.byref(words)) == 0 and words.value
            raise Failed(f"{name} answered {code}" + (", " + words.value.decode("ascii", "replace") if known else ""))

    return call


def card(call, number):
    """Name, size and free memory of one card, after its memory was used."""
    device, context, name = ctypes.c_int(), ctypes.c_void_p(), ctypes.create_string_buffer(100)
    total, free, place = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
    call("cuDeviceGet", ctypes.byref(device), number)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(ctypes.c_size_t()))
    size, back = ctypes.c_size_t(PIECE), ctypes.create_string_buffer(PIECE)
    call("cuMemAlloc_v2", ctypes.byref(place), size)
    call("cuMemsetD8_v2", place, ctypes.c_ubyte(PATTERN), size)
    call("cuCtxSynchronize")
    call("cuMemcpyDtoH_v2", back, place, size)
    call("cuMemFree_v2", place)
    if back.raw != bytes([PATTERN]) * PIECE:
        raise Failed(f"card {number} does not keep what is written to it")
    return {"name": plain(name.value.decode("utf-8", "replace")), "vram_bytes": total.value, "free_bytes": free.value}


def cards(library):
    """What CUDA says: the cards, the newest version that the driver can do, and the call that failed."""
    call, version, count, found = calls_of(library), ctypes.c_int(), ctypes.c_int(), []
    try:
        call("cuInit", 0)
        call("cuDriverGetVersion", ctypes.byref(version))
        call("cuDeviceGetCount", ctypes.byref(count))
        found = [card(call, number) for number in range(min(count.value, CARDS_MOST))]
        trouble = "" if found else "the driver sees no card"
    except Failed as error:
        trouble = str(error)
    return {"cards": found, "cuda": version.value, "trouble": plain(trouble)[:300]}


def real_cards():
    """Those of the driver's library, where there is one."""
    trouble = ""
    for place in DRIVERS:
        try:
            return cards(ctypes.CDLL(place))
        except OSError as error:
            trouble = trouble or plain(f"no CUDA driver: {error}")[:300]
    return {"cards": [], "cuda": 0, "trouble": trouble}


def played_cards(text):
    """Those that a practice machine plays."""
    played = json.loads(text)
    return {"cards": [{**one, "free_bytes": one["vram_bytes"]} for one in played["cards"]], "cuda": played["cuda"], "trouble": ""}


def disk(folder):
    """Free bytes where `folder` is or will be, and what is wrong with writing there."""
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    probe, trouble = os.path.join(place, f".lorry-{os.getpid()}"), ""
    try:
        with open(probe, "wb") as file:
            file.write(bytes([PATTERN]) * DISK_PIECE)
            file.flush()
            os.fsync(file.fileno())
        with open(probe, "rb") as file:
            if file.read() != bytes([PATTERN]) * DISK_PIECE:
                trouble = "it does not keep what is written to it"
    except OSError as error:
        trouble = str(error.strerror)
    with contextlib.suppress(OSError):
        os.remove(probe)
    there = os.statvfs(place)
    return {"disk_free_bytes": there.f_bavail * there.f_frsize, "disk_trouble": plain(trouble)}


def driver():
    """The driver's own version, where the kernel shows it."""
    try:
        with open("/sys/module/nvidia/version") as file:
            return plain(file.read(40))
    except OSError:
        return ""


def plain(text):
    """On one line, in letters that every terminal knows."""
    return re.sub(r"[^ -~]+", " ", text).strip()


def main(folder):
    """Tell, or be ended by the alarm: no word at all is told apart from a bad one by whoever asked."""
    if hasattr(signal, "alarm"):
        signal.alarm(PATIENCE_S)
    played = os.environ.get("LORRY_PRACTICE_GPU", "")
    told = played_cards(played) if played else real_cards()
    told.update(disk(folder), driver="" if played else driver(), practice=bool(played))
    print("\n@lorry " + json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])

"""Whether a seed kept its promises. Reads the cloud's billing log, what the user saw and what came home; none of lorry's books."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import pairwise

from .lives import Story
from .machine import DISK_GIB, RATE, Machine
from .standins import CAP_USD, RUN

TOLERATED_S = 180.0
"""Of billing past the cap, where anything at all reaches the cloud: what the guard may need."""
HEARD = "destroyed, and seen to be gone"
HOME = re.compile(r"^one: (?:finished adapter|checkpoint of step (\d+)) is home$")
UNSAVED_S = 60.0
"""What was committed so shortly before the end may not have been heard of, or not have come."""
ORDERLY = {0, 5}
"""Exit codes that end a run with everything at home that there was."""

DIED = {None, 1}
"""A lorry that was killed, or broke on a full disk: nobody stood by until the next."""

PROMISES = {
    "silent": "a machine is alive and believed gone",
    "doubled": "a create is sent twice",
    "untrue": "destroyed is said of a machine that lives on",
    "overspent": f"the cap is exceeded by more than {TOLERATED_S:.0f} s",
    "left": "a machine bills on that could have been ended",
    "lost": "a committed checkpoint is lost",
    "broken": "lorry itself broke",
}
"""What the checker looks for: short name -> words."""


def faults(story: Story) -> list[str]:
    """Every promise that was broken, in words that begin with its short name."""
    checks = {
        "silent": _silent,
        "doubled": _doubled,
        "untrue": _untrue,
        "overspent": _overspent,
        "left": _left,
        "lost": _lost,
        "broken": _broken,
    }
    return [f"{name}: {words}" for name, check in checks.items() for words in check(story)]


def _silent(story: Story) -> list[str]:
    """Alive, and no alarm: the last command did not end with 10, and `lorry ps` would not."""
    last = story.told[-1]
    key_of = story.world.cloud.key_of  # to another account's machines only the book leads
    alive = [m.id for m in story.world.cloud.machines if m.until_s is None and not (story.lost and m.account != key_of)]
    if not alive or last.exit_code == 10 or story.alarmed:
        return []
    return [f"{', '.join(alive)} bills on; the last command, {last.command}, ended with {last.exit_code}, and no alarm"]


def _doubled(story: Story) -> list[str]:
    asked = [label.partition("-x")[0] for label in story.world.cloud.asked]  # the deadline behind it may differ
    return [f"a create was sent twice for {label}" for label in sorted(set(asked)) if asked.count(label) > 1]


def _untrue(story: Story) -> list[str]:
    """It said "destroyed" of a machine that lived on, or was yet to land."""
    found = []
    for at, words in story.world.said:
        if words.endswith(HEARD):
            gpu = words.partition(" at ")[0]
            lied = [m.id for m in story.world.cloud.machines if m.gpu == gpu and m.asked_s <= at and (m.until_s is None or m.until_s > at)]
            found += [f"at {at:.0f} s it said {words!r}, of {', '.join(lied)} which lived on"] if lied else []
    return found


def _overspent(story: Story) -> list[str]:
    """Beyond the cap by more than is tolerated, although a client stood by, or every machine had its guard and the price it was told."""
    world, machines = story.world, story.world.cloud.machines
    if any(m.until_s is None for m in machines):
        return []
    stood_by = len(story.told) == 2 and story.told[0].exit_code not in {*DIED, 10} and world.weather.cloud_is_well and not world.slept
    guarded = all(m.is_guarded and not m.is_dearer for m in machines) and not story.clock_was_set and not story.lost
    if not (stood_by or guarded):
        return []
    usd = sum((m.usd(world.time_s) for m in machines), Decimal(0))
    unknown_s = sum((m.until_s or 0.0) - m.from_s for m in machines if not m.claimed)  # never in any book; its guard ended it early
    beyond_s = (usd - CAP_USD) / RATE.usd_per_hour(DISK_GIB) * 3600 - Decimal(unknown_s)
    return [f"the cap was exceeded by {beyond_s:.0f} s of billing"] if beyond_s > TOLERATED_S else []


def _left(story: Story) -> list[str]:
    """Alive and alarmed, although the cloud would have listened: an alarm is no excuse for not trying. (A reap looks once.)"""
    world = story.world
    weather, now = world.weather, world.time_s
    deaf = weather.down_for_good or now >= weather.session_ends_s or weather.storm[0] < now < weather.storm[1] + TOLERATED_S * 2
    left = [m.id for m in world.cloud.machines if m.until_s is None and not m.stubborn and m.account == world.cloud.key_of]
    young = story.told[-1].command == "reap" and any(now < m.lists_after_s + TOLERATED_S for m in world.cloud.machines)
    deaf = deaf or weather.trouble or young
    return [f"{', '.join(left)} bills on, and could have been ended"] if left and not deaf else []


def _lost(story: Story) -> list[str]:
    """A file was said to be at home and is not, or not whole; or a run ended in good order without its newest checkpoint."""
    if story.lost:
        return []
    world, prefix = story.world, f"/home/runs/{RUN}/"
    made: dict[str, set[bytes]] = {}
    for commit in world.commits:
        made.setdefault(commit.home, set()).add(commit.data)
    names = (name.removeprefix(prefix) for name in world.disk.files if name.startswith(f"{prefix}jobs/"))
    at_home = {name: world.disk.files[prefix + name] for name in names}
    found = [f"{name} lies at home and is not what any machine made" for name, data in at_home.items() if data not in made.get(name, ())]
    for at, words in world.said:
        if told := HOME.match(words):
            name = f"jobs/one/checkpoints/one-{int(told[1]):06d}.safetensors" if told[1] else "jobs/one/one.safetensors"
            found += [f"at {at:.0f} s it said {words!r}, and {name} is not there"] if name not in at_home else []
    last = story.told[-1]
    if last.exit_code == 0 and last.command == "attach" and "jobs/one/one.safetensors" not in at_home:
        found.append("the run ended with 0, and its adapter is not at home")
    return found + _left_behind(story, at_home)


def _left_behind(story: Story, at_home: dict[str, bytes]) -> list[str]:
    """A machine was given back in good order, and its newest checkpoint went with it."""
    world = story.world
    if any(t.command in {"down", "reap"} or t.exit_code not in {*ORDERLY, None} for t in story.told):
        return []
    found = []
    for machine in world.cloud.machines:
        if machine.ended_by != "a terminate" or machine.is_outbid or machine.slow or machine.until_s is None:
            continue
        made = [c for c in world.commits if c.machine == machine.id and _could_come(story, machine, c.at_s)]
        newest = max((c.step for c in made), default=0)
        steps = [int(name[-18:-12]) for name in at_home if "/checkpoints/" in name]
        if newest and "jobs/one/one.safetensors" not in at_home and newest > max(steps, default=0):
            found.append(f"{machine.id} was given back with step {newest}, and {max(steps, default=0)} is at home")
    return found


def _could_come(story: Story, machine: Machine, at: float) -> bool:
    """What was made then: a lorry stood by long enough, with an open line, and not only when the cap was reached."""
    ends = [moment for moment in (machine.until_s, machine.given_back_s) if moment is not None]
    until = min(ends, default=at)  # what is made while its end is asked for in vain, nobody waits for
    at_the_cap = any(told.message.startswith("the cap of") for told in story.told)
    if at_the_cap and story.clock_was_set:  # a clock set on by a year has used up any cap
        return False
    gaps = [(last.at_s, told.from_s) for last, told in pairwise(story.told)] + story.world.slept
    if at_the_cap and any(begin - UNSAVED_S <= at <= end for begin, end in gaps):
        return False
    lost_s = sum(max(0.0, min(end, until) - max(begin, at)) for begin, end in (*gaps, *machine.cuts))
    return until - at - lost_s > UNSAVED_S


def _broken(story: Story) -> list[str]:
    return [f"{told.command}: {told.message}" for told in story.told if told.message.startswith("broke: ")]

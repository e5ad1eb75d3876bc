"""Whether a seed kept its promises. Reads the cloud's billing log and what the user saw; none of lorry's own books."""

from __future__ import annotations

from decimal import Decimal

from .lives import CAP_USD, DISK_GIB, Story
from .world import RATE

TOLERATED_S = 180.0
"""Of billing past the cap, where anything at all reaches the cloud: what the guard may need."""
HEARD = "destroyed, and seen to be gone"


def faults(story: Story) -> list[str]:
    """Every promise that was broken, in words."""
    return [*_silent(story), *_doubled(story), *_untrue(story), *_overspent(story), *_left(story)]


def _silent(story: Story) -> list[str]:
    """Alive, and no alarm: the last command did not end with 10, and `lorry ps` would not."""
    last = story.told[-1]
    alive = [m.id for m in story.world.cloud.machines if m.until_s is None]
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
    """Beyond the cap by more than what is tolerated, although a client stood by, or every machine had its guard."""
    world, machines = story.world, story.world.cloud.machines
    stood_by = len(story.told) == 2 and story.told[0].exit_code not in {None, 10} and world.weather.cloud_is_well
    guarded = all(m.has_guard for m in machines) and not world.wall_offset_s and not story.lost
    if any(m.until_s is None for m in machines) or not (stood_by or guarded):
        return []
    rate = RATE.usd_per_hour(DISK_GIB)
    hours = sum(max(0.0, (m.until_s or 0.0) - m.from_s) for m in machines) / 3600
    unknown_s = sum((m.until_s or 0.0) - m.from_s for m in machines if not m.claimed)  # never in any book; its guard ended it early
    beyond_s = (Decimal(hours) - CAP_USD / rate) * 3600 - Decimal(unknown_s)
    return [f"the cap was exceeded by {beyond_s:.0f} s of billing"] if beyond_s > TOLERATED_S else []


def _left(story: Story) -> list[str]:
    """Alive and alarmed, although the cloud would have listened: an alarm is no excuse for not trying. (A reap looks once.)"""
    world = story.world
    weather, now = world.weather, world.time_s
    deaf = weather.down_for_good or now >= weather.session_ends_s or weather.storm[0] < now < weather.storm[1] + TOLERATED_S * 2
    left = [m.id for m in world.cloud.machines if m.until_s is None and not m.stubborn]
    young = story.told[-1].command == "reap" and any(now < m.lists_after_s + TOLERATED_S for m in world.cloud.machines)
    deaf = deaf or weather.trouble or young
    return [f"{', '.join(left)} bills on, and could have been ended"] if left and not deaf else []

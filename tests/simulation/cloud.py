"""A cloud that keeps the contract of `providers.base`, and no other promise; its billing log is for the checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, NoReturn

from providers.base import Account, Instance, InstanceStatus, LaunchSpec, Offer, Requirements, SelfDestroy
from providers.errors import AuthError, NoCapacity, RateLimited, Refused, Unavailable, UnexpectedResponse

from .machine import NEVER_S, Machine

if TYPE_CHECKING:
    from .world import World

LATE_S = 120.0
"""A create whose answer was lost lands at most so long after it was sent."""
TIMEOUT_S = 30.0
SHORTEST_LABEL = 32
"""A cloud that cuts labels keeps so much."""
OURS, THEIRS = "account-1", "account-2"
EVERYTHING = frozenset({"launch", "describe", "instances", "terminate", "account"})

ITSELF = SelfDestroy(method="DELETE", url="https://cloud.example/{ID}", key="{KEY}", id_env="ID")


@dataclass(slots=True)
class Cloud:
    """A provider."""

    world: World
    machines: list[Machine] = field(default_factory=list)
    """The billing log. For the checker."""
    asked: list[str] = field(default_factory=list)
    """The label of every create that arrived, in order."""
    name: str = "fake"
    console_url: str = "https://cloud.example/machines"
    key_of: str = OURS
    """The account to which the user's key belongs now."""

    @property
    def self_destroy(self) -> SelfDestroy | None:
        return ITSELF if self.world.weather.guarded else None

    def live(self) -> None:
        """Let happen what is due by now."""
        for machine in self.machines:
            if machine.until_s is None:
                machine.live()

    # -- the contract ---------------------------------------------------------------------------------

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        raise NotImplementedError

    def launch(self, offer: Offer, spec: LaunchSpec) -> Instance:
        world, rng = self.world, self.world.rng
        self._call("launch")
        self.asked.append(spec.label)
        kind = rng.random()
        if kind < 0.6:
            machine = self._rent(offer, spec, 0.0)
            world.effect("launch answered")
            return self._instance(machine)
        if kind < 0.70:
            error = rng.choice((NoCapacity, NoCapacity, Refused, AuthError, RateLimited))
            world.hit("create refused", f"the create is refused: {error.__name__}")
            raise error("nothing was rented")
        if kind < 0.76:
            self._lose("create lost", "the create was lost on its way")
        if kind < 0.84:
            self._rent(offer, spec, 0.0)
            self._lose("create answer lost", "the answer to the create was lost")
        if kind < 0.91:
            self._rent(offer, spec, rng.uniform(0.0, LATE_S - TIMEOUT_S) + TIMEOUT_S)
            self._lose("create lands late", "the create will land late")
        machine = self._rent(offer, spec, 0.0)
        world.effect("launch answered with an error")
        if kind < 0.96:
            world.hit("error that rented")
            raise rng.choice((UnexpectedResponse, Refused, NoCapacity, Unavailable))("an error that rented", instance_ids=(machine.id,))
        world.hit("answer without an id")
        raise UnexpectedResponse("200 without an id")

    def describe(self, instance_id: str) -> Instance:
        self._call("describe")
        world, now = self.world, self.world.time_s
        found = self._by_id(instance_id)
        if found is None:
            return _gone(instance_id)
        if now >= world.weather.session_ends_s or found.account != self.key_of:
            if found.until_s is None:
                self._is_stranger(found)
            return found.gone
        if found.until_s is not None:
            if now >= found.until_s + found.lingers_s:
                return found.gone
            world.hit("dead one shown", f"{instance_id} is shown, and gone")
            return self._instance(found)
        if now < found.shows_after_s:
            world.hit("unseen by id", f"{instance_id} is not shown yet")
            return found.gone
        lied, found.lied = found.lied, False
        if world.weather.lies and not lied and world.rng.random() < world.weather.lies:
            found.lied = True
            world.hit("describe lies", f"describe lies: {instance_id} is gone")
            return found.gone
        return self._instance(found)

    def instances(self) -> Sequence[Instance]:
        self._call("instances")
        world, now = self.world, self.world.time_s
        is_logged_out, listed = now >= world.weather.session_ends_s, []
        for m in self.machines:
            if is_logged_out or m.account != self.key_of:
                if m.until_s is None:
                    self._is_stranger(m)
            elif m.until_s is not None:
                if now < m.until_s + m.lingers_s:
                    world.hit("dead one listed", f"{m.id} is listed, and gone")
                    listed.append(self._instance(m))
            elif now >= m.lists_after_s:
                listed.append(self._instance(m))
            elif now >= m.from_s:
                world.hit("unlisted", f"{m.id} is not listed yet")
        return listed

    def terminate(self, instance_id: str) -> None:
        world, now = self.world, self.world.time_s
        found = self._by_id(instance_id)
        if found is not None and found.given_back_s is None:
            found.given_back_s = now
        self._call("terminate")
        is_ours = found is not None and found.account == self.key_of
        if is_ours and max(found.from_s, found.shows_after_s) <= now < world.weather.session_ends_s:
            if found.deaf > 0:
                found.deaf -= 1
                world.hit("terminate ignored", f"terminate {instance_id}: answered well, and does nothing")
            elif found.dies_at_s >= NEVER_S:
                takes_s = world.rng.choice((0.0, 0.0, 1.0, 20.0))
                if takes_s:
                    world.hit("terminate slow", f"terminate {instance_id} takes {takes_s:.0f} s")
                found.dies_at_s = now + takes_s
                world.at(found.dies_at_s)
                found.live()
        world.effect("terminate answered")
        if world.weather.trouble and world.rng.random() < world.weather.trouble / 2:
            self._lose("terminate answer lost", f"the answer to terminate {instance_id} was lost")

    def account(self) -> Account:
        self._call("account")
        if self.world.time_s >= self.world.weather.session_ends_s:
            raise AuthError("session expired")
        return Account(name="sim", id=self.key_of)

    def billed_usd(self, instance_id: str) -> Decimal | None:
        return None

    def _is_stranger(self, machine: Machine) -> None:
        if machine.account != self.key_of:
            self.world.hit("another's key", f"{machine.id} is not there for the key of {self.key_of}")
        else:
            self.world.hit("logged out", f"the user is logged out: {machine.id} is not there")

    # -- inside ---------------------------------------------------------------------------------------

    def _by_id(self, instance_id: str) -> Machine | None:
        number = int(instance_id[2:])
        return self.machines[number - 1] if number <= len(self.machines) else None

    def _call(self, endpoint: str) -> None:
        """A request on its way: it may meet trouble before it has any effect."""
        world, weather = self.world, self.world.weather
        world.effect(endpoint)
        world.pass_time(0.2)
        now = world.time_s
        if weather.storm[0] <= now < weather.storm[1]:
            world.hit("storm of 429")
            raise RateLimited("too many requests", retry_after_s=world.rng.choice((1.0, 5.0, 60.0)))
        if now >= weather.down_from_s and endpoint in weather.down_for_good:
            self._lose("down for good", f"{endpoint} is down for good")
        if weather.trouble and endpoint != "launch" and world.rng.random() < weather.trouble:
            kind = world.rng.random()
            if kind < 0.4:
                self._lose("timeout", f"{endpoint} timed out")
            if kind < 0.6:
                world.hit("503", f"{endpoint}: 503")
                raise Unavailable(f"{endpoint}: 503")
            if kind < 0.8:
                world.hit("429", f"{endpoint}: 429")
                raise RateLimited("slow down", retry_after_s=2.0)
            world.hit("half a page", f"{endpoint}: half a page")
            raise UnexpectedResponse(f"{endpoint}: half a page")

    def _lose(self, fault: str, why: str) -> NoReturn:
        self.world.hit(fault, why)
        self.world.pass_time(self.world.rng.choice((1.0, TIMEOUT_S)))
        raise Unavailable(why)

    def _rent(self, offer: Offer, spec: LaunchSpec, late_s: float) -> Machine:
        world, weather = self.world, self.world.weather
        label = spec.label[:SHORTEST_LABEL] if weather.cuts_labels else spec.label
        if label != spec.label:
            world.hit("label cut")
        machine = Machine(world, len(self.machines) + 1, offer, spec.label, label, world.time_s + late_s)
        machine.account = self.key_of
        self.machines.append(machine)
        world.tell(f"{machine.id} is rented as {label!r}" + (f", in {late_s:.0f} s" if late_s else ""))
        machine.fate(spec.onstart)
        return machine

    def _instance(self, m: Machine) -> Instance:
        """What it looks like now; the same value for as long as nothing changes."""
        if self.world.time_s < m.boots_after_s:
            return m.pending
        return m.stopped if m.is_outbid else m.running


def _gone(instance_id: str) -> Instance:
    return Instance(provider="fake", id=instance_id, label="", status=InstanceStatus.GONE)

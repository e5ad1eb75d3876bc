"""The life of one lease. Everything that decides a phase lives in this file, as a table.

PURE: knows no clock, cloud, file or network. A run is a list of attempts; each attempt is one lease with
one label, and moves through the phases below. The ledger holds the signals, so the phase of any attempt
is what folding its entries through `TRANSITIONS` gives, on any computer, at any later time.
"""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a lease stands. Every phase but the first and the last may cost money."""

    PLANNED = "planned"
    LAUNCHING = "launching"  # the create may have been sent; whether it rented is not known
    BOOTING = "booting"  # an instance id is known
    SHIPPING = "shipping"  # SSH answers
    TRAINING = "training"  # the supervisor was started
    PULLING = "pulling"  # training ended, well or badly
    RELEASING = "releasing"  # given up: nothing more is wanted of the machine
    GONE = "gone"  # seen to be gone, or certain never to have been


class Signal(StrEnum):
    """What can happen to a lease; each is a kind of ledger entry."""

    INTENT = "intent"  # about to send the create
    LAUNCHED = "launched"  # the cloud answered with an id, or the label was found
    REFUSED = "refused"  # certain that nothing was rented
    REACHABLE = "reachable"  # logged in, host key pinned
    SHIPPED = "shipped"  # everything is there and verified
    STARTED = "started"  # the supervisor runs
    ENDED = "ended"  # the supervisor ended the session
    PULLED = "pulled"  # what was committed is at home
    GIVE_UP = "give_up"  # budget, Ctrl-C, unrecoverable error
    GONE = "gone"  # the cloud was seen to have it no longer


TRANSITIONS: dict[Phase, dict[Signal, Phase]] = {
    Phase.PLANNED: {Signal.INTENT: Phase.LAUNCHING},
    Phase.LAUNCHING: {
        Signal.LAUNCHED: Phase.BOOTING,
        Signal.REFUSED: Phase.GONE,
        Signal.GIVE_UP: Phase.RELEASING,
        Signal.GONE: Phase.GONE,
    },
    Phase.BOOTING: {
        Signal.LAUNCHED: Phase.BOOTING,  # one create, two machines: an error named one, the label another
        Signal.REACHABLE: Phase.SHIPPING,
        Signal.GIVE_UP: Phase.RELEASING,
        Signal.GONE: Phase.GONE,
    },
    Phase.SHIPPING: {
        Signal.REACHABLE: Phase.SHIPPING,  # a new client logs in again
        Signal.SHIPPED: Phase.SHIPPING,
        Signal.STARTED: Phase.TRAINING,
        Signal.GIVE_UP: Phase.RELEASING,
        Signal.GONE: Phase.GONE,
    },
    Phase.TRAINING: {
        Signal.STARTED: Phase.TRAINING,  # a supervisor that died was started again
        Signal.ENDED: Phase.PULLING,
        Signal.GIVE_UP: Phase.RELEASING,
        Signal.GONE: Phase.GONE,
    },
    Phase.PULLING: {Signal.PULLED: Phase.PULLING, Signal.GIVE_UP: Phase.RELEASING, Signal.GONE: Phase.GONE},
    Phase.RELEASING: {
        Signal.LAUNCHED: Phase.RELEASING,  # a create that landed late was found by its label
        Signal.GIVE_UP: Phase.RELEASING,
        Signal.GONE: Phase.GONE,
    },
    Phase.GONE: {
        Signal.LAUNCHED: Phase.RELEASING,  # believed absent, found alive: the books open again
        Signal.GONE: Phase.GONE,
    },
}

PAYING = frozenset(Phase) - {Phase.PLANNED, Phase.GONE}
"""Phases in which a machine may bill."""


class IllegalTransition(Exception):
    """A signal that means nothing in this phase: a mistake of ours, never of the user."""


def advance(phase: Phase, signal: Signal) -> Phase:
    """The phase after `signal`."""
    try:
        return TRANSITIONS[phase][signal]
    except KeyError:
        raise IllegalTransition(f"{signal} means nothing while {phase}") from None


def heard(phase: Phase, signal: Signal) -> bool:
    """Whether `signal` means anything in this phase."""
    return signal in TRANSITIONS[phase]

"""Everything a provider may raise.

* ProviderError
  - AuthError            key wrong or without rights
    - NoKey              there is none: this cloud is not in use here
  - NoCapacity           the offer has gone; the next one may do
  - Refused              the cloud will not rent to this account now (credit, limits)
  - RateLimited          asked too often; `retry_after_s` says how long to wait
  - Unavailable          timeouts, resets, 5xx: nothing is known about the effect
  - UnexpectedResponse   the cloud answered something we do not understand

`transient` says whether asking the same question again can help. Creating an instance is never asked
again, whatever this says: see `Provider.launch`.

Exit codes are those of the product page: 4 no offer or refused, 11 credentials.
"""

from __future__ import annotations


class ProviderError(Exception):
    """A cloud did not do what was asked. `hint` is the next move for the person who pays."""

    code = "LRY-PROVIDER"
    exit_code = 4
    transient = False

    def __init__(self, message: str, *, hint: str = "", instance_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hint = hint
        self.instance_ids = instance_ids
        """Every instance id seen in the answer: an error to a create can still have created."""


class AuthError(ProviderError):
    """The key is missing, wrong, expired or lacks a right."""

    code = "LRY-PROVIDER-AUTH"
    exit_code = 11


class NoKey(AuthError):
    """There is no key at all."""

    code = "LRY-PROVIDER-NO-KEY"


class NoCapacity(ProviderError):
    """The offer has gone; certain that nothing was rented."""

    code = "LRY-PROVIDER-GONE"


class Refused(ProviderError):
    """The cloud will not rent to this account (no credit, spend limit); certain that nothing was rented."""

    code = "LRY-PROVIDER-REFUSED"


class RateLimited(ProviderError):
    """Asked too often."""

    code = "LRY-PROVIDER-RATE"
    transient = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str = "", instance_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint, instance_ids=instance_ids)
        self.retry_after_s = retry_after_s


class Unavailable(ProviderError):
    """No answer, or an answer of the kind that says nothing about the effect."""

    code = "LRY-PROVIDER-DOWN"
    transient = True


class UnexpectedResponse(ProviderError):
    """The answer is not in the contract, so it means "unknown", never "none"."""

    code = "LRY-PROVIDER-ODD"

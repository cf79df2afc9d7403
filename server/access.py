"""Who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from .addresses import Network, caller
from .errors import ApiError
from .exchange import Exchange
from .keys import Keyring, Limits
from .ledgers import Account, Ledger, Ledgers
from .limits import RequestLimits

PAGE, HEALTH, METRICS = "/", "/health", "/metrics"


@dataclass(frozen=True)
class Access:
    """Keys and limits.

    Attributes:
        keys: that let in.
        address: limits of each address, whatever its keys.
        proxies: networks whose word is taken for the address of a client.
        request: limits of each request.
        ledgers: what callers have taken.
        public: paths that need no key; they are not counted, and answered also while the server loads or drains.
    """

    keys: Keyring = field(default_factory=Keyring)
    address: Limits = field(default_factory=Limits)
    proxies: tuple[Network, ...] = ()
    request: RequestLimits = field(default_factory=RequestLimits)
    ledgers: Ledgers = field(default_factory=Ledgers)
    public: frozenset[str] = frozenset({PAGE, HEALTH})

    def admit(self, exchange: Exchange, scope: Scope, headers: Headers) -> None:
        """Let a request in.

        Raises:
            ApiError: its key is none (401), or a limit is reached (429).
        """
        exchange.address = caller(scope, headers, self.proxies)
        if exchange.path in self.public:
            return
        callers: list[tuple[Ledger, Limits]] = [(self.ledgers.of_address(exchange.address), self.address)]
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self.keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if key:
            exchange.key = key.name
            callers.insert(0, (self.ledgers.of_key(key.name), key))
        exchange.account = Account(self.ledgers, callers)
        exchange.account.open()  # with a wrong key too: who guesses is held up by the limit of his address
        if self.keys.required and not key:
            raise ApiError(
                401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

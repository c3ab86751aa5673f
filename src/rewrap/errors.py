"""Every error rewrap raises on purpose.

    RewrapError                 exit 1
    ├── UsageError              exit 2   the command line asks for something that cannot be
    ├── JobError                exit 2   the job file is wrong; names the TOML path
    ├── LedgerError             exit 2   the ledger belongs to something else, or is too new
    │   └── LedgerUnavailable   exit 1   retry may help
    ├── StoreError              exit 1   the database refuses or does not answer
    │   ├── SchemaMismatch      exit 2   the table is not what the job says
    │   ├── UnsafeTarget        exit 2   the table cannot be rotated safely as it stands
    │   ├── StoreUnavailable    exit 1   retry may help
    │   │   └── StoreBusy       exit 1   the store throttles; waited for, and no value's fault
    │   ├── Rewound             exit 1   the server crashed and lost acknowledged writes; handled inside
    │   ├── ValueRefused        exit 1   the store refuses one of a batch's values; handled inside
    │   │   └── Unaddressed     exit 1   no request can name its row; handled inside
    │   └── FenceError          exit 3   the fence cannot be added while old values remain
    ├── KeyAccessError          exit 10  a key is missing or cannot be read
    │   └── KeyRefused          exit 10  a key was read, and does not open what it must open
    ├── GateClosed              exit 3   a new key version would strand values, or there is one already
    ├── LeaseHeld               exit 11  another run works on the same table
    │   └── LeaseLost           exit 11  another run took this one's place
    ├── NotQuiesced             exit 1   somebody writes where nobody was to write
    ├── AccountingError         exit 1   the classes do not add up: nothing may be concluded
    └── ResealMismatch          exit 1   a new value did not open to the same plaintext

The message is lowercase, without a full stop, the object first. The hint says what to do next. Neither
ever holds plaintext, key bytes, a stored value or the password of a URL.
"""


class RewrapError(Exception):
    """What the operator is told: one line, and a hint on how to go on."""

    exit_code: int = 1
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(RewrapError):
    exit_code = 2


class JobError(RewrapError):
    exit_code = 2


class LedgerError(RewrapError):
    exit_code = 2


class LedgerUnavailable(LedgerError):
    exit_code = 1
    retryable = True


class StoreError(RewrapError):
    """The store answered with an error; `sqlstate` is Postgres' five characters, or empty."""

    def __init__(self, message: str, *, hint: str | None = None, sqlstate: str = "") -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class SchemaMismatch(StoreError):
    exit_code = 2


class UnsafeTarget(StoreError):
    exit_code = 2


class StoreUnavailable(StoreError):
    retryable = True


class StoreBusy(StoreUnavailable):
    pass


class Rewound(StoreError):
    retryable = True


class ValueRefused(StoreError):
    pass


class Unaddressed(ValueRefused):
    pass


class FenceError(StoreError):
    exit_code = 3


class KeyAccessError(RewrapError):
    """A key is not at hand; `code` says why, as `check` has it."""

    exit_code = 10

    def __init__(self, message: str, *, hint: str | None = None, code: str = "key-missing") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class KeyRefused(KeyAccessError):
    pass


class GateClosed(RewrapError):
    exit_code = 3


class LeaseHeld(RewrapError):
    exit_code = 11


class LeaseLost(LeaseHeld):
    pass


class NotQuiesced(RewrapError):
    """A table that was acknowledged as quiesced is not: whoever writes it may not read what was rewritten."""


class AccountingError(RewrapError):
    pass


class ResealMismatch(RewrapError):
    pass

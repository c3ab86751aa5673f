"""What is wrong with a job file, as one line with a hint: never repeats what was written there."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from rewrap.audit.section import AuditSection, RowSection
from rewrap.envelopes import DekSection, ReferenceSection
from rewrap.errors import JobError
from rewrap.formats import IndexKind, LayoutSection
from rewrap.keysections import AwsKms, AwsSecret, KeyFiles, Keys, KeyVersion, Pkcs11, Transit
from rewrap.limits import Limits
from rewrap.pace.section import Pace, SharedSection
from rewrap.probes.section import ProbeSection
from rewrap.storage import CosmosStore, PostgresStore
from rewrap.targets import FieldSection, TargetSection
from rewrap.untouched import UntouchedSection

_PROVIDERS: dict[str, type[BaseModel]] = {
    "versions": KeyVersion,
    "aws-secrets-manager": AwsSecret,
    "aws-kms": AwsKms,
    "files": KeyFiles,
    "pkcs11": Pkcs11,
    "vault-transit": Transit,
}
"""The tables in `[keys]`, by how they are written."""

_FIXES = {
    "extra_forbidden": "is not a field here; check the spelling",
    "missing": "is missing",
    "too_short": "is empty",
    "string_too_short": "is empty",
}


def job_error(exc: ValidationError, path: Path, job: type[BaseModel]) -> JobError:
    """The first of pydantic's errors as one line, and the rest as a count. Never repeats the input."""
    found = exc.errors(include_url=False, include_input=False, include_context=False)
    # a misspelt field shows twice, as unknown and as missing: the first says more
    first, *rest = sorted(found, key=lambda error: error["type"] != "extra_forbidden")
    where = ""
    loc = _as_written(first["loc"])
    for part in loc:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = _FIXES.get(first["type"], first["msg"].removeprefix("Value error, "))
    message = message[:1].lower() + message[1:]
    if first["type"].startswith("union_tag"):
        where, message = f"{where}.kind", "is neither postgres nor cosmos"
    more = f" (and {len(rest)} more)" if rest else ""
    hint = "see docs/job-file.md"
    if where.endswith(".encoding") and where.startswith("keys"):
        hint = "encodings are hex, base64, raw, utf8, pem"
    if where == "targets":
        hint = (
            "name a table and its columns (docs/job-file.md); rewrap discover tries keys without targets too"
        )
    if first["type"] == "extra_forbidden":
        hint = _allowed_hint(first["loc"], job)
    return JobError(f"job file {path}: {where}: {message}{more}", hint=hint)


def _as_written(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place as the file has it: without the kind of store that was tried there."""
    return loc[:2] + loc[3:] if loc[0] == "stores" and loc[2:3] in (("postgres",), ("cosmos",)) else loc


def _allowed_hint(loc: tuple[int | str, ...], job: type[BaseModel]) -> str:
    sections: dict[str, type[BaseModel]] = {
        "stores": CosmosStore if loc[2:3] == ("cosmos",) else PostgresStore,
        "keys": Keys,
        "layouts": LayoutSection,
        "indexes": IndexKind,
        "targets": TargetSection,
        "untouched": UntouchedSection,
        "deks": DekSection,
        "pace": Pace,
        "limits": Limits,
        "probe": ProbeSection,
        "audit": AuditSection,
    }
    model: type[BaseModel] = job if len(loc) == 1 else sections.get(str(loc[0]), job)
    if loc[0] == "keys" and len(loc) > 2:
        model = _PROVIDERS.get(str(loc[1]), model)
    if loc[:2] == ("pace", "shared"):
        model = SharedSection
    if loc[:2] == ("audit", "rows"):
        model = RowSection
    if len(loc) > 3 and loc[0] == "targets":
        model = FieldSection
    if len(loc) > 3 and loc[0] == "deks":
        model = ReferenceSection if loc[2] == "referenced_by" else FieldSection
    return "fields here are " + ", ".join(entry.alias or name for name, entry in model.model_fields.items())

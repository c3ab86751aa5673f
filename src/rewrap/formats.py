"""The `[layouts]` and `[indexes]` of a job file: how values are stored, and what is stored beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from rewrap.crypto.indexes import BlindIndex, parse_index
from rewrap.crypto.layout import Layout, LayoutError, builtin_descriptors, builtin_layouts, compiled
from rewrap.errors import JobError
from rewrap.targets import IndexSection, Name, Section

Text = Annotated[str, StringConstraints(max_length=200)]


class LayoutSection(Section):
    """`[layouts.NAME]`: a stored format, or a built-in one with some fields of its own (`like`)."""

    like: Name | None = None
    marker: Text | None = None
    version: Name | None = None
    encoding: Name | None = None
    cipher: Name | None = None
    aad: Name | dict[str, Text] | None = None
    order: Text | None = None
    separator: Text | None = None
    nonce_bytes: int | None = None
    kdf: dict[str, str | int] | None = None
    plaintext: Text | None = None
    framing: Text | None = None
    foreign: Text | None = None


class IndexKind(Section):
    """`[indexes.NAME]`: how a blind index is computed."""

    kind: Name
    name: Name | None = None
    bits: int | None = None
    encoding: Name | None = None
    normalize: Name | None = None
    slow: bool | None = None
    passes: int | None = None
    memory_kib: int | None = None
    info: Text | None = None
    table: Name | None = None
    column: Name | None = None


def compile_index(
    sections: Mapping[str, IndexKind], used: IndexSection, path: Path, *, key_apart: bool
) -> BlindIndex:
    """The blind index of a field. Raises JobError, which names the one that is wrong."""
    if used.index not in sections:
        known = ", ".join(sections) or "none"
        raise JobError(
            f'job file {path}: there is no index "{used.index}"', hint=f"known: {known}; see docs/job-file.md"
        )
    try:
        return parse_index(sections[used.index].model_dump(), used.column, key_apart=key_apart)
    except LayoutError as exc:
        raise JobError(f"job file {path}: indexes.{used.index}: {exc}", hint="see docs/layouts.md") from None


def compile_layouts(sections: Mapping[str, LayoutSection], path: Path) -> dict[str, Layout]:
    """The built-in layouts and a job's own, by name. Raises JobError, which names the one that is wrong."""
    layouts = dict(builtin_layouts())
    for name, section in sections.items():
        where = f"job file {path}: layouts.{name}"
        declared: dict[str, Any] = {}
        if section.like is not None:
            known = builtin_descriptors()
            if section.like not in known:
                raise JobError(
                    f'{where}.like: there is no built-in layout "{section.like}"',
                    hint=f"built-in layouts: {', '.join(sorted(known))}",
                )
            declared.update(known[section.like])
        declared.update(section.model_dump(exclude={"like"}, exclude_none=True))
        for key in ("encoding", "cipher"):
            if key not in declared:
                raise JobError(f"{where}.{key}: is missing", hint="see docs/layouts.md")
        try:
            layouts[name] = compiled(name, declared)
        except LayoutError as exc:
            raise JobError(f"{where}: {exc}", hint="see docs/layouts.md") from None
    return layouts

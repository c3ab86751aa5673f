"""What has to be true of vectors, wherever they are opened; of those in git and of new ones alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from rewrap.crypto.ciphers import OPEN_FAILURES
from rewrap.crypto.layout import Malformed, Unopenable
from rewrap.engine.reseal import Reseal, Resealed
from rewrap.opening import Opening, opened
from rewrap.packed import SEPARATOR, Packed, listed
from tests.support.vectors import Vector, alike

DETERMINISTIC = ("aes-256-gcm-derived-nonce", "aes-key-wrap", "aes-key-wrap-pad")
"""Ciphers that make the same of the same, so that it is what the maker made."""

TOLD = {
    "resealed": "stale",
    "unopenable": "sealed",
    "malformed": "sealed",
    "plaintext": "plaintext",
    "unmarked": "unmarked",
}
"""What verify calls a value that names no version, by what becomes of it in a run."""


def check_layout(found: Sequence[Vector]) -> None:
    """Each vector, opened by its layout: alone, and as a list."""
    assert any(vector.opens for vector in found)
    assert any(not vector.opens for vector in found)
    for vector in found:
        bound, value, aad = vector.bound(), vector.value, vector.aad
        aads = None if aad is None else [aad, aad]
        if vector.opens:
            whole = bound.open_one(value, aad)
            assert whole[bound.layout.carry_bytes :] == vector.plain, vector.told
            if "time" in vector.made:
                assert int.from_bytes(whole[:8], "big") == vector.made["time"], vector.told
            assert bound.open_values([value, value], aads) == [whole, whole], vector.told
        else:
            failure = Unopenable if vector.run == "unopenable" else Malformed
            with pytest.raises((Malformed, Unopenable)) as raised:
                bound.open_one(value, aad)
            assert raised.type is failure, vector.told
            if bound.begins_all([value]):
                with pytest.raises(OPEN_FAILURES):
                    bound.open_values([value, value], aads)
        check_version(vector)


def check_version(vector: Vector) -> None:
    """Where a value tells its version, it is the one that was written, or that it pretends to be of."""
    layout, version = vector.layout, vector.layout.version_of(vector.value)
    if not layout.versioned or vector.run in ("plaintext", "unmarked"):
        assert version is None, vector.told
    elif vector.run == "other_version":
        assert version == vector.made["named"], vector.told
    else:
        prefix = layout.prefix_of(vector.version)
        assert vector.value[: len(prefix)] == prefix, vector.told
        # a head that is encoded with the payload cannot be read where that is no base64
        readable = vector.run != "malformed" or not layout.framing
        assert not readable or version == vector.version, vector.told


def _row(vector: Vector, at: int) -> tuple[Any, ...]:
    return (at, vector.value, *vector.row_texts)


def became(result: Resealed, column: str) -> str:
    """What became of the one row of a result."""
    if result.faults:
        (fault,) = result.faults
        return str(fault.reason)
    if result.swap.written(column):
        return "resealed"
    ((outcome, count),) = ((outcome, count) for outcome, count in result.tally[column].items() if count)
    assert count == 1
    return str(outcome)


def _judged(reseal: Reseal, row: tuple[Any, ...]) -> Resealed:
    """One row, judged; whole where its value begins as one that was held back does."""
    result = reseal([row])
    return reseal.judge_whole(row) if result.large else result


def check_engine(found: Sequence[Vector]) -> None:
    """Each vector as a run would judge it: alone, with all that could be in its column, and packed."""
    for group in alike(tuple(found)):
        rotation, table = group[0].rotation
        reseal, column = rotation.reseal(table), table.field_names[0]
        for at, vector in enumerate(group):
            result = _judged(reseal, _row(vector, at))
            assert became(result, column) == vector.run, vector.told
            if vector.opens:
                (new,) = listed(result.swap.news[column])
                # with what is carried beside the plaintext, as a token's time
                plain = vector.bound().open_one(vector.value, vector.aad)
                assert vector.bound(new=True).open_one(new, vector.aad) == plain, vector.told
        results = [reseal([_row(vector, at) for at, vector in enumerate(group)])]
        results += [reseal.judge_whole(_row(group[at], at)) for at in results[0].large]
        counted: Counter[str] = Counter()
        for result in results:
            counted.update(str(fault.reason) for fault in result.faults)
            counted["resealed"] += result.swap.written(column)
            counted.update({str(o): n for o, n in result.tally[column].items() if str(o) != "quarantined"})
        assert +counted == Counter(vector.run for vector in group), group[0].told
        check_packed(group, reseal)


def check_packed(group: Sequence[Vector], reseal: Reseal) -> None:
    """Those that open, as one text: every one is resealed; with one more that does not, all but that one."""
    texts = [vector for vector in group if isinstance(vector.value, str)]
    good = [vector for vector in texts if vector.opens]
    if not good:
        return
    (entry,) = reseal.fields
    others: list[Vector | None] = [vector for vector in texts if vector.run in ("unopenable", "malformed")]
    for other in (None, *others[:3]):
        chosen = [*good, *([other] if other else [])]
        aads = None if good[0].aad is None else [vector.aad or b"" for vector in chosen]
        packed = Packed(SEPARATOR.join(str(vector.value) for vector in chosen), len(chosen))
        judged = entry.judge(packed, (aads, aads), list(range(len(chosen))))
        assert len(listed(judged.news)) == len(good), chosen[-1].told
        assert [str(fault.reason) for fault in judged.faults] == ([other.run] if other else [])


def check_verify(found: Sequence[Vector]) -> None:
    """Each vector as verify would open it, with both keys of a rotation at hand."""
    for group in alike(tuple(found)):
        rotation, table = group[0].rotation
        entry = rotation.target(table).fields[0]
        forms = rotation.job.forms(entry, rotation.to_version)
        old = rotation.from_versions
        opening = Opening(forms, rotation.keyring, old, table.target, entry.name, deep=True)
        for vector in group:
            aads = {"stored": vector.aad}
            named = forms.named_by(vector.value)
            if forms.probed:
                assert named is None, vector.told
                told = opening.tell(vector.value, aads)
                assert told.kind == TOLD[vector.run], vector.told
                assert told.version == (vector.version if vector.opens else None), vector.told
            elif vector.run in ("plaintext", "unmarked"):
                assert named is None, vector.told
                bare = opening.opens_bare(vector.value, aads)
                assert (bare is True) == (vector.run == "unmarked"), vector.told
            else:
                wanted = vector.made["named"] if vector.run == "other_version" else vector.version
                assert named == (wanted, True), vector.told
                opens = opened(vector.bound(), vector.value, vector.aad) is not None
                assert opens == vector.opens, vector.told


def check_resealing(found: Sequence[Vector]) -> None:
    """Sealed under another key, values have the form and the length that the maker gave them."""
    for vector in found:
        if not vector.opens:
            continue
        old, new, aad, value = vector.bound(), vector.bound(new=True), vector.aad, vector.value
        whole = old.open_one(value, aad)
        (resealed,) = new.seal_values([whole], None if aad is None else [aad])
        assert new.open_one(resealed, aad) == whole, vector.told
        assert type(resealed) is type(value), vector.told
        if vector.layout.cipher_name in DETERMINISTIC and "liberal" not in vector.made:
            assert old.seal_values([whole], None) == [value], vector.told
        if vector.version == vector.new_version or not vector.layout.versioned:
            with_old = resealed
        else:
            with_old = old.prefix + resealed[len(new.prefix) :]
        if not vector.made.get("liberal") and vector.layout.framing != "jwe":
            assert len(resealed) - len(new.prefix) == len(value) - len(old.prefix), vector.told
        if new.layout.cipher.authenticated and vector.layout.framing not in ("tink", "cloak"):
            with pytest.raises(Unopenable):
                old.open_one(with_old, aad)

"""A layout bound to one key: what opens and seals whole batches of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from rewrap.crypto.cipher import OPEN_FAILURES, Aads, Batch, OpenBatch, SealBatch, TryBatch, Trying
from rewrap.crypto.encodings import rewritten
from rewrap.crypto.failures import Malformed, Unopenable
from rewrap.crypto.indexes import Compute
from rewrap.crypto.jwe import header_of
from rewrap.crypto.markers import Value
from rewrap.crypto.parts import Codec
from rewrap.packed import PART, SEPARATOR, Packed

if TYPE_CHECKING:
    from rewrap.crypto.layout import Layout


@dataclass(frozen=True)
class BoundLayout:
    """Opens and seals values of one version with one key. Plaintexts are bytes.

    What works on a list is all or none: it raises one of OPEN_FAILURES at the first value that does not
    open. Every value must begin with `prefix`; associated data are by index.
    """

    layout: Layout
    version: str
    prefix: Value
    key: bytes = field(repr=False)
    table: str = ""
    column: str = ""
    computes: tuple[Compute, ...] = field(default=(), repr=False)

    @cached_property
    def open_values(self) -> Callable[[Sequence[Any], Aads | None], Batch]:
        """Opens a list of marked values."""
        decode, open_batch, at = self._decode, self._open_batch, len(self.prefix)

        def open_values(values: Sequence[Any], aads: Aads | None) -> Batch:
            return open_batch(decode([value[at:] for value in values]), aads, 0)

        def open_bytes(values: Sequence[Any], aads: Aads | None) -> Batch:
            return open_batch(values, aads, at)

        return open_bytes if self.layout.stored_as_sealed else open_values

    def open_each(self, values: Sequence[Any], aads: Aads | None) -> Sequence[bytes | None]:
        """What each of some marked values opens to; None for one that does not.

        For values of which it is not known whether any opens.
        """
        if self._try_batch is not None:
            at = len(self.prefix)
            if self.layout.stored_as_sealed:
                return self._try_batch(values, aads, at)
            try:
                return self._try_batch(self._decode([value[at:] for value in values]), aads, 0)
            except ValueError:
                # one of them is not in the encoding
                pass
        try:
            return self.open_values(values, aads)
        except OPEN_FAILURES:
            pass
        plains: list[bytes | None] = []
        for at, value in enumerate(values):
            try:
                plains += self.open_values([value], None if aads is None else [aads[at]])
            except OPEN_FAILURES:
                plains.append(None)
        return plains

    def begins_all(self, values: Sequence[Any]) -> bool:
        """Whether every one of some values is there and begins with `prefix`."""
        size = len(self.prefix)
        try:
            return [value[:size] for value in values].count(self.prefix) == len(values) > 0
        except TypeError:
            # None, or a mark: neither can be sliced
            return False

    @cached_property
    def seal_values(self) -> Callable[[Batch, Aads | None], list[Any]]:
        """Seals plaintexts into marked values, in order, each under a nonce of its own."""
        encode, seal_batch, prefix = self._encode, self._seal_batch, cast("Any", self.prefix)
        if self.layout.index_count:
            return self._seal_indexed

        def seal_values(plain: Batch, aads: Aads | None) -> list[Any]:
            return [prefix + payload for payload in encode(seal_batch(plain, aads))]

        return seal_values

    @cached_property
    def open_packed(self) -> Callable[[Packed, Aads | None], Batch | None]:
        """Opens a packed column of text; None unless every value of it begins with `prefix`.

        A value that holds the separator cannot pass for two: every boundary between values is one, so
        there is always one too many, which then stands inside a payload, where the decoder refuses it.
        """
        decode, open_batch = self._decode, self._open_batch
        marker, at = cast("str", self.prefix), len(self.prefix)
        glue = SEPARATOR + marker

        def open_packed(values: Packed, aads: Aads | None) -> Batch | None:
            if not values.text.startswith(marker):
                return None
            payloads = values.text.split(glue)
            if len(payloads) != values.count:
                return None
            payloads[0] = payloads[0][at:]
            return open_batch(decode(payloads), aads, 0)

        return open_packed

    @cached_property
    def seal_packed(self) -> Callable[[Batch, Aads | None], Packed]:
        """Seals plaintexts into a packed column of text."""
        encode, seal_batch, marker = self._encode, self._seal_batch, cast("str", self.prefix)
        glue = SEPARATOR + marker
        if self.layout.index_count:
            return lambda plain, aads: Packed(SEPARATOR.join(self._seal_indexed(plain, aads)), len(plain))

        def seal_packed(plain: Batch, aads: Aads | None) -> Packed:
            return Packed(marker + glue.join(encode(seal_batch(plain, aads))), len(plain))

        return seal_packed

    def _seal_indexed(self, plain: Batch, aads: Aads | None) -> list[Any]:
        sealed = self._encode(self._seal_batch(plain, aads))
        ends = ["".join(PART + index for index in self.index_of(text)) for text in plain]
        prefix = cast("Any", self.prefix)
        return [prefix + payload + end for payload, end in zip(sealed, ends, strict=True)]

    def index_of(self, plain: bytes) -> list[str]:
        """The blind indexes of a plaintext, as they are stored beside it.

        Raises ValueError when they need a secret that the layout was not bound with.
        """
        if len(self.computes) != self.layout.index_count:
            raise ValueError("blind indexes cannot be computed without their key")
        value = plain[self.layout.carry_bytes :]
        return [compute(value) for compute in self.computes]

    def indexes_match(self, value: str, plain: bytes) -> bool:
        """Whether the indexes stored with a value are those of its plaintext."""
        wanted = self.index_of(plain)
        return not wanted or value.split(PART)[-len(wanted) :] == wanted

    def open_one(self, value: Value, aad: bytes | None) -> bytes:
        """Opens one marked value; raises Malformed or Unopenable."""
        if not value.startswith(cast("Any", self.prefix)):
            raise Malformed
        return self._open_payload(value[len(self.prefix) :], aad)

    def written_otherwise(self, value: Value, aad: bytes | None) -> bool:
        """Whether a value that is malformed would be a sealed one, if it were written as this layout writes.

        An application whose decoder is lenient opens such a value. It may open under this key or not.
        """
        layout = self.layout
        if not isinstance(value, str) or layout.framing or layout.separator or layout.apart or self.prefix:
            return False
        text = rewritten(layout.encoding, value)
        if text is None:
            return False
        try:
            self.open_one(text, aad)
        except Malformed:
            return False
        except Unopenable:
            pass
        return True

    def open_bare(self, payload: Value, aad: bytes | None) -> bytes:
        """Opens a payload that carries no marker; raises Malformed or Unopenable."""
        if "version" in self.layout.apart:
            # a version that is stored apart, and is not there
            if not isinstance(payload, str) or not payload.startswith(PART):
                raise Malformed
            payload = payload[1:]
        return self._open_payload(payload, aad)

    def _open_payload(self, payload: Value, aad: bytes | None) -> bytes:
        try:
            (raw,) = self._decode([payload])
        except ValueError:
            raise Malformed from None
        if len(raw) < self.layout.frame_bytes + self.layout.least_bytes:
            raise Malformed
        try:
            return self._open_batch([raw], None if aad is None else [aad], 0)[0]
        except OPEN_FAILURES:
            raise Unopenable from None

    @cached_property
    def _codec(self) -> Codec:
        return self.layout.codec(self.version, self.key)

    @cached_property
    def _decode(self) -> Callable[[Sequence[Any]], Batch]:
        return self._codec.decode

    @cached_property
    def _encode(self) -> Callable[[Batch], list[Any]]:
        return self._codec.encode

    @cached_property
    def _try_batch(self) -> TryBatch | None:
        """Where neither the layout adds anything to the cipher, nor the cipher has to start anew."""
        layout = self.layout
        adds = layout.validator is not None or layout.framing == "jwe" or layout.frame_bytes
        if adds or not isinstance(layout.cipher, Trying):
            return None
        return layout.cipher.trier(self.key)

    @cached_property
    def _open_batch(self) -> OpenBatch:
        return wrapped_opener(self.layout, self.prefix, self.layout.cipher.opener(self.key))

    @cached_property
    def _seal_batch(self) -> SealBatch:
        return wrapped_sealer(self.layout, self.prefix, self.layout.cipher.sealer(self.key))


def wrapped_opener(layout: Layout, prefix: Value, opener: OpenBatch) -> OpenBatch:
    """A cipher's opener with what a layout adds to it; for most it adds nothing."""
    fits, carry, frame = layout.validator, layout.carry_bytes, layout.frame_bytes
    header = header_of(prefix) if layout.framing == "jwe" else None
    if fits is None and header is None and not frame:
        return opener

    def open_batch(sealed: Sequence[bytes], aads: Aads | None, at: int) -> Batch:
        if header is not None:
            aads = [header] * len(sealed)
        plain = opener(sealed, aads, at + frame)
        if frame:
            plain = [raw[at : at + frame] + text for raw, text in zip(sealed, plain, strict=True)]
        if fits is not None and not all(fits(text[carry:]) for text in plain):
            raise ValueError("a plaintext does not look as declared")
        return plain

    return open_batch


def wrapped_sealer(layout: Layout, prefix: Value, sealer: SealBatch) -> SealBatch:
    """A cipher's sealer with what a layout adds to it."""
    frame = layout.frame_bytes
    header = header_of(prefix) if layout.framing == "jwe" else None
    if header is None and not frame:
        return sealer

    def seal_batch(plain: Batch, aads: Aads | None) -> Batch:
        if header is not None:
            aads = [header] * len(plain)
        sealed = sealer([text[frame:] for text in plain], aads)
        return [text[:frame] + raw for text, raw in zip(plain, sealed, strict=True)]

    return seal_batch

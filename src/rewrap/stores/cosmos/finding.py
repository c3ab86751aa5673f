"""Finds a row's document: by its place, or by looking for it where no request can name that place."""

from __future__ import annotations

from typing import Any

from rewrap.errors import Unaddressed
from rewrap.stores.cosmos.client import Container, Document
from rewrap.stores.cosmos.shape import Shape


async def document_of(container: Container, shape: Shape, key: Any) -> Document | None:
    """The document with a row's key; None when it is not there.

    Such documents can be read, and so judged and told of, though nothing can be written to them.
    """
    name, partition = shape.place_of(key)
    try:
        return await container.read(name, partition)
    except Unaddressed:
        found = await container.look_for(name)
    return next((one for one in found if shape.key_of(one) == key), None)

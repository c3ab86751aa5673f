"""The makers of vectors: run again here, with new keys, and asked to open what was resealed.

So that the vectors in git are no accidents of the day on which they were made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.vectorchecks import check_engine, check_layout, check_resealing, check_verify
from tests.support.vectors import FILES, FOLDER, Vector, of_sets, vectors

MAKERS = FOLDER / "makers"

COMMANDS = {
    "php": ["php", "php.php"],
    "laravel": ["php", "laravel.php"],
    "ruby": ["ruby", "ruby.rb"],
    "crypto": ["node", "crypto.mjs"],
    "openssl": [sys.executable, "openssl.py"],
    "rsa": [sys.executable, "openssl.py"],
    "rails": ["ruby", "rails.rb"],
}
"""Makers that need no more than what a distribution has, and Rails."""

LIBRARIES = {
    "laravel": "php-illuminate-encryption",
    "ruby": "ruby-lockbox, ruby-attr-encrypted, ruby-activesupport",
}


def needed(name: str) -> None:
    """Skips or fails where a maker's program, or its libraries, are not there."""
    program = {"openssl": "openssl", "rsa": "openssl"}.get(name, COMMANDS[name][0])
    require(program, program)
    if name == "laravel" and not Path("/usr/share/php/Illuminate/Encryption/autoload.php").exists():
        require("Laravel's encrypter", LIBRARIES[name])
    loads = {
        "ruby": ["-rstringio", "-ractive_support", "-rlockbox", "-rattr_encrypted", "-e", ""],
        "rails": ["-rstringio", "-ractive_record", "-e", "ActiveRecord::Encryption::Encryptor.new"],
    }
    if name in loads and subprocess.run(["ruby", *loads[name]], capture_output=True, check=False).returncode:
        if name == "rails":
            # no distribution has it yet, so that it is not asked for where components are required
            pytest.skip("Rails 7 or later is missing: gem install activerecord")
        require("Ruby's libraries", LIBRARIES[name])


def asked(command: Sequence[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, cwd=MAKERS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def broken(made: str) -> str:
    """What a maker printed, with what is broken of it."""
    return asked([sys.executable, "broken.py"], made)


@pytest.mark.parametrize("name", FILES)
def test_broken_vectors_follow_from_the_others(name: str) -> None:
    """None was made by hand: broken.py makes the same again of what the program made."""
    written = (FOLDER / f"{name}.json").read_text()
    whole = json.loads(written)
    bare = [{key: value for key, value in one.items() if key != "broken"} for one in whole["sets"]]
    assert broken(json.dumps({**whole, "sets": bare})) == written


@pytest.mark.parametrize("name", ["crypto", "openssl"])
def test_seeded_maker_makes_the_same_again(name: str) -> None:
    """Where the program takes a nonce that is given, its file is the same to the byte."""
    needed(name)
    assert broken(asked([*COMMANDS[name], "make", "vectors"])) == (FOLDER / f"{name}.json").read_text()


def shown(found: Sequence[Vector]) -> Counter[Any]:
    """What there is, but for other forms of a value: some values have none, by chance."""
    own = [vector for vector in found if not vector.made.get("liberal")]
    return Counter(
        (json.dumps(v.made["layout"]), v.expect, v.made.get("why"), v.made.get("run")) for v in own
    )


@pytest.mark.parametrize("name", ["php", "laravel", "ruby", "crypto", "openssl"])
def test_new_vectors_do_what_they_say(name: str) -> None:
    """Made now, under keys that nobody has seen: the same kinds of them, and all do as those in git do."""
    needed(name)
    found = tuple(of_sets(json.loads(broken(asked([*COMMANDS[name], "make"])))["sets"]))
    assert shown(found) == shown(vectors(name))
    assert not {vector.key for vector in found} & {vector.key for vector in vectors(name)}
    check_layout(found)
    check_engine(found)
    check_verify(found)
    check_resealing(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_maker_opens_what_was_resealed(name: str) -> None:
    """The program that made a value opens it under the new key."""
    needed(name)
    told, plains = [], []
    for vector in vectors(name):
        if not vector.opens:
            continue
        aad = vector.aad
        whole = vector.bound().open_one(vector.value, aad)
        (value,) = vector.bound(new=True).seal_values([whole], None if aad is None else [aad])
        stored = value.hex() if isinstance(value, bytes) else value
        key = vector.new_key.hex()
        told.append({**vector.made, "key": key, "value": stored, "aad": (aad or b"").decode()})
        plains.append(vector.made.get("inflated", vector.made["plain"]))
    assert json.loads(asked([*COMMANDS[name], "open"], json.dumps(told))) == plains

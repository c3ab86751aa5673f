"""Peer: pgcrypto, in the server, 1,000 rows a statement. The keys travel to the server in every one.

`python -m benchmarks.peers.pgcrypto iv` uses decrypt_iv and encrypt_iv (AES-256-CBC: no authentication, a
value that was tampered with passes unseen); `pgp` uses pgp_sym_decrypt and pgp_sym_encrypt.
"""

from __future__ import annotations

import os
import sys

import psycopg

from benchmarks.peers.exchange import Stopwatch, database_url

CHUNK_ROWS = 1_000

STATEMENTS = {
    # encode() breaks lines at 76 characters; the value goes through a subquery so that both uses of the iv
    # are of one random one
    "iv": """
        UPDATE customers
           SET ciphertext = (
                 SELECT 'v2:' || translate(encode(
                            iv || encrypt_iv(
                                decrypt_iv(substr(sealed, 17), %(old)b, substr(sealed, 1, 16), 'aes-cbc'),
                                %(new)b, iv, 'aes-cbc'),
                            'base64'), E'\\n', '')
                   FROM (SELECT decode(substr(ciphertext, 4), 'base64') AS sealed,
                                gen_random_bytes(16) AS iv
                         OFFSET 0) AS value)
         WHERE id > %(after)s AND id <= %(last)s
    """,
    "pgp": """
        UPDATE customers
           SET ciphertext = 'v2:' || translate(encode(
                   pgp_sym_encrypt(
                       pgp_sym_decrypt(decode(substr(ciphertext, 4), 'base64'), %(old)s), %(new)s),
                   'base64'), E'\\n', '')
         WHERE id > %(after)s AND id <= %(last)s
    """,
}


def main() -> None:
    mode = sys.argv[1]
    keys: dict[str, str | bytes] = {"old": os.environ["KEY_V1"], "new": os.environ["KEY_V2"]}
    if mode == "iv":
        keys = {name: bytes.fromhex(str(key)) for name, key in keys.items()}
    done = 0
    with psycopg.connect(database_url(), autocommit=True) as connection:
        (highest,) = connection.execute("SELECT max(id) FROM customers").fetchone() or (0,)
        stopwatch = Stopwatch()
        for after in range(0, highest, CHUNK_ROWS):
            chunk = {"after": after, "last": after + CHUNK_ROWS}
            done += connection.execute(STATEMENTS[mode], {**keys, **chunk}).rowcount
        stopwatch.report(done)


if __name__ == "__main__":
    main()

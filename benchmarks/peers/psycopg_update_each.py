"""Peer: psycopg 3, SELECT 500 rows, then an UPDATE for each of them, one transaction a batch."""

from __future__ import annotations

import psycopg

from benchmarks.peers.exchange import BATCH_ROWS, Exchange, Stopwatch, database_url


def main() -> None:
    exchange, done, last = Exchange(), 0, 0
    with psycopg.connect(database_url()) as connection:
        stopwatch = Stopwatch()
        while True:
            rows = connection.execute(
                "SELECT id, ciphertext FROM customers WHERE id > %s ORDER BY id LIMIT %s", (last, BATCH_ROWS)
            ).fetchall()
            if not rows:
                break
            for row_id, value in rows:
                connection.execute(
                    "UPDATE customers SET ciphertext = %s WHERE id = %s", (exchange(value), row_id)
                )
            connection.commit()
            done, last = done + len(rows), rows[-1][0]
        stopwatch.report(done)


if __name__ == "__main__":
    main()

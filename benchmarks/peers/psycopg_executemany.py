"""Peer: psycopg 3, SELECT 500 rows, then executemany, which psycopg sends as one pipeline."""

from __future__ import annotations

import psycopg

from benchmarks.peers.exchange import BATCH_ROWS, Exchange, Stopwatch, database_url


def main() -> None:
    exchange, done, last = Exchange(), 0, 0
    with psycopg.connect(database_url()) as connection, connection.cursor() as cursor:
        stopwatch = Stopwatch()
        while True:
            cursor.execute(
                "SELECT id, ciphertext FROM customers WHERE id > %s ORDER BY id LIMIT %s", (last, BATCH_ROWS)
            )
            rows = cursor.fetchall()
            if not rows:
                break
            cursor.executemany(
                "UPDATE customers SET ciphertext = %s WHERE id = %s",
                [(exchange(value), row_id) for row_id, value in rows],
            )
            connection.commit()
            done, last = done + len(rows), rows[-1][0]
        stopwatch.report(done)


if __name__ == "__main__":
    main()

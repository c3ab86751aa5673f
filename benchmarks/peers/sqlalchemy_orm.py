"""Peer: SQLAlchemy 2 ORM over psycopg 3: 500 objects, a new value for each, flush and commit."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.peers.exchange import BATCH_ROWS, Exchange, Stopwatch, database_url


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    account_id: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    note: Mapped[str] = mapped_column(Text)
    ciphertext: Mapped[str] = mapped_column(Text)


def main() -> None:
    exchange, done, last = Exchange(), 0, 0
    engine = create_engine(database_url().replace("postgresql://", "postgresql+psycopg://", 1))
    with Session(engine) as session:
        session.connection()
        stopwatch = Stopwatch()
        while True:
            batch = select(Customer).where(Customer.id > last).order_by(Customer.id).limit(BATCH_ROWS)
            customers = session.scalars(batch).all()
            if not customers:
                break
            done, last = done + len(customers), customers[-1].id
            for customer in customers:
                customer.ciphertext = exchange(customer.ciphertext)
            session.flush()
            # before the commit expires them: nobody looks at these objects again
            session.expunge_all()
            session.commit()
        stopwatch.report(done)


if __name__ == "__main__":
    main()

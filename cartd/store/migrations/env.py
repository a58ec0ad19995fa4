"""What Alembic runs: the upgrades, in the transaction that ``cartd.store.schema`` has begun."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()

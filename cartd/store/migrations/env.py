"""Alembic's environment: runs the upgrades in the transaction of ``cartd.store.schema``."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()

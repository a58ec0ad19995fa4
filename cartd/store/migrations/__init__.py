"""The upgrades of the schema, as Alembic's revisions; ``cartd.store.schema`` runs them.

The id of a revision is the version of the schema that it creates.

0.1, 1.0 and 2.0 create Pacifica Cartd's schemas as it did, so that its databases and an empty one
are upgraded the same way.  Nothing in here may import the current tables.
"""

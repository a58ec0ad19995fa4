"""Alembic's numbered upgrades; a revision's id is the version of the schema that it makes.

0.1, 1.0 and 2.0 are those of Pacifica Cartd, made as it made them, so that its databases and an
empty one go the same way.  Nothing in here may import the tables of today.
"""

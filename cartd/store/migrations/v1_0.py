"""Pacifica's second version: a cart may be bundled on the volume."""

import sqlalchemy as sa
from alembic import op

revision = "1.0"
down_revision = "0.1"


def upgrade() -> None:
    op.add_column("cart", sa.Column("bundle", sa.Boolean))

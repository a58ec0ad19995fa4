"""Pacifica's third version: which Celery tasks work for a cart."""

import sqlalchemy as sa
from alembic import op

revision = "2.0"
down_revision = "1.0"


def upgrade() -> None:
    op.create_table(
        "carttasks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("cart_id", sa.Integer, sa.ForeignKey("cart.id"), nullable=False),
        sa.Column("celery_task_id", sa.String(255), nullable=False),
    )
    op.create_index("carttasks_cart_id", "carttasks", ["cart_id"])

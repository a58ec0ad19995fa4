"""Pacifica's first version: carts and their files."""

import sqlalchemy as sa
from alembic import op

revision = "0.1"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "cartsystem",
        sa.Column("part", sa.String(255), primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
    )
    op.create_table(
        "cart",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("cart_uid", sa.String(255), nullable=False),
        sa.Column("bundle_path", sa.String(255), nullable=False),
        sa.Column("creation_date", sa.DateTime, nullable=False),
        sa.Column("updated_date", sa.DateTime, nullable=False),
        sa.Column("deleted_date", sa.DateTime),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_table(
        "file",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("cart_id", sa.Integer, sa.ForeignKey("cart.id"), nullable=False),
        sa.Column("file_name", sa.String(255), nullable=False),
        sa.Column("bundle_path", sa.String(255), nullable=False),
        sa.Column("hash_type", sa.String(255)),
        sa.Column("hash_value", sa.String(255)),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("file_cart_id", "file", ["cart_id"])

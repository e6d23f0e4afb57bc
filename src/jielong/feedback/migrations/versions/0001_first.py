"""Answers, what people said about them, and whose words were erased."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "answer",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("prompt_ids", sa.JSON, nullable=False),
        sa.Column("answer_ids", sa.JSON, nullable=False),
        sa.Column("logprobs", sa.JSON, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("finish", sa.String(16), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("model_hash", sa.String(64), nullable=False),
        sa.Column("user", sa.String(200), nullable=False, index=True),
        sa.Column("source", sa.String(40), nullable=False),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("created", sa.Float, nullable=False, index=True),
        sa.Column("user", sa.String(200), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("answer", sa.String(80), sa.ForeignKey("answer.id"), nullable=True, index=True),
        sa.Column("other", sa.String(80), sa.ForeignKey("answer.id"), nullable=True),
        sa.Column("value", sa.String(16), nullable=False),
        sa.Column("shown", sa.String(8), nullable=False),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("consent", sa.Boolean, nullable=False),
        sa.Column("undoes", sa.Integer, sa.ForeignKey("event.id"), nullable=True),
    )
    op.create_table(
        "erasure",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("user_hash", sa.String(64), nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("answers", sa.Integer, nullable=False),
    )

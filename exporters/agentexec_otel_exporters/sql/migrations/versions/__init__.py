"""One module per revision, as Alembic reads them."""

"""What Alembic runs for each command, which puts its connection, or the dialect of the SQL, into the config."""

from alembic import context

from agentexec_otel_exporters.sql.migrations.version import VERSION_TABLE

if context.is_offline_mode():
    context.configure(
        dialect_name=context.config.attributes["dialect"], version_table=VERSION_TABLE, literal_binds=True
    )
else:
    context.configure(
        connection=context.config.attributes["connection"], version_table=VERSION_TABLE, transaction_per_migration=True
    )
with context.begin_transaction():
    context.run_migrations()

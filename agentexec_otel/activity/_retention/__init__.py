"""Retention: activities that have ended are moved from the database to files, deleted, and read back."""

"""Storing events in the tables: the transaction, and what it is made of."""

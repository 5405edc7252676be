"""Rows on local disk while the database can't take them."""

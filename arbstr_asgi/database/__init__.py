"""One way to three databases: rows, columns, SQL, connections, migrations."""

"""Storage on SQLite, PostgreSQL and MySQL/MariaDB: columns, values, SQL, connections, migrations."""

"""SQLite, PostgreSQL, and MariaDB or MySQL, each through its raw driver."""

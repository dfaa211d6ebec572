"""The only folder with SQL. Functions take the transaction they run in and never commit."""

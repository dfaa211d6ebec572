"""The history of the database's schema. Each revision moves data forward; a released one is never edited."""

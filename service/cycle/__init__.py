"""The planning cycle: snapshot -> Problem, solve in a warm child, commit, record, again."""

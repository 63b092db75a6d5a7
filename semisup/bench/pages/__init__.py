"""How people see it: tables, leaderboard, charts and the report."""

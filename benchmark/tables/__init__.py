"""From records to tables: leaderboard, CSV, Markdown, LaTeX and HTML."""

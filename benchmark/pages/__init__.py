"""The leaderboard as one HTML file: the page, the charts of a task, and what lies behind its scores."""

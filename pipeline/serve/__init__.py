"""Answers for others: HTTP server, page, batch file, files on disk."""

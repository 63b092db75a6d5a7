"""What came out: rows, summaries, statistics and the files that hold them."""

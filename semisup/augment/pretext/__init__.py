"""Images as tasks: puzzles, patches, exemplars, damage and transformations."""

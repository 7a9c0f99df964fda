"""What a config would do, without running it."""

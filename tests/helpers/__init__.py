"""What several tests use; each file is named by what it does."""

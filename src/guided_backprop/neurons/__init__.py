"""What single neurons look for."""

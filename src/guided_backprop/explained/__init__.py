"""From photos to pictures: photos are read, explained, and drawn with their maps at their place; and read back."""

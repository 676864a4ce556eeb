"""What a traced program is made of: its operations, which of them are ReLUs, which lie in front of the score."""

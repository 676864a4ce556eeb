"""What a traced graph is made of: its nodes, which of them are ReLUs, whose functions it holds."""

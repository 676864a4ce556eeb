"""The command line, and the local page: parse, call, print."""

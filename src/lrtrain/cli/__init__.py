"""The command line: the entry point, and a thin file a command, with heavy imports only inside its functions."""

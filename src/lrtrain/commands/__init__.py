"""One file per command. A module here imports heavy libraries only inside its functions."""

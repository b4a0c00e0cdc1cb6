"""What one learns by running: six notebooks, and the command that executes and renders all of them."""

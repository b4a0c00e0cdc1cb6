"""Where the time and the memory of some training steps go."""
